"""Figures of scores in levels show exactly the numbers that they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.figures.levels import plot_confusion, plot_level_report, plot_level_scores
from analysis.figures.style import Curve
from tests.test_figures_models import AXES, assert_inside, lines, words


def curve(y):
    y = np.asarray(y, float)
    return Curve(np.array([0.0, 1, 2, 4.5, 9, 200])[: len(y)], y, y - 0.25, y + 0.5)


def matrix(levels, seed=0):
    values = np.random.default_rng(seed).uniform(size=(levels, levels))
    return values / values.sum(1, keepdims=True)


# ---------------------------------------------------------------- confusion


def test_confusion_shows_the_matrix_its_numbers_and_the_diagonal_on_one_scale():
    first, second = np.array([[0.75, 0.25], [np.nan, np.nan]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    fig = plot_confusion({"lr": first, "pc1": second}, "Confusion", "n = 5")
    left, right = fig.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array().filled(np.nan), first)
    np.testing.assert_array_equal(right.images[0].get_array().filled(np.nan), second)
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.0, 1.0)
    assert [text.get_text() for text in left.texts] == [".75", ".25", "n/a"]
    assert [text.get_text() for text in right.texts] == [".50", ".50", ".00", "1.00"]
    assert [text.get_position() for text in left.texts][1] == (1, 0)  # column: digit, row: true level
    assert [patch.get_xy() for patch in left.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    assert (left.get_xlabel(), left.get_ylabel()) == ("digit", "true level")
    assert left.get_ylim() == (1.5, -0.5)
    assert fig.get_suptitle() == "Confusion" and fig.get_supxlabel() == "n = 5"


@pytest.mark.parametrize(("levels", "written"), [(1, 1), (6, 36), (8, 64), (10, 0)])
def test_cells_are_written_out_for_up_to_8_levels(levels, written):
    fig = plot_confusion({"lr": matrix(levels)}, "T", "n")
    assert len(fig.axes[0].texts) == written
    assert_inside(fig)


def test_written_cells_fit_their_cells_in_a_row_of_four():
    fig = plot_confusion({axis: matrix(8) for axis in AXES}, "T", "n")
    assert_inside(fig)
    ax = fig.axes[5]
    cell = ax.get_window_extent().width / 8
    assert all(text.get_window_extent().width < cell for text in ax.texts)
    assert sum(ax.get_visible() for ax in fig.axes) == 9  # eight panels and the colour bar


def test_panels_that_are_not_used_are_hidden_and_the_lowest_are_labelled():
    fig = plot_confusion({axis: matrix(6) for axis in AXES[:5]}, "T", "n")
    assert [ax.get_visible() for ax in fig.axes[:8]] == [True] * 5 + [False] * 3
    assert [ax.get_xlabel() for ax in fig.axes[:5]] == ["", "digit", "digit", "digit", "digit"]


def test_a_matrix_without_any_level_is_drawn_as_missing():
    fig = plot_confusion({"lr": np.full((2, 2), np.nan)}, "T", "n")
    assert words(fig) == ["n/a", "n/a"]


# ---------------------------------------------------------------- report


def test_level_report_shows_curves_bands_and_the_chance_of_each_metric():
    values = {"accuracy": [0.2, np.nan, 0.5], "cross_entropy": [1.9, 1.5, 1.2], "spearman": [0, 0.3, 0.6]}
    fig = plot_level_report({metric: {"lr": curve(y)} for metric, y in values.items()}, 6, "Report", "n = 5")
    for ax, y, chance in zip(fig.axes, values.values(), (1 / 6, math.log(6), 0.0), strict=True):
        drawn = lines(ax)
        np.testing.assert_array_equal(drawn["lr"].get_xdata(), [0, 1, 2])
        np.testing.assert_array_equal(drawn["lr"].get_ydata(), y)
        assert set(drawn["chance"].get_ydata()) == {chance}
        band = {tuple(point) for path in ax.collections[0].get_paths() for point in path.vertices}
        assert {(0.0, y[0] - 0.25), (0.0, y[0] + 0.5)} <= band
    assert fig.get_suptitle().strip() == "Report" and fig.get_supxlabel() == "n = 5"
    assert words(fig) == ["chance", "lr"]


def test_a_large_level_report_stays_in_its_figure():
    rng = np.random.default_rng(0)
    names = (*AXES[:7], "lr_shuffled_with_a_long_name")
    panels = {
        m: {axis: curve(rng.normal(size=6)) for axis in names}
        for m in ("accuracy", "cross_entropy", "spearman")
    }
    fig = plot_level_report(panels, 8, "T", "n")
    assert_inside(fig)
    assert fig.legends[0].get_window_extent().y0 > max(ax.get_tightbbox().y1 for ax in fig.axes) - 1


# ---------------------------------------------------------------- scores


def test_scores_stand_at_their_level_with_counts_and_the_threshold():
    by_level = [np.array([-3.0, -2.0]), np.array([-1.0]), np.array([1.0, np.nan, 2.0]), np.array([])]
    fig = plot_level_scores({"lr": by_level}, {"lr": 0.25}, "Scores", "n = 5")
    ax = fig.axes[0]
    threshold, *strips = ax.lines
    assert threshold.get_xdata()[0] == 0.25
    assert [list(strip.get_xdata()) for strip in strips] == [[-3, -2], [-1], [1, 2], []]
    for level, strip in enumerate(strips):
        assert set(np.round(strip.get_ydata())) <= {level}
    assert words(fig) == ["2", "1", "2 of 3", "0"]
    below, above = {strip.get_color() for strip in strips[:2]}, {strip.get_color() for strip in strips[2:]}
    assert len(below) == len(above) == 1 and below != above
    assert fig.get_suptitle() == "Scores" and fig.get_supxlabel() == "n = 5"


def test_scores_of_eight_axes_stay_in_the_figure():
    scores = np.sort(np.random.default_rng(0).normal(size=600))
    fig = plot_level_scores(
        {axis: np.array_split(scores, 8) for axis in AXES}, dict.fromkeys(AXES, 0.0), "T", "n"
    )
    assert_inside(fig)
