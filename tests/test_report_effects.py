"""Report measures: by hand, against scipy and scikit-learn, and from results with a planted skill."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, log_loss

from analysis.results import store as results
from analysis.results.schema import ReportUnit
from analysis.results.store import UnitKey
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from analysis.tables.read import ReportData
from analysis.tables.series import ReportSeries
from analysis.tables.series import report_series as series_of
from tests import fake_results


def report_series(true, labels, **observers):
    """One experiment of two levels: logits (F, P) of the true label over the other, labels (1, P)."""
    sign = np.where(labels[0] == 1, 1, -1)
    logits = np.stack([-true * sign / 2, true * sign / 2], axis=-1)[None]
    exps, scores = np.array([0]), labels - 0.5
    return ReportSeries("lr", 0, 2, exps, logits, labels, scores, observers)


def test_report_measures_agree_with_counting_by_hand(tmp_path):
    true = np.array([[2.0, -1.0, 0.0, 3.0], [1.0, 1.0, -2.0, np.nan]], np.float32)  # flips x positions
    labels = np.array([[1.0, 0.0, 1.0, 1.0]])
    series = report_series(true, labels)
    np.testing.assert_allclose(series.logit_true[0], true)
    right, nats = report_tables.predictions(series)
    np.testing.assert_allclose(right, [[1.0, 0.5, 0.25, 1.0]])
    assert nats[0, 0] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    np.testing.assert_allclose(report_tables.majority(series), [[0.5, 0.0, 0.5, 1.0]])


def test_flipped_logits_count_for_the_label_that_was_shown(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=1)
    key = UnitKey("pred", "lr", 15, 0)
    unit = results.read(store.unit(key))
    series = tables_read.load_report(store).series[0]
    sure = np.abs(np.diff(unit["logits"][1])[:, 0]) > 0
    says_one = np.diff(unit["logits"][1])[:, 0] < 0  # flipped: "0" stands for label 1
    np.testing.assert_array_equal((series.logit_true[0, 1] > 0)[sure], (says_one == unit["labels"])[sure])


def test_position_bins_cover_every_position_once():
    for n in (1, 2, 3, 64, 600):
        positions = [i for a, b in report_tables.position_bins(n) for i in range(a, b)]
        assert positions == list(range(n))
    assert report_tables.position_bins(12) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 6),
        (6, 8),
        (8, 11),
        (11, 12),
    ]


# ---------------------------------------------------------------- levels

E, P, A = 3, 12, 6


def level_series(rng, exps=range(E), levels=A, n=P, **observers):
    """Random logits and levels; the scores rise with the levels."""
    exps = np.array(exps)
    labels = rng.integers(0, levels, (len(exps), n)).astype(np.float32)
    scores = labels + rng.uniform(-0.4, 0.4, labels.shape)
    logits = 2 * rng.normal(size=(len(exps), 2, n, levels)).astype(np.float32)
    return ReportSeries("lr", 0, levels, exps, logits, labels, scores, observers)


def over_experiments(values):
    """Return (Q,) means over experiments of (E, P) values in the bins of P positions."""
    bins = report_tables.position_bins(values.shape[1])
    return [np.mean([values[e, a:b].mean() for e in range(len(values))]) for a, b in bins]


def test_levels_are_judged_as_counting_and_scikit_learn_do(rng):
    series = level_series(rng)
    curves = report_tables.level_curves(series)
    exact, nats = np.zeros((E, P)), np.zeros((E, P))
    for e, f, i in np.ndindex(E, 2, P):
        logits, level = series.logits[e, f, i], series.labels[e, i]
        exact[e, i] += (np.argmax(logits) == level) / 2
        nats[e, i] += log_loss([level], [softmax(logits.astype(float))], labels=range(A)) / 2
    np.testing.assert_allclose(curves["exact"][0], over_experiments(exact))
    np.testing.assert_allclose(curves["cross_entropy"][0], over_experiments(nats), rtol=1e-6)
    np.testing.assert_allclose(curves["shown"], [0, 1, 2, 3, 4.5, 6.5, 9, 11])


def test_rank_correlations_equal_scipy_in_ranges_of_eight_and_are_unknown_in_shorter_ones(rng):
    series = level_series(rng, n=45)
    bins = report_tables.position_bins(45)
    found = report_tables.level_curves(series)["correlation"]
    expected = (softmax(series.logits.astype(float), axis=-1) * np.arange(A)).sum(axis=-1)
    for (a, b), value, low in zip(bins, found[0], found[1], strict=True):
        if b - a < 8:
            assert np.isnan(value) and np.isnan(low)
            continue
        parts = [spearmanr(expected[e, f, a:b], series.scores[e, a:b]).statistic
                 for e in range(E) for f in range(2)]  # fmt: skip
        assert value == pytest.approx(np.mean(parts)) and low <= value
    assert np.isfinite(found[0]).sum() == sum(b - a >= 8 for a, b in bins) > 0


def test_exact_measures_of_two_levels_are_those_of_the_sides(rng):
    series = level_series(rng, levels=2)
    levels, sides = report_tables.level_curves(series), report_tables.report_curves(series)
    np.testing.assert_allclose(levels["exact"], sides["accuracy"])
    np.testing.assert_allclose(levels["cross_entropy"], sides["cross_entropy"], rtol=1e-6)


def test_a_side_is_as_likely_as_its_digits_together(rng):
    series = level_series(rng)
    right, nats = report_tables.predictions(series)
    upper = softmax(series.logits.astype(float), axis=-1)[..., A // 2 :].sum(axis=-1)
    chance = np.where((series.labels >= A / 2)[:, None], upper, 1 - upper)
    np.testing.assert_allclose(right, (chance > 0.5).mean(axis=1))
    np.testing.assert_allclose(nats, -np.log(chance).mean(axis=1), rtol=1e-6)


def unit(labels, **more):
    """Return a report unit of these labels."""
    n, flip = len(labels), np.array([False, True])
    plain = {
        "meta": {},
        "rows": np.arange(n),
        "scores": np.zeros(n),
        "flip": flip,
        "tokens": {},
        "seconds": 1.0,
    }
    return ReportUnit.of({"meta": {}, **plain, "labels": labels, **more})


def test_an_observer_that_a_unit_lacks_is_missing_there(rng):
    both, one = np.full(3, 0.9), np.full(3, 0.8)
    given = [{"own": both, "words": both}, {"own": one}]
    units = [unit(np.ones(3, int), observers=seen, logits=rng.normal(size=(2, 3, 2))) for seen in given]
    series = series_of([UnitKey("pred", "lr", 0, e) for e in (0, 1)], units)
    np.testing.assert_allclose(series.observers["own"], [both, one])
    assert np.isnan(series.observers["words"][1]).all() and np.isfinite(series.observers["words"][0]).all()
    assert np.isfinite(report_tables.report_table(ReportData((series,), {}))[0]["accuracy_words"])


def test_flipped_logits_are_mirrored_back_to_true_levels():
    plain = np.arange(12.0).reshape(3, 4)  # 3 positions, 4 levels
    flip, logits = np.array([True, False]), np.stack([plain[:, ::-1], plain])
    record = unit(labels=np.array([0, 3, 1]), observers={}, flip=flip, logits=logits)
    series = series_of([UnitKey("pred", "lr", 0, 7, 4)], [record])
    np.testing.assert_array_equal(series.logits[0], [plain, plain])
    assert series.exps.tolist() == [7] and series.sides.tolist() == [[0, 1, 0]]


def test_positions_past_the_end_of_a_shorter_sequence_are_missing(rng):
    units = [
        unit(labels=np.ones(n, int), observers={"own": np.full(n, 0.9)}, logits=rng.normal(size=(2, n, 2)))
        for n in (4, 6)
    ]
    series = series_of([UnitKey("pred", "lr", 0, e) for e in (0, 1)], units)
    right, nats = report_tables.predictions(series)
    for values in (right, nats, *report_tables.observed(series, "own"), report_tables.majority(series)):
        assert np.isnan(values[0, 4:]).all() and np.isfinite(values[1]).all()
    assert np.isfinite(report_tables.level_curves(series)["exact"][0]).all()


def test_confusion_is_the_mean_chance_of_each_digit_per_level_of_the_later_half(rng):
    series = level_series(rng, n=60)
    chances = softmax(series.logits.astype(float), axis=-1)
    expected = np.zeros((A, A))
    for level in range(A):
        parts = []
        for e in range(E):
            rows = [chances[e, f, i] for f in range(2) for i in range(30, 60) if series.labels[e, i] == level]
            parts += [np.mean(rows, axis=0)] if rows else []
        expected[level] = np.mean(parts, axis=0)
    found = report_tables.confusion(series)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)


# ---------------------------------------------------------------- observers


def test_observers_are_judged_by_the_side_that_they_find_likelier():
    chance, labels = np.array([[0.9, 0.9, 0.5, 0.2]]), np.array([[1.0, 0.0, 1.0, 0.0]])
    series = report_series(np.zeros((2, 4)), labels, own=chance)
    right, nats = report_tables.observed(series, "own")
    np.testing.assert_allclose(right, [[1, 0, 0.5, 1]])
    np.testing.assert_allclose(nats, -np.log([[0.9, 0.1, 0.5, 0.8]]))


@pytest.mark.parametrize("levels", [2, 6])
def test_the_table_agrees_with_scikit_learn(levels, rng):
    observers = {name: rng.random((E, 40)) for name in ("own", "embedding", "words")}
    series = level_series(rng, n=40, levels=levels, **observers)
    (row,) = report_tables.report_table(tables_read.ReportData((series,), {}))
    upper = softmax(series.logits.astype(float), axis=-1)[..., levels // 2 :].sum(axis=-1)
    sides = series.sides[:, 20:].astype(int)
    says = (upper > 0.5).astype(int)[..., 20:]
    assert (row["n_from"], row["n_to"], row["experiments"], row["predictions"]) == (20, 39, E, E * 2 * 20)
    assert row["accuracy"] == pytest.approx((says == sides[:, None]).mean())
    both = np.broadcast_to(sides[:, None], says.shape)
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(both.ravel(), says.ravel()))
    assert row["gain"] == pytest.approx(row["accuracy"] - row["majority"])
    for name, chance in observers.items():
        said = (chance[:, 20:] > 0.5).astype(int)
        assert row[f"accuracy_{name}"] == pytest.approx((said == sides).mean())
        kappas = [cohen_kappa_score(says[e, f], said[e]) for e in range(E) for f in range(2)]
        assert row[f"kappa_{name}"] == pytest.approx(np.mean(kappas))


# ---------------------------------------------------------------- layers, planted skill


def test_a_mean_over_layers_averages_within_each_shared_experiment_first(rng):
    one, two = level_series(rng, exps=(0, 1, 2)), level_series(rng, exps=(1, 2, 5), n=8)
    found = report_tables.mean_over_layers([one, two])
    right = [report_tables.predictions(series)[0] for series in (one, two)]
    expected = (right[0][1:, :8] + right[1][:2]) / 2  # experiments 1 and 2, the positions of both
    np.testing.assert_allclose(found["accuracy"][0], over_experiments(expected))
    np.testing.assert_allclose(found["shown"], [0, 1, 2, 3, 4.5, 6.5])
    alone, plain = report_tables.mean_over_layers([one]), report_tables.report_curves(one)
    np.testing.assert_allclose(alone["cross_entropy"], plain["cross_entropy"])
    opposite = ReportSeries("lr", 1, A, one.exps, one.logits[..., ::-1], one.labels, one.scores, {})
    cancelled = report_tables.mean_over_layers([one, opposite])["accuracy"]
    np.testing.assert_allclose(cancelled, 0.5)  # right here, wrong there: no width is left


def planted_accuracy(skill, n, levels):
    """Return the true accuracy over the later half of fake_results.report_unit's sequences, by simulation."""
    rng = np.random.default_rng(99)
    units = [fake_results.report_unit(rng, n, skill, levels) for _ in range(400)]
    right = [
        (np.diff(np.logaddexp.reduce(logits.reshape(n, 2, -1), axis=2))[:, 0] > 0)
        == (u["labels"] >= levels / 2)
        for u in units
        for logits in (u["logits"][0], u["logits"][1][:, ::-1])
    ]
    return np.mean(right, axis=0)[n // 2 :].mean()


@pytest.mark.parametrize("levels", [2, 8])
def test_a_planted_skill_lies_inside_its_interval(tmp_path, levels):
    store = fake_results.write_study(
        tmp_path, axes=("lr", "pc1", "pc2", "pc4"), n_layers=16, n_exp=12, levels=(levels,), shots=(0, 2)
    )
    rows = report_tables.report_table(tables_read.load_report(store))
    truth = planted_accuracy(1.0, 64, levels)
    assert [row["accuracy_low"] <= truth <= row["accuracy_high"] for row in rows].count(True) >= 3
    for row in rows:
        assert row["levels"] == levels and row["p"] < 0.01 and row["gain_low"] > 0
        assert row["accuracy"] < row["accuracy_own"] and row["q"] >= row["p"]
        for name in ("own", "embedding", "words"):
            assert {f"accuracy_{name}", f"accuracy_{name}_low", f"accuracy_{name}_high"} <= set(row)
            assert 0 < row[f"kappa_{name}"] < 1
