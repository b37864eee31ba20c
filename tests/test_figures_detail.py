"""Figures behind the control effect: the numbers drawn are the numbers given, and all can be read."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.stats import gaussian_kde

from analysis.figures import control_detail
from analysis.figures.style import GREY, HIGH, LOW, Curve, colour
from tests.test_figures_axes import AXES, NOTE, assert_headed, assert_texts_fit, lines

MODES = ("active", "inactive")
CASES = [(("lr",), MODES[:1], [15]), (AXES, MODES, range(32))]
"""Axes, modes and layers of a small and of a large figure."""


def curve(values, x=None) -> Curve:
    y = np.asarray(values, float)
    return Curve(np.arange(len(y), dtype=float) if x is None else np.asarray(x, float), y, y - 0.1, y + 0.2)


def bars(names, values):
    y = np.asarray(values, float)
    return names, y, y * 0.5, y * 2


def stems(collection) -> np.ndarray:
    """Return (T, 3): x, lower end and upper end of every known bar."""
    known = [path for path in collection.get_segments() if len(path)]
    return np.array([[path[0, 0], path[0, 1], path[1, 1]] for path in known])


# ---------------------------------------------------------------- densities


def test_densities_are_those_of_scipy_for_each_side():
    rng = np.random.default_rng(0)
    original, high, low = rng.normal(size=60), rng.normal(1, 1, 30), rng.normal(-1, 1, 20)
    fig = control_detail.plot_densities({"lr": original}, {"lr": {"active": (high, low)}}, "T", NOTE)
    ax = fig.axes[0]
    for values, label, hue in ((low, "low wanted", LOW), (high, "high wanted", HIGH)):
        line = next(line for line in ax.lines if line.get_label() == label)
        assert line.get_color() == hue
        np.testing.assert_allclose(line.get_ydata(), gaussian_kde(values)(line.get_xdata()))
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(
            1, abs=0.01
        )  # no tail is cut
    filled = ax.collections[0].get_paths()[0].vertices
    assert filled[:, 1].max() == pytest.approx(gaussian_kde(original)(ax.lines[0].get_xdata()).max())
    assert_headed(fig)


def test_missing_scores_are_left_out_and_every_n_is_stated():
    high, low = np.array([1.0, np.nan, 2.0, 3.0]), np.array([np.nan, -1.0, -3.0, np.nan])
    fig = control_detail.plot_densities({"lr": np.arange(7.0)}, {"lr": {"active": (high, low)}}, "T", NOTE)
    ax = fig.axes[0]
    stated = [(text.get_text(), text.get_color()) for text in ax.texts]
    assert stated == [("n = 7", GREY), ("n = 2", LOW), ("n = 3", HIGH)]
    assert [stems(ticks)[0, 0] for ticks in ax.collections[1:]] == [3.0, -2.0, 2.0]  # the means


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5], [np.nan], [0.5, 0.5 + 1e-7]])
def test_scores_that_do_not_differ_have_a_tick_and_no_curve(values):
    sample = np.array(values)
    fig = control_detail.plot_densities({"lr": sample}, {"lr": {"active": (sample, sample)}}, "T", NOTE)
    ax = fig.axes[0]
    assert all(np.isnan(heights).all() for heights in lines(ax).values())
    ticks = [stems(part)[0, 0] for part in ax.collections[1:]]
    assert ticks == pytest.approx([0.5] * 3 if np.isfinite(sample).any() else [])
    assert_texts_fit(fig)


def test_an_axis_without_a_mode_has_an_empty_panel_that_says_so():
    pair = (np.arange(4.0), np.arange(5.0))
    imitated = {"lr": {"active": pair}, "pc1": {"active": pair, "inactive": pair}}
    fig = control_detail.plot_densities({"lr": np.arange(9.0)}, imitated, "T", NOTE)
    stated = [[text.get_text() for text in ax.texts] for ax in fig.axes]
    assert stated[1] == ["n = 9", "n = 0", "n = 0"]  # lr, inactive
    assert stated[2] == ["n = 0", "n = 5", "n = 4"]  # pc1, active, no original sentences
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == [
        "active: the model writes", "inactive: the model reads",
    ]  # fmt: skip


@pytest.mark.parametrize(("axes", "modes", "layers"), CASES)
def test_texts_of_densities_fit(axes, modes, layers):
    scores = np.random.default_rng(0).normal(size=1200)
    imitated = {axis: dict.fromkeys(modes, (scores, scores - 1)) for axis in axes}
    fig = control_detail.plot_densities(dict.fromkeys(axes, scores), imitated, "T", NOTE)
    assert len(fig.axes) == len(axes) * len(modes)
    assert_texts_fit(fig)


# ---------------------------------------------------------------- accumulation


def test_wanted_high_and_low_are_two_lines_with_their_bands():
    high, low = curve([0.1, np.nan, 0.9], [0, 7, 15]), curve([0.0, -0.2, -0.7], [0, 7, 15])
    fig = control_detail.plot_accumulation({"lr": {"active": (high, low)}}, 7, "T", NOTE)
    ax = fig.axes[0]
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["high wanted"], high.y)  # NaN stays: a gap
    np.testing.assert_array_equal(drawn["low wanted"], low.y)
    bands = [part.get_paths()[0].vertices[:, 1] for part in ax.collections]
    assert (bands[0].min(), bands[0].max()) == pytest.approx((-0.8, 0.2))  # low: -0.7 - 0.1, 0.0 + 0.2
    target = next(line for line in ax.lines if line.get_label() == "layer 7, the target")
    assert set(target.get_xdata()) == {7}
    assert ax.get_ylabel() == "lr" and "layer 7" in fig.get_supylabel()
    assert_headed(fig)


def test_a_missing_mode_is_an_empty_panel_and_the_key_is_whole():
    one = curve([0.0, 1.0])
    panels = {"lr": {"inactive": (one, one)}, "pc1": {"active": (one, one), "inactive": (one, one)}}
    fig = control_detail.plot_accumulation(panels, 1, "T", NOTE)
    titles = [ax.get_title(loc="left")[:6] for ax in fig.axes[:2]]
    missing = fig.axes[2 + titles.index("active")]
    assert len(lines(missing)["high wanted"]) == 2
    assert len(lines(fig.axes[titles.index("active")])["high wanted"]) == 0
    key = [text.get_text() for text in fig.legends[0].get_texts()]
    assert key == ["low wanted", "high wanted", "layer 1, the target"]


@pytest.mark.parametrize(("axes", "modes", "layers"), CASES)
def test_texts_of_accumulation_fit(axes, modes, layers):
    high, low = curve(np.linspace(0, 2, len(layers)), layers), curve(np.linspace(0, -2, len(layers)), layers)
    panels = {axis: dict.fromkeys(modes, (high, low)) for axis in axes}
    assert_texts_fit(control_detail.plot_accumulation(panels, layers[-1], "T", NOTE))


# ---------------------------------------------------------------- precision


def test_precision_shows_both_variants_with_their_intervals_around_one():
    without, within = bars(("lr", "pc1"), [3.0, 1.5]), bars(("lr", "pc1"), [2.0, 1.2])
    variants = {"without target": without, "with target": within}
    fig = control_detail.plot_precision({"active": variants}, "T", NOTE)
    ax = fig.axes[0]
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["without target"], [3.0, 1.5])
    np.testing.assert_array_equal(drawn["with target"], [2.0, 1.2])
    np.testing.assert_array_equal(stems(ax.collections[0]), [[0, 1.5, 6], [1, 0.75, 3]])
    assert set(ax.lines[0].get_ydata()) == {1}
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(variants)
    assert_headed(fig)


@pytest.mark.parametrize(("largest", "scale"), [(9.9, "linear"), (10.1, "log")])
def test_the_scale_is_logarithmic_past_a_factor_ten(largest, scale):
    fig = control_detail.plot_precision({"active": {"a": bars(("lr", "pc1"), [1.0, largest])}}, "T", NOTE)
    assert fig.axes[0].get_yscale() == scale


def test_an_interval_down_to_zero_does_not_stretch_a_logarithmic_scale():
    names, value, low, high = bars(("lr", "pc1", "pc2"), [0.5, 20.0, 2.0])
    low[0], high[1] = 0.0, 1e9
    fig = control_detail.plot_precision({"active": {"a": (names, value, low, high)}}, "T", NOTE)
    bottom, top = fig.axes[0].get_ylim()
    assert 0.01 < bottom < 0.5 and 20 < top < 1000
    assert_texts_fit(fig)


def test_an_unknown_precision_is_named_and_not_drawn():
    values = bars(("lr", "pc1"), [np.nan, 2.0])
    fig = control_detail.plot_precision({"active": {"a": values, "b": values}}, "T", NOTE)
    ax = fig.axes[0]
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [("n/a", 0)]
    assert np.isnan(lines(ax)["a"][0])


# ---------------------------------------------------------------- groups and cosines


def test_groups_are_drawn_as_given_and_named_at_their_ends():
    groups = {"LR": curve([0.2, 0.9, np.nan], [0, 7, 15]), "early PCs": curve([0.1, 0.3, 0.4], [0, 7, 15])}
    fig = control_detail.plot_groups({"inactive": groups}, "T", NOTE)
    ax = fig.axes[0]
    for name, given in groups.items():
        np.testing.assert_array_equal(lines(ax)[name], given.y)
    np.testing.assert_allclose(stems(ax.collections[1]), [[0, 0, 0.3], [7, 0.2, 0.5], [15, 0.3, 0.6]])
    assert {text.get_text(): text.xy for text in ax.texts} == {"LR": (7, 0.9), "early PCs": (15, 0.4)}
    assert ax.get_title(loc="left") == "inactive: the model reads"
    assert_headed(fig)


def test_cosines_are_bars_from_zero_with_intervals():
    values = (("lr", "pc1", "pc2"), np.array([0.3, -0.1, np.nan]), np.array([0.2, -0.2, np.nan]),
              np.array([0.5, 0.1, np.nan]))  # fmt: skip
    fig = control_detail.plot_cosine_bars({"active": values}, "T", NOTE)
    ax = fig.axes[0]
    np.testing.assert_array_equal([bar.get_height() for bar in ax.patches], values[1])
    assert {bar.get_y() for bar in ax.patches} == {0}
    np.testing.assert_array_equal(stems(ax.collections[0]), [[0, 0.2, 0.5], [1, -0.2, 0.1]])
    assert [text.get_text() for text in ax.texts] == ["n/a"] and ax.texts[0].get_position()[0] == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == ["lr", "pc1", "pc2"]
    assert ax.patches[0].get_facecolor()[:3] == to_rgb(colour("lr"))
    assert_headed(fig)


@pytest.mark.parametrize(("axes", "modes", "layers"), CASES)
def test_texts_of_precision_groups_and_cosines_fit(axes, modes, layers):
    wide = bars(axes, np.geomspace(0.1, 30, len(axes)))
    variants = {"target left out of the mean": wide, "target in the mean": wide}
    assert_texts_fit(control_detail.plot_precision(dict.fromkeys(modes, variants), "T", NOTE))
    same = curve(np.full(len(layers), 0.4), layers)
    groups = dict.fromkeys(("LR", "early PCs", "late PCs"), same)
    assert_texts_fit(control_detail.plot_groups(dict.fromkeys(modes, groups), "T", NOTE))
    assert_texts_fit(control_detail.plot_cosine_bars(dict.fromkeys(modes, wide), "T", NOTE))


def test_nothing_known_at_all_still_gives_figures():
    unknown = bars(("lr",), [np.nan])
    empty = curve([np.nan], [15])
    for fig in (
        control_detail.plot_precision({"active": {"a": unknown}}, "T", NOTE),
        control_detail.plot_cosine_bars({"active": unknown}, "T", NOTE),
        control_detail.plot_groups({"active": {"LR": empty}}, "T", NOTE),
        control_detail.plot_accumulation({"lr": {"active": (empty, empty)}}, 15, "T", NOTE),
    ):
        assert_texts_fit(fig)
