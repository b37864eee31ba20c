"""Tables of the causal studies from answers of a known kind, and figures that show every number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from analysis.figures.style import Curve
from analysis.studies.causal import experiment as causal
from analysis.studies.causal.experiment import MAPPINGS, SIGNS
from analysis.studies.causal.figures import DASHES, PANELS, Points, plot_arms, plot_steering
from analysis.studies.causal.tables import causal_table, causal_verdict, slope

ARMS = ("target", "random", "clean")


def points(*values: float) -> Points:
    value = np.array(values)
    return Points(value, value - 0.1, value + 0.2)


@pytest.fixture
def arms_figure():
    results = {name: points(0.8, 0.5, 0.5) for name in ("accuracy", "pairs")}
    results |= {"code": points(1.0, 0.1, np.nan), "pull": points(-3.0, 0.2, np.nan)}
    return plot_arms(ARMS, results, "Title", "n = 5 experiments")


def test_arms_stand_below_each_other_with_their_intervals(arms_figure):
    axes = arms_figure.axes
    assert [ax.get_xlabel() for ax in axes] == [label for label, _ in PANELS.values()]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(ARMS)
    bottom, top = axes[0].get_ylim()
    assert bottom > top  # the first arm is on top
    bars, dots = axes[0].collections
    np.testing.assert_allclose(dots.get_offsets(), [[0.8, 0], [0.5, 1], [0.5, 2]])
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], [[0.7, 1.0], [0.4, 0.7], [0.4, 0.7]])
    for ax, (_, chance) in zip(axes, PANELS.values(), strict=True):
        assert ax.lines[0].get_xdata()[0] == chance


def test_an_arm_without_a_value_is_marked_not_drawn_at_zero(arms_figure):
    _, _, code, pull = arms_figure.axes
    for ax in (code, pull):
        assert len(ax.collections[1].get_offsets()) == 2
        (text,) = (text for text in ax.texts)
        assert text.get_text() == "no variance" and text.xy[1] == 2
    assert (code.texts[0].get_ha(), pull.texts[0].get_ha()) == ("left", "right")  # inside the panel
    assert "n = 5 experiments" in arms_figure.get_supxlabel()


def test_the_steering_figure_has_a_line_per_layer_and_per_digit_assignment():
    x = np.arange(-4.0, 5.0)

    def curve(y: np.ndarray) -> Curve:
        return Curve(x, y, y - 0.1, y + 0.1)

    by_flip = {name: 0.5 + 0.01 * x for name in DASHES}
    measured = {15: curve(x), 29: curve(x / 2)}
    fig = plot_steering(measured, 15, curve(0.5 + 0.02 * x), by_flip, "Title", "n = 5 experiments")
    left, right = fig.axes
    lines = [line for line in left.lines if len(line.get_xdata()) == len(x)]
    np.testing.assert_array_equal([line.get_ydata() for line in lines], [x, x / 2])
    assert [text.get_text() for text in left.texts] == ["layer 29", "layer 15 (steered)"]
    assert {text.get_text() for text in right.texts} == {*DASHES, "mean of both"}
    low, high = right.get_ylim()
    assert 0 <= low <= 0.42 and 0.58 <= high <= 1


# ---------------------------------------------------------------- the tables


def test_the_code_and_the_pull_are_told_apart():
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.1, size=(20, len(causal.ARMS), 2, 3, 2))
    mapping, sign = np.array(MAPPINGS)[:, None, None], np.array(SIGNS)
    lean = noise.copy()
    lean[:, 0] += mapping * sign  # the label that the sign stands for
    lean[:, 1] += 1.0 * sign  # the same digit whatever the sign stands for
    lean[:, 2] += 5.0 + 0.5 * mapping * sign  # always digit 1, but surer when it is right
    code, pull, constant = causal_table(lean)[:3]
    assert code["accuracy"] == 1.0 and code["code"] > 5 and abs(code["pull"]) < 1
    assert code["accuracy_p"] == pytest.approx(1e-4, rel=0.5)  # 10,000 sign patterns
    assert pull["accuracy"] == 0.5 and pull["pull"] > 5 and abs(pull["code"]) < 1
    assert (pull["accuracy_mapping0"], pull["accuracy_mapping1"]) == (1.0, 0.0)
    assert (code["pairs"], pull["pairs"]) == (1.0, 0.5) and code["code_logits"] == pytest.approx(2, abs=0.1)
    assert constant["pairs"] == 1.0 and constant["code"] > 2
    assert constant["accuracy"] == 0.5 and constant["accuracy_p"] == 1.0
    assert code["experiments"] == 20 and code["trials"] == 20 * 12
    assert (
        causal_verdict(constant)
        == "random_norm: no detectable effect: accuracy 0.50 [0.50, 0.50], 20 experiments"
    )


def test_q_values_are_those_of_scipy():
    lean = np.random.default_rng(1).normal(size=(6, len(causal.ARMS), 2, 2, 2))
    rows = causal_table(lean)
    for name in ("accuracy", "pairs", "code", "pull"):
        p, q = ([row[f"{name}_{what}"] for row in rows] for what in "pq")
        np.testing.assert_allclose(q, false_discovery_control(p))


def test_one_experiment_is_not_called_a_null_result():
    row = causal_table(np.ones((1, len(causal.ARMS), 2, 2, 2)))[0]
    assert causal_verdict(row) == "target: not tested: accuracy 0.50, 1 experiments"


def test_the_slope_of_the_reported_label_is_that_of_the_logit():
    alphas = np.array([-2.0, 0.0, 2.0])
    lean = np.broadcast_to(0.3 * alphas + 1, (5, 2, 4, 3))
    row = slope(lean, alphas)
    assert row["slope"] == pytest.approx(0.3) and row["p"] == 2 / 2**5
