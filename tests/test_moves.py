"""How the hidden state moves, precision and groups of axes: planted, by hand, against plain statistics."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import stats_fn
from analysis.experiments.control import mean_difference
from analysis.experiments.trials import control_trials
from analysis.statistics.resampling import bootstrap_ci
from analysis.stats_fn import cohens_d, control_effect
from analysis.tables import control as control_tables
from analysis.tables.series import ControlSeries

EXPS, LAYERS, PLANTED, DELTA = 12, 6, 2, 3.0


def make_series(rng, axis="lr", layer=PLANTED, affected=("lr", "meandiff", "pc1", "pc2"), exps=None, **more):
    """Noise at N = 0 and 4 in both modes, unless ``more`` replaces a field."""
    exps = np.arange(EXPS) if exps is None else np.asarray(exps)
    shape = (len(exps), 2, 2, 2, 2)
    blank = {"measured": {name: np.zeros(shape, np.float32) for name in ("copy_rate", "cut", "empty")}}
    fields = {
        "scores": rng.normal(size=(*shape, len(affected))),
        "neutral": rng.normal(size=(*shape, len(affected))),
        "by_layer": rng.normal(size=(*shape, LAYERS)),
        "projection": rng.normal(size=(*shape, LAYERS)),
        "differences": {mode: rng.normal(size=(len(exps), 5)) for mode in ("active", "inactive")},
    } | more
    shots, modes, text = np.array([0, 4]), ("active", "inactive"), np.full(shape, "x", object)
    return ControlSeries(
        axis, layer, 2, "true", exps, shots, modes, affected, layers_read=np.arange(LAYERS), text=text,
        **blank, **fields,
    )  # fmt: skip


def make_planted(rng) -> ControlSeries:
    """Active, N = 4: + DELTA where high was wanted, at layers from PLANTED on."""
    projection = rng.normal(size=(EXPS, 2, 2, 2, 2, LAYERS))
    projection[:, 1, 0, :, 1, PLANTED:] += DELTA
    return make_series(rng, projection=projection)


@pytest.fixture
def planted(rng) -> ControlSeries:
    """The same, with a seed."""
    return make_planted(rng)


def by_layer(rows, want) -> dict[str, np.ndarray]:
    """Return value, low and high over the layer read."""
    chosen = sorted((row for row in rows if row["want"] == want), key=lambda row: row["layer_read"])
    return {name: np.array([row[name] for row in chosen]) for name in ("value", "low", "high")}


# ---------------------------------------------------------------- accumulation


def test_a_planted_shift_is_found_from_its_layer_on_and_not_before():
    truth = np.where(np.arange(LAYERS) < PLANTED, 0, DELTA)
    covered, inactive = [], []
    for seed in range(20):
        series = make_planted(np.random.default_rng(seed))
        found = by_layer(control_tables.accumulation_rows(series, "active"), "difference")
        covered.append((found["low"] <= truth) & (truth <= found["high"]))
        assert (found["low"][PLANTED:] > 1).all() and (found["high"][:PLANTED] < 2).all()
        inactive.append(by_layer(control_tables.accumulation_rows(series, "inactive"), "difference")["value"])
    assert np.mean(covered) > 0.85  # 95 %, less what 12 experiments cost a percentile interval
    assert np.abs(np.mean(inactive, axis=0)).max() < 0.3  # nothing was planted there


def test_positions_are_means_over_flips_and_experiments_at_the_largest_n(planted):
    rows = control_tables.accumulation_rows(planted, "active")
    for want, side in (("low", 0), ("high", 1)):
        expected = planted.projection[:, -1, 0, :, side].mean(axis=(0, 1))
        np.testing.assert_allclose(by_layer(rows, want)["value"], expected)
    difference = by_layer(rows, "high")["value"] - by_layer(rows, "low")["value"]
    np.testing.assert_allclose(by_layer(rows, "difference")["value"], difference)
    assert {row["experiments"] for row in rows} == {EXPS}


def test_swapped_wanted_sides_swap_the_curves_and_nothing_else(planted, rng):
    swapped = make_series(rng, projection=planted.projection[:, :, :, :, ::-1])
    one, two = (control_tables.accumulation_rows(series, "active") for series in (planted, swapped))
    for want, other in (("high", "low"), ("low", "high")):
        for name, values in by_layer(one, want).items():
            np.testing.assert_array_equal(values, by_layer(two, other)[name])
    np.testing.assert_allclose(by_layer(one, "difference")["value"], -by_layer(two, "difference")["value"])


def test_a_missing_partner_takes_the_whole_pair_out_of_all_three_curves(rng):
    projection = np.zeros((2, 2, 2, 2, 2, LAYERS))
    projection[..., 1, :] = 1.0  # high wanted
    projection[0, -1, 0, 0, 1] = np.nan
    projection[0, -1, 0, 0, 0] = 100.0  # its partner must not count
    projection[1, -1, 0, :, 1] = np.nan  # experiment 1 has no complete pair
    rows = control_tables.accumulation_rows(make_series(rng, exps=[0, 1], projection=projection), "active")
    assert [(row["value"], row["experiments"]) for row in rows] == [
        *[(1.0, 1)] * LAYERS, *[(0.0, 1)] * LAYERS, *[(1.0, 1)] * LAYERS
    ]  # fmt: skip
    assert all(np.isnan(row["low"]) for row in rows)  # one experiment has no interval


def test_an_axis_without_a_direction_has_no_positions(rng):
    series = make_series(rng, projection=np.full((EXPS, 2, 2, 2, 2, LAYERS), np.nan))
    rows = control_tables.accumulation_rows(series, "active")
    assert {row["experiments"] for row in rows} == {0} and all(np.isnan(row["value"]) for row in rows)


# ---------------------------------------------------------------- cosine


def plain_cosine(direction):
    """Return the statistic for bootstrap_ci: (S, n, D) -> (S,)."""

    def cosine(diff: np.ndarray) -> np.ndarray:
        mean = diff.mean(axis=1)
        return mean @ direction / np.linalg.norm(mean, axis=1)

    return cosine


def test_the_cosine_and_its_interval_equal_plain_statistics(rng):
    direction = np.array([0.6, 0.8, 0, 0, 0])
    moved = rng.normal(size=(EXPS, 5)) + 0.7 * direction
    moved[3] = np.nan  # an empty reply
    series = make_series(rng, differences={"active": moved, "inactive": -moved})
    row = control_tables.cosine_row(series, "active", direction, seed=5)
    assert row["value"] == pytest.approx(stats_fn.neural_difference_cosine(moved, direction))
    kept = np.delete(moved, 3, axis=0)
    low, high = bootstrap_ci(plain_cosine(direction), kept, seed=5)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert low < row["value"] < high
    assert (row["experiments"], row["n"], row["axis"]) == (EXPS - 1, 4, "lr")
    assert control_tables.cosine_row(series, "inactive", direction)["value"] == pytest.approx(-row["value"])


@pytest.mark.parametrize("n", [0, 1])
def test_a_cosine_of_fewer_than_two_experiments_has_no_interval(n, rng):
    moved = np.full((3, 5), np.nan)
    moved[:n] = [2.0, 0, 0, 0, 0]
    series = make_series(rng, exps=range(3), differences={"active": moved, "inactive": moved})
    row = control_tables.cosine_row(series, "active", np.eye(5)[0])
    assert row["experiments"] == n and np.isnan(row["low"]) and np.isnan(row["high"])
    np.testing.assert_equal(row["value"], 1.0 if n else np.nan)


# ---------------------------------------------------------------- precision, groups, affected axes


def hand_d(series: ControlSeries, name: str, mode: int = 0) -> float:
    """Return Cohen's d at the largest N on one affected axis."""
    cell = series.scores[:, -1, mode][..., series.affected.index(name)]
    return cohens_d(cell[:, :, 1].ravel(), cell[:, :, 0].ravel())


