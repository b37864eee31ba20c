"""Tables and figures from synthetic results whose true effect is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

import plot_imit
import plot_pred
from analysis.base.errors import UserError
from analysis.figures import control as figures_control
from analysis.figures import report, style
from analysis.figures.style import Curve
from analysis.pages.axes import axes_figures, load_axes
from analysis.pages.control import ControlView
from analysis.results import commands
from analysis.results import store as results
from analysis.results.store import UnitKey
from analysis.results.verify import check
from analysis.tables import control as control_tables
from analysis.tables import findings
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from configs.settings import FORMATS
from tests import fake_results


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """40 experiments with Cohen's d = 1 at N = 32 for the active mode, 0 at N = 0."""
    return fake_results.write_study(
        tmp_path_factory.mktemp("study"), axes=("lr", "pc1"), layers=(1, 10), n_layers=12, n_exp=40,
        shots=(0, 32), seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def control(study):
    return tables_read.load_control(study)


@pytest.fixture(scope="module")
def rows(control):
    return control_tables.control_table(control)


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def curve(values, x=None):
    y = np.asarray(values, float)
    return Curve(np.arange(len(y), dtype=float) if x is None else np.asarray(x, float), y, y - 0.1, y + 0.1)


# ---------------------------------------------------------------- tables


def test_a_planted_effect_is_recovered_inside_its_interval(rows):
    for row in pick(rows, mode="active", n=32):
        assert row["d_low"] < 1.0 < row["d_high"] and row["d_low"] > 0 and row["q"] < 0.05
    for row in pick(rows, mode="active", n=0, axis="lr"):
        assert row["d_low"] < 0.0 < row["d_high"]
    assert {(row["experiments"], row["trials"], row["recorded"]) for row in rows} == {(40, 160, 160)}


def test_q_is_benjamini_hochberg_over_all_rows(rows):
    p, q = (np.array([row[name] for row in rows]) for name in "pq")
    smallest = np.argmin(p)
    assert q[smallest] <= p[smallest] * len(p) + 1e-12 and (q >= p).all()
    assert q[np.argmax(p)] == pytest.approx(p.max())


def test_layer_1_is_not_layer_10(study):
    assert {s.layer for s in tables_read.load_control(study, layers=[1]).series} == {1}
    assert {s.layer for s in tables_read.load_report(study, layers=[10]).series} == {10}


def test_scores_stand_in_the_cell_of_their_trial(study, control):
    unit = results.read(study.unit(UnitKey("imit", "pc1", 10, 7)))
    series = next(s for s in control.series if (s.axis, s.layer) == ("pc1", 10))
    for t in range(len(unit["n"])):
        s, m = list(series.shots).index(unit["n"][t]), series.modes.index(unit["mode"][t])
        cell = (7, s, m, int(unit["flip"][t]), int(unit["want"][t]))
        assert series.target[cell] == unit["scores"][t, unit["affected"].index("pc1")]
        assert series.text[cell] == unit["text"][t]
        for name, values in series.measured.items():
            there = np.float32(unit[name][t]) if name in unit else np.nan
            np.testing.assert_equal(values[cell], there)
    assert set(series.measured) >= {"copy_rate", "cut", "empty"}
    alone = series.only(["inactive"])
    assert alone.modes == ("inactive",) and np.isnan(alone.measured["copy_rate"]).all()


def test_a_missing_run_lowers_n_and_is_never_zero(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=4, shots=(0, 4))
    store.unit(UnitKey("imit", "lr", 15, 2)).unlink()
    series = tables_read.load_control(store).series[0]
    assert list(series.exps) == [0, 1, 3] and np.isfinite(series.target).all()
    assert {row["experiments"] for row in control_tables.control_table(tables_read.load_control(store))} == {
        3
    }


def test_a_shorter_run_leaves_nan_and_counts_as_missing(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=20, n_exp=3, shots=(0, 4))
    path = store.unit(UnitKey("imit", "lr", 15, 1))
    unit = results.read(path)
    kept = unit["n"] == 0
    short = {k: v[kept] if isinstance(v, np.ndarray) and len(v) == len(kept) else v for k, v in unit.items()}
    for name in ("mode", "text", "test_sentence"):
        short[name] = [value for value, keep in zip(unit[name], kept, strict=True) if keep]
    short.pop("meta")
    results.write(path, short, unit["meta"]["identity"])
    last = pick(control_tables.control_table(tables_read.load_control(store)), n=4)
    assert {(row["experiments"], row["missing"]) for row in last} == {(2, 4)}


def test_columns_that_an_older_unit_lacks_are_missing_and_every_figure_is_drawn(tmp_path):
    store = fake_results.write_study(tmp_path, layers=(0, 1), n_layers=2, n_exp=3, shots=(0, 4), report_n=8)
    lacking = ("by_layer", "projection", "copy_rate", "cut", "empty")
    for kind, names in (("imit", lacking), ("pred", ())):
        path = store.unit(UnitKey(kind, "lr", 1, 1))
        older = {name: value for name, value in results.read(path).items() if name not in names}
        if kind == "pred":
            older["observers"] = {"own": older["observers"]["own"]}
        results.write(path, older, **older.pop("meta"))
    series = tables_read.load_control(store, ["lr"], [1]).series[0]
    assert np.isfinite(series.target).all()
    arrays = [getattr(series, name) for name in lacking[:2]] + [series.measured[name] for name in lacking[3:]]
    for values in arrays:
        assert np.isnan(values[1]).all() and np.isfinite(values[[0, 2]]).all()
    row = pick(control_tables.control_table(tables_read.load_control(store)), axis="lr", layer=1, n=4)[0]
    assert (row["experiments"], row["recorded"], row["missing"]) == (3, 8, 4)
    argv = ["--results", str(tmp_path), "--log_level", "error", "--all"]
    assert plot_imit.main(argv) == 0 and plot_pred.main(argv) == 0
    assert check(store.folder).corrupt == {}


def test_empty_replies_are_counted_and_drop_their_pair(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=5, shots=(0, 4), empty=0.3)
    data = tables_read.load_control(store)
    for row in pick(control_tables.control_table(data), mode="active"):
        assert 0 < row["empty"] < 20 and row["trials"] <= 20 - row["empty"] and row["recorded"] == 20


def test_one_experiment_gives_an_estimate_without_interval(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=2, layers=(1,), n_exp=1, shots=(4,))
    row = control_tables.control_table(tables_read.load_control(store))[0]
    assert math.isfinite(row["d"]) and math.isnan(row["d_low"]) and math.isnan(row["q"])
    assert "no conclusion" in findings.control_sentence(row, 1)
    report = report_tables.report_table(tables_read.load_report(store))[0]
    assert math.isfinite(report["accuracy"]) and math.isnan(report["gain_low"])


def test_runs_of_differing_settings_are_refused_by_the_field_that_differs(tmp_path):
    fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=2)
    store = fake_results.write_study(
        tmp_path, axes=("pc1",), n_layers=16, n_exp=1, settings={"temperature": 1.0}
    )
    with pytest.raises(UserError, match=r"temperature is 0\.7 in imit_lr_layer15_exp0\.pkl and 1\.0"):
        tables_read.load_control(store)
    assert len(tables_read.load_control(store, axes=["lr"]).series) == 1


