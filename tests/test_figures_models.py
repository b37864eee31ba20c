"""Figures that compare models show exactly the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Affine2D, Bbox
from scipy.stats import linregress

from analysis.figures import models
from analysis.figures.models import plot_depth, plot_observers, plot_size, short_names
from analysis.figures.style import Curve, canvas
from analysis.statistics.power_law import power_fit

MODELS = (
    "smollm2", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-12b-it",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
)  # fmt: skip
AXES = ("lr", "pc1", "pc2", "pc8", "pc32", "meandiff", "random0", "lr_shuffled0")
MODES = ("active", "inactive")


def curve(y, x=None, reach=0.25):
    y = np.asarray(y, float)
    return Curve(np.linspace(0, 1, len(y)) if x is None else np.asarray(x, float), y, y - reach, y + reach)


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def bars(ax):
    """Return every interval drawn in the panel, as (x, low, high)."""
    return [
        (part[0, 0], *part[:, 1]) for group in ax.collections for part in group.get_segments() if len(part)
    ]


def words(fig):
    texts = [text for ax in fig.axes for text in ax.texts]
    texts += [text for ax in fig.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    return [text.get_text() for text in texts + [t for key in fig.legends for t in key.get_texts()]]


def keys(fig):
    return [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]


def assert_inside(fig):
    """Fail where a text, a key or anything else that is drawn reaches past the figure's edges."""
    FigureCanvasAgg(fig).draw()
    scale = 1 / fig.dpi
    found = [
        fig.get_tightbbox(),
        *(key.get_window_extent().transformed(Affine2D().scale(scale)) for key in keys(fig)),
    ]
    drawn = Bbox.union(found)
    width, height = fig.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.y0 > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02, (
        drawn
    )


def test_a_text_outside_the_figure_is_noticed():
    fig, axes = canvas(1, 1, 2, "T", "n")
    assert_inside(fig)
    axes[0, 0].text(1.2, 0.5, "too far", transform=axes[0, 0].transAxes).set_in_layout(True)
    fig.set_layout_engine("none")
    with pytest.raises(AssertionError):
        assert_inside(fig)


# ---------------------------------------------------------------- names and keys


def test_names_are_cut_at_the_last_slash_unless_two_would_be_equal():
    assert short_names(["a/x", "b/y/", "z"]) == {"a/x": "x", "b/y/": "y", "z": "z"}
    assert short_names(["a/x", "b/x", "c/y"]) == {"a/x": "a/x", "b/x": "b/x", "c/y": "y"}


def test_a_key_too_wide_for_one_row_takes_more_and_covers_no_panel():
    many = [f"org/a-model-with-a-long-name-{i}" for i in range(7)]
    fig = plot_depth({("lr", "active"): {model: curve([0.1, 0.2]) for model in many}}, "T", "n")
    assert_inside(fig)
    key = fig.legends[0].get_window_extent()
    assert len(fig.legends) == 1 and key.y0 > fig.axes[0].get_tightbbox().y1 - 1


# ---------------------------------------------------------------- depth


def test_depth_shows_the_given_numbers_in_the_panel_of_their_axis_and_mode():
    panels = {
        (axis, mode): {"org/a": curve([i, np.nan, i + 1]), "b": curve([10 * j, 0, 1])}
        for i, axis in enumerate(("lr", "pc1"))
        for j, mode in enumerate(MODES)
    }
    fig = plot_depth(panels, "Depth", "n = 9 experiments")
    for place, (ax, (i, j)) in enumerate(zip(fig.axes, np.ndindex(2, 2), strict=True)):
        drawn = lines(ax)
        np.testing.assert_array_equal(drawn["a"].get_xdata(), [0, 0.5, 1])
        np.testing.assert_array_equal(drawn["a"].get_ydata(), [i, np.nan, i + 1])
        np.testing.assert_array_equal(drawn["b"].get_ydata(), [10 * j, 0, 1])
        assert (0.0, i - 0.25, i + 0.25) in bars(ax) and (1.0, 0.75, 1.25) in bars(ax), place
    assert fig.get_suptitle().strip() == "Depth" and fig.get_supxlabel() == "n = 9 experiments"
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["lr", "pc1"]
    assert words(fig) == ["a", "b"]