@pytest.mark.parametrize("axis", ["lr", "pc2", "meandiff"])
def test_precision_is_d_on_the_target_over_the_mean_of_lr_and_the_pcs(axis, rng):
    series = make_series(rng, axis=axis, scores=rng.normal(size=(EXPS, 2, 2, 2, 2, 4)) + [0, 0, 1, 0])
    sizes = {name: abs(hand_d(series, name)) for name in series.affected}
    others = [sizes[name] for name in ("lr", "pc1", "pc2") if name != axis]
    rows = {row["variant"]: row for row in control_tables.precision_rows(series, "active")}
    without, inside = rows["without target"], rows["with target"]
    assert without["value"] == pytest.approx(sizes[axis] / np.mean(others))
    assert inside["value"] == pytest.approx(sizes[axis] / np.mean([sizes[axis], *others]))
    assert without["value"] == pytest.approx(stats_fn.control_precision(sizes[axis], np.array(others)))
    for row in rows.values():
        assert row["others"] == len(others) and row["low"] < row["value"] < row["high"]


def test_precision_without_other_axes_is_not_known(rng):
    shape = (EXPS, 2, 2, 2, 2, 1)
    series = make_series(rng, affected=("lr",), scores=rng.normal(size=shape))
    without, inside = control_tables.precision_rows(series, "active")
    assert np.isnan(without["value"]) and without["others"] == 0
    assert inside["value"] == pytest.approx(1)


