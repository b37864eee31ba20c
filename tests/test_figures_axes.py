"""Figures of the axes among the principal components: the numbers drawn are the numbers given."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.figures import axes as figures_axes

NOTE = "600 fitting sentences; 95 % interval"
AXES = ("lr", "meandiff", "random0", "lr_shuffled0", "lr_ensemble", "random12", "pc512", "lr_shuffled12")


def drawn_texts(fig: Figure) -> list[Text]:
    """Return all texts that can be seen, without those of ticks outside a panel's limits."""
    axes = [ax for ax in fig.axes if ax.get_visible()]
    hidden = {text for ax in fig.axes if not ax.get_visible() for text in ax.findobj(Text)}
    for axis in (axis for ax in axes for axis in (ax.xaxis, ax.yaxis)):
        hidden |= _unseen_tick_labels(axis)
    found = fig.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if text.get_text().strip() and text not in hidden]


def _unseen_tick_labels(axis: Axis) -> set[Text]:
    start, end = sorted(axis.get_view_interval())
    slack = 1e-6 * (end - start)
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    unseen = {tick for tick in ticks if not start - slack <= tick.get_loc() <= end + slack}
    return {label for tick in unseen for label in (tick.label1, tick.label2)}


def assert_texts_fit(fig: Figure) -> None:
    """Fail if a text leaves the figure or touches another one; slanted names may share a corner."""
    assert fig.get_figwidth() == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "constrained_layout not applied"
        fig.draw_without_rendering()
    boxes = [(text, Text.get_window_extent(text)) for text in drawn_texts(fig)]  # without arrows
    frame = fig.bbox
    for text, box in boxes:
        inside = box.x0 >= frame.x0 and box.y0 >= frame.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        assert inside, f"{text.get_text()!r} is cut"
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        slanted = one.get_rotation() % 90 and two.get_rotation() % 90
        assert slanted or across < 0.5 or down < 0.5, f"{one.get_text()!r} touches {two.get_text()!r}"


def assert_headed(fig: Figure) -> None:
    assert fig.get_suptitle().strip() == "T" and fig.get_supxlabel() == NOTE


def lines(ax) -> dict[str, np.ndarray]:
    """Return label -> heights of every line of a panel."""
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}


def spectrum(n: int, power: float = 1.0) -> np.ndarray:
    ratios = np.arange(1, n + 1) ** -power
    return ratios / ratios.sum()


# ---------------------------------------------------------------- variance


def test_every_pc_and_every_marked_axis_stands_at_its_share():
    ratios = np.array([0.5, 0.25, 0.125, 0.0625])
    fig = figures_axes.plot_variance({15: ratios}, {15: {"lr": 0.25, "random0": 0.1}}, "T", NOTE)
    ax = fig.axes[0]
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["PCs"], ratios)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3, 4])
    assert set(drawn["lr"]) == {0.25} and set(drawn["random0"]) == {0.1}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_title(loc="left") == "layer 15"
    assert_headed(fig)


@pytest.mark.parametrize(
    ("share", "rank"),
    [(0.5, 1.0), (0.25, 2.0), (0.0625, 4.0), (np.sqrt(0.5 * 0.25), np.sqrt(2)), (0.6, None), (0.01, None)],
)
def test_the_point_is_where_the_lr_line_meets_the_pcs(share, rank):
    ratios = np.array([0.5, 0.25, 0.125, 0.0625, np.nan])
    fig = figures_axes.plot_variance({0: ratios}, {0: {"lr": share}}, "T", NOTE)
    points = [line for line in fig.axes[0].lines if line.get_linestyle() == "None"]
    shown = fig.axes[0].get_title(loc="right")
    if rank is None:
        assert not points and shown == ""
    else:
        assert points[0].get_xdata()[0] == pytest.approx(rank) and points[0].get_ydata()[0] == share
        assert shown == f"lr \u2248 PC {round(rank)}"