def test_depth_of_one_model_at_one_layer_and_of_a_panel_without_data():
    fig = plot_depth(
        {("lr", "active"): {"m": curve([0.5])}, ("pc1", "inactive"): {"m": curve([1])}}, "T", "n"
    )
    assert [len(ax.lines) for ax in fig.axes] == [
        2,
        1,
        1,
        2,
    ]  # the zero line, and the model where it has data
    assert bars(fig.axes[0]) == [(0.0, 0.25, 0.75)]


def test_models_keep_their_colour_where_another_is_absent():
    both, one = {"a": curve([1]), "b": curve([1])}, {"b": curve([1])}
    fig = plot_depth({("lr", "active"): both, ("lr", "inactive"): one}, "T", "n")
    assert lines(fig.axes[0])["b"].get_color() == lines(fig.axes[1])["b"].get_color()


# ---------------------------------------------------------------- size


def test_a_planted_power_law_is_found():
    size = np.array([1e8, 1e9, 1e10, 1e11])
    fit = power_fit(size, 0.01 * size**0.25)
    assert (fit.exponent, fit.prefactor) == pytest.approx((0.25, 0.01))
    assert (fit.low, fit.high) == pytest.approx((0.25, 0.25)) and (fit.n, fit.left_out) == (4, 0)


def test_the_interval_is_that_of_students_t():
    size, effect = np.array([1.0, np.e, np.e**2]), np.exp([0.0, 1.0, 1.0])
    fit = power_fit(size, effect)  # slope 1/2; residuals -1/6, 1/3, -1/6; 1 degree of freedom
    error = linregress([0, 1, 2], [0, 1, 1]).stderr
    assert error == pytest.approx(np.sqrt(1 / 12))
    assert fit.exponent == pytest.approx(0.5)
    assert fit.high - fit.exponent == pytest.approx(12.7062 * error, rel=1e-5)  # t at 0.975, table value
    assert fit.exponent - fit.low == pytest.approx(fit.high - fit.exponent)


def test_the_interval_holds_the_true_exponent_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    size = np.array([1e8, 1e9, 3e9, 1e10, 7e10])
    fits = [power_fit(size, size**0.2 * np.exp(rng.normal(0, 0.3, 5))) for _ in range(600)]
    assert 0.92 < np.mean([fit.low < 0.2 < fit.high for fit in fits]) < 0.98


def test_effects_not_above_zero_are_left_out_and_counted_and_missing_ones_are_not():
    size = np.array([1.0, 10, 100, 1000, 1e4, 1e5])
    fit = power_fit(size, np.array([1.0, -3, 100, 0, np.nan, 1e5]))
    assert (fit.n, fit.left_out) == (3, 2) and fit.exponent == pytest.approx(1)


def test_no_line_for_two_points_or_for_one_size_and_sizes_are_checked():
    assert power_fit(np.array([1, 2, 3.0]), np.array([1, 1, 0.0])) is None
    assert power_fit(np.array([5, 5, 5.0]), np.array([1, 2, 3.0])) is None
    with pytest.raises(ValueError, match="must be > 0") as raised:
        power_fit(np.array([0, 2, 3.0]), np.array([1, 1, 1.0]))
    assert raised.type is ValueError


def test_size_draws_what_is_above_zero_the_line_and_the_counts():
    size = [1e8, 1e9, 1e10, 1e11, 1e12]
    panels = {
        "active": {"lr": curve([1, 2, 4, 8, 16], size, 0.5), "pc1": curve([1, -1, 0, np.nan, 2], size, 0.5)},
        "inactive": {"lr": curve([-1, -1, -1, -1, -1], size), "pc1": curve([np.nan] * 5, size)},
    }
    fig = plot_size(panels, "Size", "n = 9")
    left, right = fig.axes[:2]
    drawn = lines(left)
    np.testing.assert_array_equal(drawn["lr"].get_ydata(), [1, 2, 4, 8, 16])
    np.testing.assert_array_equal(drawn["pc1"].get_ydata(), [1, np.nan, np.nan, np.nan, 2])
    assert [bar for bar in bars(left) if bar[0] == 1e12] == [(1e12, 15.5, 16.5), (1e12, 1.5, 2.5)]
    fitted = [line for line in left.lines if len(line.get_xdata()) == 2]
    assert len(fitted) == 1
    np.testing.assert_allclose(fitted[0].get_ydata(), [1, 16])
    assert left.get_xscale() == left.get_yscale() == right.get_yscale() == "log"
    assert left.get_ylim()[0] < 1 and left.get_ylim()[1] > 16.5
    assert words(fig) == [
        "no effect > 0",
        "lr: 0.30 [0.30, 0.30], n = 5",
        "pc1: no line, n = 2\n2 of 4 not > 0, not drawn; 1 missing",
        "lr: no line, n = 0\n5 of 5 not > 0, not drawn",
        "pc1: no line, n = 0\n5 missing",
    ]
    assert fig.get_suptitle() == "Size" and fig.get_supxlabel() == "n = 9"


