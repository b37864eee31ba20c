"""Figures of the closed loop show exactly the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.figures.style import HIGH, LOW, Curve
from analysis.studies.closed_loop.figures import plot_loop_drift, plot_loop_effect, plot_loop_scores
from analysis.studies.closed_loop.flags import ARMS
from tests.test_figures_models import assert_inside, bars, lines, words

MODES = ("write", "repeat")
NOTE = "n = 8 experiments, 8 examples before turn 1. Bands: 95 % bootstrap interval over experiments. " * 2


def curve(*y):
    y = np.array(y, float)
    return Curve(np.arange(1.0, len(y) + 1), y, y - 0.25, y + 0.5)


@pytest.mark.parametrize(("modes", "arms"), [(MODES, ARMS), (("write",), ("true",))])
def test_scores_have_one_panel_per_mode_and_arm_with_both_sides_in_it(modes, arms):
    cells = {
        m: {a: (curve(i, 2, np.nan), curve(j, 0, 1)) for j, a in enumerate(arms)} for i, m in enumerate(modes)
    }
    fig = plot_loop_scores(cells, "Scores", NOTE)
    assert len(fig.axes) == len(modes) * len(arms)
    assert [ax.get_title(loc="left") for ax in fig.axes[: len(arms)]] == [f"feedback: {arm}" for arm in arms]
    last = lines(fig.axes[-1])
    np.testing.assert_array_equal(last["high wanted"].get_ydata(), [len(modes) - 1, 2, np.nan])
    np.testing.assert_array_equal(last["low wanted"].get_ydata(), [len(arms) - 1, 0, 1])
    assert (last["high wanted"].get_color(), last["low wanted"].get_color()) == (HIGH, LOW)
    band = fig.axes[-1].collections[1].get_paths()[0].vertices
    assert band[:, 1].min() == -0.25 and band[:, 1].max() == max(len(arms) - 1, 1) + 0.5
    assert words(fig) == ["high wanted", "low wanted"]
    assert_inside(fig)


@pytest.mark.parametrize("modes", [MODES, ("repeat",)])
def test_effects_have_one_line_per_arm_named_at_its_end(modes):
    cells = {m: {a: curve(0, i, -i) for i, a in enumerate(ARMS)} for m in modes}
    fig = plot_loop_effect(cells, "Effect", NOTE)
    for ax in fig.axes:
        drawn = lines(ax)
        np.testing.assert_array_equal(drawn["random"].get_ydata(), [0, 2, -2])
        ends = [(low, high) for _, low, high in bars(ax)]
        assert ends[6:9] == [(-0.25, 0.5), (1.75, 2.5), (-2.25, -1.5)]
        assert len({line.get_color() for name, line in drawn.items() if name in ARMS}) == 4
        assert {text.get_text() for text in ax.texts} == set(ARMS)
    assert_inside(fig)


def points(*values):
    values = np.array(values, float)
    return values, values - 0.1, values + 0.2


@pytest.mark.parametrize("modes", [MODES, ("write",)])
def test_drifts_stand_beside_their_differences_in_the_same_colour(modes):
    each, against = (ARMS, *points(0.3, -0.2, 0, np.nan)), (ARMS[1:], *points(0.5, 0.3, np.nan))
    fig = plot_loop_drift(dict.fromkeys(modes, (each, against)), "Drift", NOTE)
    left, right = fig.axes[:2]
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(ARMS)
    assert [tick.get_text() for tick in right.get_yticklabels()] == [f"true - {arm}" for arm in ARMS[1:]]
    values = [line.get_xdata()[0] for line in left.lines[1:]]  # the first marks 0
    np.testing.assert_array_equal(values, [0.3, -0.2, 0, np.nan])
    ends = left.collections[0].get_segments()[0]
    np.testing.assert_allclose(ends, [(0.2, 0), (0.5, 0)])
    assert [line.get_color() for line in left.lines[2:]] == [line.get_color() for line in right.lines[1:]]
    assert left.get_ylim() == (3.5, -0.5)  # the first on top
    assert_inside(fig)


def test_the_drift_of_one_arm_alone_has_nothing_to_compare_with():
    fig = plot_loop_drift({"write": ((("true",), *points(0.3)), ((), *points()))}, "Drift", NOTE)
    assert len(fig.axes[1].lines) == 1 and fig.axes[1].get_yticklabels() == []
    assert_inside(fig)