def test_of_512_components_those_in_the_figures_are_kept(tmp_path):
    extra = ("lr", "random0", *(f"pc{k}" for k in range(1, 41)))
    store = fake_results.write_study(
        tmp_path, axes=("pc5",), layers=(1,), n_layers=2, n_exp=2, shots=(0, 4), extra=extra
    )
    series = tables_read.load_control(store).series[0]
    assert series.affected == ("lr", "pc1", "pc2", "pc4", "pc5", "pc8", "pc32", "random0")
    unit = results.read(store.unit(UnitKey("imit", "pc5", 1, 0)))
    t = next(i for i in range(16) if (unit["n"][i], unit["flip"][i], unit["want"][i]) == (4, True, 1))
    kept = [unit["scores"][t, unit["affected"].index(name)] for name in series.affected]
    np.testing.assert_array_equal(series.scores[0, 1, series.modes.index(unit["mode"][t]), 1, 1], kept)


def test_missing_runs_name_the_exact_command(tmp_path, study):
    store = results.Store(tmp_path, "smollm2", "commonsense")
    with pytest.raises(
        UserError, match=f"python main_prep.py --model smollm2 --dataset commonsense --results {tmp_path}`"
    ):
        tables_read.load_control(store)
    fake_results.write_axes(store, ["lr"], 2, np.random.default_rng(0))
    with pytest.raises(UserError, match="main_imitexp.py .*--clf lr --layer middle --imit_exp_end -1"):
        tables_read.load_control(store)
    with pytest.raises(UserError, match="main_predexp.py .*--pc 8 --layer 1 --pred_exp_end -1"):
        tables_read.load_report(study, axes=["pc8"], layers=[1])
    default = results.Store(type(tmp_path)("results"), "smollm2", "commonsense")
    line = "python main_imitexp.py --model smollm2 --dataset commonsense --pc 1 --layer 15 --imit_exp_end -1"
    assert commands.command(default, "imit", "pc1", 15) == line
    crossed = results.Store(type(tmp_path)("results"), "big_from_small", "emotion")
    assert "--config_s small --config_e big --dataset emotion" in commands.command(crossed, "pred")


