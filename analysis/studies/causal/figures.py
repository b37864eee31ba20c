"""Figures of the causal studies: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    MARKERS,
    OKABE_ITO,
    Curve,
    canvas,
    direct_labels,
    last_point,
    styled,
)
from analysis.studies.causal.tables import ASSIGNMENTS

PANELS = {
    "accuracy": ("accuracy", 0.5),
    "pairs": ("pairs that move to\nthe right label", 0.5),
    "code": ("label learned from\nthe examples (d_z)", 0.0),
    "pull": ("label favoured by\nthe push itself (d_z)", 0.0),
}
"""Result -> label of its panel, and where its chance line stands."""
DASHES = dict(zip(ASSIGNMENTS, ((0, (4, 2)), (0, (1, 1.5))), strict=True))
"""Digit assignment -> how its line is dashed."""


@dataclass(frozen=True)
class Points:
    """Values with intervals, one per arm."""

    value: np.ndarray
    """(A,) float; NaN is left out and marked."""
    low: np.ndarray
    """(A,) lower end of the 95 % interval."""
    high: np.ndarray
    """(A,) upper end."""


@styled
def plot_arms(arms: Sequence[str], results: Mapping[str, Points], title: str, note: str) -> Figure:
    """Draw the arms below each other: shares of right answers, and effects of the code and of the push.

    Args:
        arms: A names, the first one on top and in colour.
        results: one per entry of PANELS.
    """
    fig, (axes,) = canvas(1, len(PANELS), 1.3 + 0.28 * len(arms), title, note, sharey=True)
    layout = fig.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(w_pad=0.08)  # else the last tick of a panel touches the next one's first
    rows = np.arange(len(arms))
    hues = np.array([HIGH, *[LOW] * (len(arms) - 1)])
    for ax, (name, (label, chance)) in zip(axes, PANELS.items(), strict=True):
        points, known = results[name], np.isfinite(results[name].value)
        ax.axvline(chance, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        ax.hlines(rows, points.low, points.high, color=hues, linewidth=1.2)
        ax.scatter(points.value[known], rows[known], color=hues[known], s=18, zorder=3)
        low, high = ax.get_xlim()
        if chance == 0.5:
            low, high = min(low, 0.4), max(high, 0.6)
        ax.set_xlim(low, high)
        right = chance < (low + high) / 2  # the side of the chance line with more room
        for row in rows[~known]:
            ax.annotate(
                "no variance", (chance, row), xytext=(3 if right else -3, 0), textcoords="offset points",
                ha="left" if right else "right", va="center", fontsize=6, color=GREY,
            )  # fmt: skip
        ax.set_xlabel(label)
    axes[0].set_yticks(rows, arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return fig


@styled
def plot_steering(
    measured: Mapping[int, Curve],
    steered: int,
    reported: Curve,
    by_flip: Mapping[str, np.ndarray],
    title: str,
    note: str,
) -> Figure:
    """Draw strength against the measured score, one line per layer read, and against the reported label.

    Args:
        measured: layer read -> curve of the score, x is the strength.
        steered: the layer that is pushed.
        reported: curve of the probability of the upper label, mean over both digit assignments.
        by_flip: digit assignment, as in DASHES -> (Q,) the same of one assignment.
    """
    fig, ((left, right),) = canvas(1, 2, 3.2, title, note)
    ends = []
    for i, (layer, curve) in enumerate(measured.items()):
        hue, name = OKABE_ITO[i % len(OKABE_ITO)], f"layer {layer}{' (steered)' * (layer == steered)}"
        _line(left, curve, hue, MARKERS[i % len(MARKERS)])
        ends.append((*last_point(curve), name, hue))
    left.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    left.set_ylabel("measured score (std)")
    direct_labels(left, ends)
    right.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    for name, values in by_flip.items():
        right.plot(reported.x, values, color=LOW, linewidth=0.8, linestyle=DASHES[name])
    _line(right, reported, HIGH, "o")
    low, high = right.get_ylim()
    right.set_ylim(max(0.0, min(low, 0.4)), min(1.0, max(high, 0.6)))
    right.set_ylabel("P(upper label)")
    ends = [(reported.x[-1], values[-1], name, LOW) for name, values in by_flip.items()]
    direct_labels(right, [*ends, (*last_point(reported), "mean of both", HIGH)])
    for ax in (left, right):
        ax.set_xlabel("push while the sentence is read (std)")
        ax.set_xticks(reported.x)
    return fig


def _line(ax: Axes, curve: Curve, hue: str, marker: str) -> None:
    ax.plot(curve.x, curve.y, color=hue, marker=marker)
    ax.fill_between(curve.x, curve.low, curve.high, color=hue, alpha=0.15, linewidth=0)