def test_a_layer_without_a_share_has_no_line_and_no_point_but_its_pcs():
    both = {0: spectrum(8), 1: spectrum(8)}
    fig = figures_axes.plot_variance(both, {0: {"lr": 0.1}, 1: {"lr": np.nan}}, "T", NOTE)
    second = fig.axes[1]
    assert np.isnan(lines(second)["lr"]).all() and second.get_title(loc="right") == ""
    np.testing.assert_array_equal(lines(second)["PCs"], spectrum(8))
    assert_texts_fit(fig)


def test_rounding_errors_in_the_last_pc_do_not_stretch_the_scale():
    ratios = np.append(spectrum(20), 1e-17)
    fig = figures_axes.plot_variance({0: ratios}, {}, "T", NOTE)
    assert fig.axes[0].get_ylim()[0] > 1e-3
    assert lines(fig.axes[0])["PCs"][-1] == 1e-17


@pytest.mark.parametrize(("layers", "pcs"), [(1, 3), (5, 576), (7, 576), (12, 2048)])
def test_panels_stand_in_rows_of_five_and_their_texts_fit(layers, pcs):
    marked = {name: 0.004 / (i + 1) for i, name in enumerate(AXES)}
    marked["lr"] = spectrum(pcs)[-2]  # a rank of many digits
    variance = {layer: spectrum(pcs) for layer in range(layers)}
    fig = figures_axes.plot_variance(variance, dict.fromkeys(range(layers), marked), "T", NOTE)
    seen = [ax for ax in fig.axes if ax.get_visible()]
    assert len(seen) == layers
    assert len({round(ax.get_position().x0, 3) for ax in seen}) == min(5, layers)
    lowest = [ax for ax in seen if ax.get_xlabel() == "PC"]
    assert len(lowest) == min(5, layers)  # the last panel of every column
    assert lowest == [ax for ax in seen if ax.xaxis.get_tick_params()["labelbottom"]]
    assert_texts_fit(fig)


# ---------------------------------------------------------------- cosines


def test_cosines_shares_and_the_level_of_chance_are_drawn_as_given():
    cosines = {"pc1": np.array([0.2, np.nan, 0.4]), "pc8": np.array([0.05, 0.1, 0.1])}
    captured = {1: np.array([0.04, 0.1, 0.16]), 8: np.array([0.3, 0.4, 0.5])}
    fig = figures_axes.plot_cosines([0, 7, 15], cosines, captured, 0.03, "T", NOTE)
    left, right = map(lines, fig.axes)
    np.testing.assert_array_equal(left["pc1"], cosines["pc1"])  # NaN stays: a gap
    np.testing.assert_array_equal(left["pc8"], cosines["pc8"])
    np.testing.assert_array_equal(right["first 1 PC"], captured[1])
    np.testing.assert_array_equal(right["first 8 PCs"], captured[8])
    np.testing.assert_array_equal(fig.axes[0].lines[1].get_xdata(), [0, 7, 15])
    assert set(fig.axes[0].lines[0].get_ydata()) == {0.03}
    assert {text.get_text() for text in fig.axes[0].texts} == {"pc1", "pc8", "random"}
    assert_headed(fig)


def test_one_component_has_one_colour_on_both_sides():
    one = np.array([0.1])
    fig = figures_axes.plot_cosines([3], {"pc2": one}, {2: one}, 0.03, "T", NOTE)
    assert fig.axes[0].lines[1].get_color() == fig.axes[1].lines[0].get_color()
    assert fig.axes[0].lines[1].get_marker() != "None"  # one layer is a point, not an unseen line


def test_a_line_without_numbers_has_no_name():
    empty = np.full(2, np.nan)
    fig = figures_axes.plot_cosines([0, 1], {"pc1": empty}, {1: empty}, 0.03, "T", NOTE)
    assert [text.get_text() for text in fig.axes[0].texts] == ["random"] and not fig.axes[1].texts


@pytest.mark.parametrize("layers", [[15], [0, 7, 15, 22, 29], list(range(32))])
def test_the_names_of_eight_components_fit(layers):
    numbers = (1, 2, 4, 8, 32, 128, 256, 512)
    same = np.full(len(layers), 0.1)
    cosines = {f"pc{k}": same for k in numbers}
    fig = figures_axes.plot_cosines(layers, cosines, dict.fromkeys(numbers, same), 0.033, "T", NOTE)
    assert_texts_fit(fig)
