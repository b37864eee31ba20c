"""Figures of the report experiments: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from analysis.figures.style import (
    GREY,
    Curve,
    band_line,
    canvas,
    colour,
    direct_labels,
    key_below_title,
    last_point,
    shots_axis,
    styled,
)

LN2 = float(np.log(2))
METRICS = {"accuracy": "accuracy", "cross_entropy": "cross-entropy (nats)"}
CHANCE = {"accuracy": 0.5, "cross_entropy": LN2}
DASHES = {"majority": "--", "activations": "-.", "embeddings": ":", "words": (0, (1, 1, 4, 1))}
"""Baseline -> how its grey line is dashed."""


@styled
def plot_report(
    accuracy: Mapping[str, Curve],
    entropy: Mapping[str, Curve],
    known: Mapping[str, Curve],
    known_entropy: Mapping[str, Curve],
    title: str,
    note: str,
) -> Figure:
    """Draw report accuracy and cross-entropy against the number of examples already shown.

    Args:
        accuracy: axis -> curve of the share of right predictions.
        entropy: axis -> curve of -log p(label) in nats.
        known: baseline -> curve of accuracy, drawn grey.
        known_entropy: baseline -> curve of cross-entropy, drawn grey.
    """
    fig, axes = canvas(1, 2, 3.4, title, note)
    parts = ((accuracy, known), (entropy, known_entropy))
    for ax, (curves, baselines), metric in zip(axes[0], parts, METRICS, strict=True):
        _report_panel(ax, curves, metric, baselines)
        ax.set_ylabel(METRICS[metric])
        ax.set_xlabel("examples already shown")
    return fig


@styled
def plot_report_layers(
    by_layer: Mapping[int, tuple[Mapping[str, Curve], ...]], title: str, note: str
) -> Figure:
    """Draw one column of panels per layer: accuracy above, cross-entropy below.

    Args:
        by_layer: layer -> accuracy, entropy, known, known_entropy, as for plot_report.
    """
    columns = min(5, len(by_layer))
    blocks = -(-len(by_layer) // columns)
    fig, axes = canvas(2 * blocks, columns, 0.8 + 2.8 * blocks, title, note)
    for i, (layer, (accuracy, entropy, known, known_entropy)) in enumerate(by_layer.items()):
        block, column = divmod(i, columns)
        top, bottom = axes[2 * block, column], axes[2 * block + 1, column]
        _report_panel(top, accuracy, "accuracy", known, small=True)
        _report_panel(bottom, entropy, "cross_entropy", known_entropy, small=True)
        top.set_title(f"layer {layer}")
        top.tick_params(labelbottom=False)
        for ax, metric in ((top, "accuracy"), (bottom, "cross_entropy")):
            ax.tick_params(labelleft=column == 0)
            ax.set_ylabel(METRICS[metric] if column == 0 else "")
        bottom.set_xlabel("examples shown")
    for rows in (axes[::2], axes[1::2]):
        _same_heights([ax for ax in rows.flat if ax.lines])
    for ax in axes.flat:
        ax.set_visible(bool(ax.lines))
    key_below_title(fig, axes[0, 0])
    return fig


def _same_heights(axes: Sequence[Axes]) -> None:
    """Give all panels of one metric one scale, also across blocks."""
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _report_panel(
    ax: Axes, curves: Mapping[str, Curve], metric: str, baselines: Mapping[str, Curve], small: bool = False
) -> None:
    ax.axhline(CHANCE[metric], color=GREY, linewidth=0.6, zorder=1, label="chance")
    for name, known in baselines.items():
        ax.plot(known.x, known.y, color=GREY, linestyle=DASHES[name], linewidth=0.9, label=name)
    for axis, curve in curves.items():
        band_line(ax, curve, axis, list(curves), markers=not small)
    longest = max(float(curve.x.max()) for curve in curves.values())
    shots_axis(ax, [0, *(2**k for k in range(14) if 2**k <= longest)])
    if small:
        ax.xaxis.set_major_locator(FixedLocator([0, 4, 32, 256, 2048]))
    else:
        names = list(curves)
        ends = [(*last_point(curve), axis, colour(axis, names)) for axis, curve in curves.items()]
        ends += [(*last_point(known), name, GREY) for name, known in baselines.items()]
        x_end = max(end[0] for end in ends)
        direct_labels(ax, [*ends, (x_end, CHANCE[metric], "chance", GREY)])