# ---------------------------------------------------------------- figures


def test_control_lines_hold_the_given_numbers():
    shots, effect = [0, 2, 4], [0.0, 0.5, 1.0]
    fig = figures_control.plot_control(
        {"active": {"lr": curve(effect, shots), "pc1": curve([0, 0, 0], shots)}}, "T", "n = 7 experiments"
    )
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    np.testing.assert_array_equal(lines["lr"].get_xdata(), shots)
    np.testing.assert_array_equal(lines["lr"].get_ydata(), effect)
    assert fig.get_suptitle() == "T" and fig.get_supxlabel() == "n = 7 experiments"
    assert fig.axes[0].get_title(loc="left") == "active: the model writes"
    assert {text.get_text() for text in fig.axes[0].texts} == {"lr", "pc1"}


def test_the_heatmap_prints_values_is_symmetric_about_zero_and_outlines_the_target():
    fig = figures_control.plot_heatmap(
        {"active": np.array([[0.5, -1.25, np.nan]])}, ["pc1"], ["lr", "pc1", "pc2"], "T", "n"
    )
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.50", "-1.25", "n/a"]
    assert ax.images[0].norm.vmin == -1.25 and ax.images[0].norm.vmax == 1.25
    assert [patch.get_xy() for patch in ax.patches] == [(0.5, -0.5)]


def test_histograms_draw_both_sides_and_the_original_sentences():
    rng = np.random.default_rng(0)
    pair = (rng.normal(1, 1, 30), rng.normal(-1, 1, 30))
    fig = figures_control.plot_score_histograms(
        {"lr": {("active", 0): pair, ("active", 8): pair}}, {"lr": rng.normal(size=60)}, "T", "n"
    )
    labels = fig.axes[0].get_legend_handles_labels()[1]
    assert labels == ["original sentences", "low wanted", "high wanted"]
    assert [line.get_xdata()[0] for line in fig.axes[0].lines] == [pair[1].mean(), pair[0].mean()]


def test_report_panels_show_curves_chance_and_baselines():
    fig = report.plot_report(
        {"lr": curve([0.5, 0.8])}, {"lr": curve([0.7, 0.4])},
        {"majority": curve([0.5, 0.6]), "activations": curve([0.5, 0.9])}, {"activations": curve([0.7, 0.2])},
        "T", "n",
    )  # fmt: skip
    accuracy, entropy = ({line.get_label(): line.get_ydata() for line in ax.lines} for ax in fig.axes)
    np.testing.assert_array_equal(accuracy["lr"], [0.5, 0.8])
    np.testing.assert_array_equal(accuracy["majority"], [0.5, 0.6])
    np.testing.assert_array_equal(accuracy["activations"], [0.5, 0.9])
    np.testing.assert_array_equal(entropy["activations"], [0.7, 0.2])
    assert set(accuracy["chance"]) == {0.5} and set(entropy["chance"]) == {math.log(2)}


def test_the_overview_counts_held_out_sentences(study):
    data = load_axes(study)
    assert data.layers == list(range(12)) and data.n_trial == 60
    view = ControlView(study, tables_read.load_control(study), [])
    fig = next(drawn.figure for drawn in axes_figures(view) if drawn.name == "axes_overview")
    assert "n = 60 held-out sentences" in fig.get_supxlabel()
    line = next(line for line in fig.axes[0].lines if line.get_label() == "lr")
    np.testing.assert_allclose(line.get_ydata(), data.accuracy["lr"])


def test_names_at_the_lines_keep_their_distance_and_stay_in_the_panel():
    fig, axes = style.canvas(1, 1, 2, "T", "n")
    axes[0, 0].set_ylim(0, 1)
    style.direct_labels(axes[0, 0], [(1.0, 0.99 + i / 1000, f"a{i}", "k") for i in range(5)], gap=0.1)
    heights = sorted(text.get_position()[1] for text in axes[0, 0].texts)
    assert min(np.diff(heights)) >= 0.1 - 1e-9 and heights[-1] <= 1


def test_eight_axes_have_eight_colours_and_markers():
    names = ["lr", "pc1", "pc2", "pc4", "meandiff", "random0", "lr_shuffled0", "pc16"]
    assert len({style.colour(name, names) for name in names}) == 8
    assert len({style.marker(name, names) for name in names}) == 8


@pytest.mark.parametrize("form", FORMATS)
def test_equal_figures_give_equal_files_and_settings_stay(form):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    files = [
        style.figure_bytes(figures_control.plot_control({"active": {"lr": curve([0, 1])}}, "T", "n"), form)
        for _ in range(2)
    ]
    assert files[0] == files[1] and dict(mpl.rcParams) == before
