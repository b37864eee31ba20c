"""Figures of the axes: accuracy, and how they lie among principal components. Arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter
from scipy.stats import binomtest

from analysis.axes.names import LR, pc
from analysis.figures.style import (
    GREY,
    Curve,
    canvas,
    colour,
    direct_labels,
    error_line,
    key_below_title,
    last_point,
    layer_axis,
    marker,
    styled,
)

COLUMNS = 5
FLOOR = 1e-7
"""Shares of variance below this are rounding errors of float32 and lie outside the panels."""
_DASHES = ("-", "--", ":", "-.")
_TOGETHER = (1, 2, 8, 32, 128, 512)
"""Numbers of leading principal components whose variance is added up in the figure over layers."""


@styled
def plot_axes_overview(
    layers: Sequence[int],
    accuracy: Mapping[str, np.ndarray],
    n_trial: int | None,
    variance: np.ndarray,
    title: str,
    note: str,
) -> Figure:
    """Draw the classifiers' held-out accuracy and the variance that the PCs explain.

    Args:
        layers: L numbers.
        accuracy: axis -> (L,) share of right labels on the trial half; NaN where not fitted.
        n_trial: sentences of the trial half, for Wilson's interval; None if not known.
        variance: (L, R) explained variance ratio of every PC, NaN past the last one of a layer.
    """
    fig, (axes,) = canvas(1, 2, 2.7, title, note)
    left, right = axes
    x, names = np.asarray(layers, dtype=float), list(accuracy)
    left.axhline(0.5, color=GREY, linewidth=0.6)
    curves = {name: _wilson(x, values, n_trial) for name, values in accuracy.items()}
    for name, curve in curves.items():
        error_line(left, curve, name, names)
    left.set_ylabel("held-out accuracy")
    layer_axis(left, layers)
    left.set_ylim(min(0.45, left.get_ylim()[0]), 1.02)
    direct_labels(left, [(*last_point(c), name, colour(name, names)) for name, c in curves.items()])
    _variance_panel(right, layers, variance)
    return fig


def _wilson(x: np.ndarray, values: np.ndarray, n: int | None) -> Curve:
    ends = np.full((2, len(x)), np.nan)
    for i, share in enumerate(values):
        if n and np.isfinite(share):
            found = binomtest(round(float(share) * n), n).proportion_ci(method="wilson")
            ends[:, i] = found.low, found.high
    return Curve(x, np.asarray(values, dtype=float), *ends)


def _variance_panel(ax: Axes, layers: Sequence[int], variance: np.ndarray) -> None:
    """Draw cumulative explained variance: over layers, or over the PCs where there is one layer."""
    total = np.cumsum(np.nan_to_num(variance), axis=1)
    ax.set_ylabel("variance explained")
    ax.set_ylim(0, 1.02)
    if len(layers) == 1:
        ax.plot(np.arange(1, total.shape[1] + 1), total[0], color=colour(LR))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("first k principal components")
        return
    shown = [k for k in _TOGETHER if k <= total.shape[1]]
    for k in shown:
        ax.plot(layers, total[:, k - 1], color=colour(pc(k)), label=f"{k}")
    layer_axis(ax, layers)
    ends = [
        (float(layers[-1]), float(total[-1, k - 1]), f"{k} PC{'s' * (k > 1)}", colour(pc(k))) for k in shown
    ]
    direct_labels(ax, ends)


@styled
def plot_variance(
    variance: Mapping[int, np.ndarray], marked: Mapping[int, Mapping[str, float]], title: str, note: str
) -> Figure:
    """Draw the share of variance of every PC against its number, log-log, one panel per layer.

    Other axes are horizontal lines. A point shows where the line of ``lr`` meets the PCs: its number, also
    beside the title, is that of the PC along which the data vary as much as along ``lr``.

    Args:
        variance: layer -> (R,) explained variance ratios, largest first; NaN past the last PC.
        marked: layer -> axis -> share of the total variance along this axis; NaN where not known.
    """
    columns = min(COLUMNS, len(variance))
    rows = -(-len(variance) // columns)
    height = 2.9 if rows == 1 else 0.9 + 1.45 * rows
    fig, axes = canvas(rows, columns, height, title, note, sharex=True, sharey=True)
    names = list(dict.fromkeys(name for shares in marked.values() for name in shares))
    for i, (ax, (layer, ratios)) in enumerate(zip(axes.flat, variance.items(), strict=False)):
        _spectrum(ax, ratios, marked.get(layer, {}), names)
        ax.set_title(f"layer {layer}")
        lowest = i + columns >= len(variance)
        ax.tick_params(labelbottom=lowest)
        ax.set_xlabel("PC" if lowest else "")
        ax.set_ylabel("share of variance" if i % columns == 0 else "")
    for ax in axes.flat[len(variance) :]:
        ax.set_visible(False)
    _log_axes(axes[0, 0], list(variance.values()), [v for shares in marked.values() for v in shares.values()])
    key_below_title(fig, axes[0, 0])
    return fig


def _spectrum(ax: Axes, ratios: np.ndarray, shares: Mapping[str, float], names: Sequence[str]) -> None:
    ratios = np.asarray(ratios, dtype=float)
    style: dict[str, Any] = {"marker": ".", "markersize": 4} if len(ratios) <= 32 else {}
    ax.plot(np.arange(1, len(ratios) + 1), ratios, color=GREY, label="PCs", **style)
    for i, name in enumerate(names):  # also without a value, so that every panel has the same key
        share, dash = shares.get(name, np.nan), _DASHES[i % len(_DASHES)]
        ax.axhline(share, color=colour(name, names), linewidth=0.9, linestyle=dash, zorder=1.5, label=name)
    rank = _same_variance(ratios, shares.get(LR, np.nan))
    if np.isfinite(rank):
        hue = colour(LR, names)
        ax.plot(rank, shares[LR], color=hue, marker=marker(LR), markersize=4, linestyle="")
        # beside the title, since lines of other axes may lie all around the point
        ax.set_title(f"{LR} \u2248 PC {round(rank)}", loc="right", fontsize=6.5, color=hue)


def _same_variance(ratios: np.ndarray, share: float) -> float:
    """Return the PC number, between whole numbers on the log-log line, at ``share``; NaN if none has it."""
    known = np.flatnonzero(ratios > 0)
    if not known.size or not ratios[known[-1]] <= share <= ratios[known[0]]:
        return np.nan
    return float(np.exp(np.interp(np.log(share), np.log(ratios[known][::-1]), np.log(known + 1)[::-1])))


def _log_axes(ax: Axes, variance: Sequence[np.ndarray], shares: Iterable[float]) -> None:
    """Make the shared axes logarithmic, from the smallest share above FLOOR to the largest."""
    values = np.concatenate([*variance, [*shares]])
    values = values[values > FLOOR]
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    if values.size:
        ax.set_ylim(values.min() / 1.5, values.max() * 2)
    most = max(len(ratios) for ratios in variance)
    step = 1 if most <= 64 else 3  # 1, 2, 4, 8, ... or 1, 8, 64, 512, ...
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(0, 14, step) if 2**k <= most]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


@styled
def plot_cosines(
    layers: Sequence[int],
    cosines: Mapping[str, np.ndarray],
    captured: Mapping[int, np.ndarray],
    chance: float,
    title: str,
    note: str,
) -> Figure:
    """Draw how the LR axis lies among the PCs of its layer.

    Args:
        layers: L numbers.
        cosines: PC -> (L,) |cosine| between this PC and the LR axis; NaN leaves a gap.
        captured: k -> (L,) share of the LR axis's squared length that lies within the first k PCs.
        chance: |cosine| expected for a random direction, about sqrt(2 / (pi D)).
    """
    fig, ((left, right),) = canvas(1, 2, 2.9, title, note)
    fig.set_layout_engine("constrained", w_pad=0.09)  # inches: names at the left lines, then the right scale
    left.axhline(chance, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    ends = _lines(left, layers, cosines, list(cosines))
    left.set_ylabel("|cosine| with the LR axis")
    left.set_ylim(0, max(1.15 * chance, left.get_ylim()[1]))
    direct_labels(left, [*ends, (float(layers[-1]), chance, "random", GREY)])

    within = {f"first {k} PC{'s' * (k > 1)}": values for k, values in captured.items()}
    ends = _lines(right, layers, within, [*map(pc, captured)])
    right.set_ylabel("share of the LR axis (length\u00b2)")
    right.set_ylim(0, 1.02)
    direct_labels(right, ends)
    return fig


def _lines(
    ax: Axes, layers: Sequence[int], lines: Mapping[str, np.ndarray], looks: Sequence[str]
) -> list[tuple[float, float, str, str]]:
    """Draw one line per entry in the colours of the axes ``looks``; return the ends for the labels."""
    x, ends = np.asarray(layers, dtype=float), []
    for look, (label, values) in zip(looks, lines.items(), strict=True):
        hue, y = colour(look, looks), np.asarray(values, dtype=float)
        ax.plot(x, y, color=hue, marker=marker(look, looks) if len(x) <= 12 else None, label=label)
        known = np.flatnonzero(np.isfinite(y))
        if known.size:
            ends.append((x[known[-1]], y[known[-1]], label, hue))
    layer_axis(ax, layers)
    return ends
