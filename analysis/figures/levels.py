"""Figures for scores shown as quantile levels, 0 to A - 1, instead of 0 and 1: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    Curve,
    band_line,
    canvas,
    key_below_title,
    shots_axis,
    styled,
)

METRICS = {
    "accuracy": "exact level right",
    "cross_entropy": "cross-entropy (nats)",
    "spearman": "Spearman correlation",
}
"""Panels of plot_level_report, from left to right."""


@styled
def plot_confusion(panels: Mapping[str, np.ndarray], title: str, note: str) -> Figure:
    """Draw the mean probability of each digit (columns) for every true level (rows), one panel per axis.

    The diagonal, where digit and level are equal, is outlined. Cells are written out for up to 8 levels.

    Args:
        panels: axis -> (A, A) probabilities, rows sum to 1; NaN rows for levels that do not occur.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    side = min(2.6, 5.8 / columns)  # inches of a panel
    fig, grid = canvas(rows, columns, 0.9 + rows * (side + 0.3), title, note, sharex=True, sharey=True)
    fig.set_layout_engine("compressed")  # the panels are square
    most = max(float(np.nan_to_num(values).max()) for values in panels.values()) or 1.0
    for ax, (axis, values) in zip(grid.flat, panels.items(), strict=False):
        levels = len(values)
        image = ax.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=most)
        ax.set_facecolor("#E4E4E4")
        if levels <= 8:
            _write_cells(ax, values, most, size=min(6.5, 72 * side / levels / 2.4))
        for k in range(levels):
            ax.add_patch(Rectangle((k - 0.5, k - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=0.9))
        ax.set_title(axis)
        ax.set_xticks(range(levels))
        ax.set_yticks(range(levels))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    _outer_labels(grid, len(panels), "digit", "true level")
    label = "mean probability"
    fig.colorbar(image, ax=grid, label=label, fraction=0.03, pad=0.02, aspect=25, shrink=0.8)
    return fig


def _write_cells(ax: Axes, values: np.ndarray, most: float, size: float) -> None:
    for row, line in enumerate(values):
        if not np.isfinite(line).all():
            middle = (len(line) - 1) / 2
            ax.text(middle, row, "n/a", ha="center", va="center", fontsize=size, color=GREY)
            continue
        for column, value in enumerate(line):
            text = f"{value:.2f}".removeprefix("0")
            hue = "black" if value > 0.55 * most else "white"
            ax.text(column, row, text, ha="center", va="center", fontsize=size, color=hue)


def _outer_labels(grid: np.ndarray, used: int, x: str, y: str) -> None:
    """Hide the panels that are not used; name the axes at the lowest and the leftmost panels."""
    columns = grid.shape[1]
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < used)
        if i % columns == 0:
            ax.set_ylabel(y)
        if used - columns <= i < used:
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)


@styled
def plot_level_report(
    panels: Mapping[str, Mapping[str, Curve]], levels: int, title: str, note: str
) -> Figure:
    """Draw how well the model reports levels against the number of examples already shown.

    Args:
        panels: metric -> axis -> curve, metrics as in METRICS: ``accuracy``, share of exactly right levels
            (chance 1 / A); ``cross_entropy`` over the A digits, nats (chance ln A); ``spearman``, between
            the expected digit and the true score (chance 0).
        levels: A, the number of levels.
    """
    chance = {"accuracy": 1 / levels, "cross_entropy": float(np.log(levels)), "spearman": 0.0}
    fig, grid = canvas(1, len(METRICS), 3.0, title, note)
    for ax, (metric, name) in zip(grid[0], METRICS.items(), strict=True):
        ax.axhline(chance[metric], color=GREY, linewidth=0.8, linestyle=":", zorder=1, label="chance")
        curves = panels[metric]
        for axis, curve in curves.items():
            band_line(ax, curve, axis, list(curves))
        longest = max(float(curve.x.max()) for curve in curves.values())
        shots_axis(ax, [0, *(4**k for k in range(8) if 4**k <= longest)])
        ax.set_title(name)
        ax.set_xlabel("examples already shown")
    key_below_title(fig)
    return fig


@styled
def plot_level_scores(
    panels: Mapping[str, Sequence[np.ndarray]], threshold: Mapping[str, float], title: str, note: str
) -> Figure:
    """Draw the true score of every shown sentence by its level, so that the cuts between levels are seen.

    Levels below and above the threshold (dashed) are quantiles of their own side, in two colours. The
    number of sentences drawn stands at the right; the height of a point within its level has no meaning.

    Args:
        panels: axis -> A arrays, the scores (n_k,) of level k in training standard deviations; NaN is
            missing.
        threshold: axis -> score at which low and high levels meet.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    most = max(map(len, panels.values()))
    fig, grid = canvas(rows, columns, 1.0 + rows * (0.6 + 0.2 * most), title, note, sharey=True)
    for ax, (axis, by_level) in zip(grid.flat, panels.items(), strict=False):
        ax.axvline(threshold[axis], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        for k, scores in enumerate(by_level):
            _strip(ax, np.asarray(scores, dtype=float), k, HIGH if 2 * k >= len(by_level) else LOW)
        ax.set_title(axis)
        ax.set_yticks(range(most))
        ax.set_ylim(-0.6, most - 0.4)
        ax.tick_params(axis="y", length=0)
    _outer_labels(grid, len(panels), "score (std)", "level")
    return fig


def _strip(ax: Axes, scores: np.ndarray, level: int, hue: str) -> None:
    known = scores[np.isfinite(scores)]
    spread = 0.6 * ((np.arange(len(known)) * 0.618034) % 1 - 0.5)  # golden ratio: even, and no random numbers
    ax.plot(known, level + spread, linestyle="none", marker=".", markersize=2.5, color=hue, alpha=0.6)
    text = f"{len(known)}" if len(known) == len(scores) else f"{len(known)} of {len(scores)}"
    ax.annotate(
        text, (1, level), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
        va="center", fontsize=6, color=GREY,
    )  # fmt: skip