def test_size_of_one_model_has_a_scale():
    fig = plot_size({"active": {"lr": curve([0.4], [135e6], 0.3)}}, "T", "n")
    low, high = fig.axes[0].get_xlim()
    assert low < 135e6 < high and words(fig) == ["lr: no line, n = 1"]
    assert [models._parameters(n) for n in (1e8, 5e8, 7e9, 1e12, 20)] == [
        "100M",
        "500M",
        "7B",
        "1T",
        "20",
    ]


# ---------------------------------------------------------------- observers


def dots(names, value):
    value = np.asarray(value, float)
    return list(names), value, value - 0.1, value + 0.05


def test_observers_show_every_source_on_the_row_of_its_axis():
    panels = {
        "org/m, layer 3": {
            "model": dots(["lr", "pc1"], [0.6, 0.7]),
            "majority": dots(["pc1", "lr"], [0.5, np.nan]),
        },
        "org/m, layer 4": {"model": dots(["pc2"], [0.9])},
    }
    fig = plot_observers(panels, "Observers", "n = 9")
    left, right = (lines(ax) for ax in fig.axes)
    np.testing.assert_array_equal(left["model"].get_xdata(), [0.6, 0.7])
    np.testing.assert_array_equal(np.round(left["model"].get_ydata()), [0, 1])
    np.testing.assert_array_equal(left["majority"].get_xdata(), [0.5, np.nan])
    np.testing.assert_array_equal(np.round(left["majority"].get_ydata()), [1, 0])
    np.testing.assert_array_equal(np.round(right["model"].get_ydata()), [2])
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["lr", "pc1", "pc2"]
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["m, layer 3", "m, layer 4"]
    parts = [part for group in fig.axes[0].collections[1:] for part in group.get_segments() if len(part)]
    spans = np.array([part[:, 0] for part in parts])  # the first collection is the lines between rows
    np.testing.assert_allclose(spans, [(0.5, 0.65), (0.6, 0.75), (0.4, 0.55)])
    assert words(fig) == ["chance", "model", "majority"]
    assert fig.get_suptitle().strip() == "Observers" and fig.get_supxlabel() == "n = 9"


def test_sources_of_one_axis_do_not_cover_each_other():
    fig = plot_observers({"m": {f"s{i}": dots(["lr"], [0.7]) for i in range(5)}}, "T", "n")
    heights = sorted(line.get_ydata()[0] for name, line in lines(fig.axes[0]).items() if name != "chance")
    assert min(np.diff(heights)) > 0.15 and -0.5 < heights[0] and heights[-1] < 0.5


# ---------------------------------------------------------------- large figures


def large_size(rng):
    size = np.array([1.35e8, 8e9, 7e9, 1.2e10, 7e10])
    effects = {axis: rng.normal(0.4, 0.5, 5) for axis in AXES}
    effects["pc2"][1] = np.nan
    return plot_size({mode: {a: curve(y, size) for a, y in effects.items()} for mode in MODES}, "T", "n")


def large_depth(rng):
    panels = {(a, m): {model: curve(rng.normal(size=30)) for model in MODELS} for a in AXES for m in MODES}
    return plot_depth(panels, "T", "n")


def large_observers(rng):
    sources = ("model", "ideal observer", "input only", "bag of words", "majority")
    panels = {
        f"{model}, layer 20": {source: dots(AXES, rng.uniform(0.5, 1, 8)) for source in sources}
        for model in MODELS
    }
    return plot_observers(panels, "T", "n")


@pytest.mark.parametrize("draw", [large_depth, large_size, large_observers])
def test_no_text_leaves_a_large_figure(draw):
    fig = draw(np.random.default_rng(0))
    assert_inside(fig)
    panels = [ax.get_window_extent() for ax in fig.axes if ax.axison and ax.get_visible()]
    for key in keys(fig):
        assert not any(key.get_window_extent().overlaps(panel) for panel in panels)