def test_group_effects_are_means_of_the_axes_effects_over_shared_experiments(rng):
    pc1 = make_series(rng, axis="pc1")
    pc8 = make_series(rng, axis="pc8", affected=("lr", "pc8"), scores=rng.normal(size=(10, 2, 2, 2, 2, 2)),
                      exps=range(2, 12))  # fmt: skip
    lr, away = make_series(rng), make_series(rng, layer=4)
    rows = {
        (row["group"], row["layer"]): row
        for row in control_tables.group_rows([lr, away, pc1, pc8], "inactive")
    }
    assert set(rows) == {("LR", PLANTED), ("LR", 4), ("early PCs", PLANTED)}

    def d(series, first=0):
        last = series.target[first:, -1, 1]
        return control_effect(last[:, :, 1], last[:, :, 0]).d

    early = rows["early PCs", PLANTED]
    assert early["value"] == pytest.approx((d(pc1, first=2) + d(pc8)) / 2)
    assert (early["axes"], early["experiments"], early["n"]) == (2, 10, 4)
    one = control_effect(lr.target[:, -1, 1, :, 1], lr.target[:, -1, 1, :, 0])
    found = rows["LR", PLANTED]
    assert found["value"] == pytest.approx(one.d)
    assert (found["low"], found["high"]) == (pytest.approx(one.d_low), pytest.approx(one.d_high))


def test_the_matrix_of_affected_axes_holds_d_of_each_pair(rng):
    lr, pc2 = make_series(rng), make_series(rng, axis="pc2", affected=("lr", "pc2"),
                                            scores=rng.normal(size=(EXPS, 2, 2, 2, 2, 2)))  # fmt: skip
    rows = control_tables.affected_effects([lr, pc2], "inactive")
    targets, affected, table = control_tables.matrix(rows)
    assert (targets, affected) == (["lr", "pc2"], ["lr", "meandiff", "pc1", "pc2"])
    expected = [[hand_d(lr, name, 1) for name in affected], [hand_d(pc2, "lr", 1), np.nan, np.nan,
                                                             hand_d(pc2, "pc2", 1)]]  # fmt: skip
    np.testing.assert_allclose(table, expected)


# ---------------------------------------------------------------- the change of the hidden state


def test_mean_difference_is_high_minus_low_at_the_largest_n_by_mode():
    trials = control_trials((0, 2), ("active", "inactive"))
    pooled = np.zeros((len(trials), 3), np.float32)
    for row, t in zip(pooled, trials, strict=True):
        row[0] = 100 * (t.n == 0) * t.want  # not the largest N
        row[1] = 10 * t.want + 4 * t.want * t.flip  # 10 unflipped, 14 flipped: mean 12
        row[2] = (5 if t.mode == "active" else -1) * t.want + 7 * t.flip  # what a flip alone adds cancels
    found = mean_difference(trials, pooled, ("active", "inactive"))
    np.testing.assert_allclose(found["active"], [0, 12, 5])
    np.testing.assert_allclose(found["inactive"], [0, 12, -1])


@pytest.mark.parametrize("levels", [2, 8])
def test_an_empty_reply_leaves_no_mean_difference_of_its_mode(levels):
    trials = control_trials((0, 2), ("active", "inactive"), levels)
    pooled = np.ones((len(trials), 3), np.float32)
    first = [i for i, t in enumerate(trials) if t.mode == "active" and t.n == 0][0]
    last = [i for i, t in enumerate(trials) if t.mode == "active" and t.n == 2][2]
    pooled[first] = np.nan  # not at the largest N
    np.testing.assert_array_equal(mean_difference(trials, pooled, ("active",))["active"], 0)
    pooled[last] = np.nan
    found = mean_difference(trials, pooled, ("active", "inactive"))
    assert np.isnan(found["active"]).all()
    np.testing.assert_array_equal(found["inactive"], 0)
