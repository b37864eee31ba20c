"""Figures that look behind the control effect: scores, layers, other axes. Arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import ScaledTranslation
from scipy.stats import gaussian_kde

from analysis.figures.control import EFFECT, MODE_TITLES
from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    MARKERS,
    OKABE_ITO,
    Bars,
    Curve,
    canvas,
    colour,
    direct_labels,
    key_below_title,
    last_point,
    layer_axis,
    styled,
)

Sides = tuple[np.ndarray, np.ndarray]
"""Scores (n,) when high was wanted, scores (n,) when low was wanted."""
_PALE = "#D0D0D0"
_LOW_DASH = (0, (4, 1.2))


@styled
def plot_densities(
    original: Mapping[str, np.ndarray], imitated: Mapping[str, Mapping[str, Sides]], title: str, note: str
) -> Figure:
    """Draw the density of the scores that were reached against those of the original sentences.

    One row per axis, one column per mode. The ticks at the bottom of a panel are the means; scores that
    all agree to 0.001 std have no density, only this tick. NaN are left out and not counted in n.

    Args:
        original: axis -> (n,) scores of the original sentences.
        imitated: axis -> mode -> scores when high was wanted, scores when low was wanted.
    """
    modes = list(dict.fromkeys(mode for by_mode in imitated.values() for mode in by_mode))
    fig, axes = canvas(len(imitated), len(modes), _height(len(imitated)), title, note, sharex="row")
    for row, (axis, by_mode) in zip(axes, imitated.items(), strict=True):
        for ax, mode in zip(row, modes, strict=True):
            high, low = by_mode.get(mode, (np.empty(0), np.empty(0)))
            _density_panel(ax, original.get(axis, np.empty(0)), low, high)
        row[0].set_ylabel(axis, rotation=0, ha="right", va="center")
    for ax, mode in zip(axes[0], modes, strict=True):
        ax.set_title(MODE_TITLES[mode])
    for ax in axes[-1]:
        ax.set_xlabel("score (std)")
    key_below_title(fig, axes[0, 0])
    return fig


def _density_panel(ax: Axes, original: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    samples = [values[np.isfinite(values)] for values in (original, low, high)]
    together = np.concatenate(samples)
    ends = (together.min(), together.max()) if together.size else (-1.0, 1.0)
    widths = [values.std() * values.size**-0.2 for values in samples if values.size]  # scipy's bandwidth
    margin = 3 * max([*widths, 0.1])
    x = np.linspace(ends[0] - margin, ends[1] + margin, 200)
    behind, for_low, for_high = densities = [_density(values, x) for values in samples]
    ax.fill_between(x, behind, color=_PALE, linewidth=0, label="original sentences")
    ax.plot(x, for_low, color=LOW, linestyle=_LOW_DASH, label="low wanted")
    ax.plot(x, for_high, color=HIGH, label="high wanted")
    top = float(np.nan_to_num(densities).max()) or 1.0
    ax.set_ylim(-0.14 * top, 1.08 * top)
    for i, (values, hue) in enumerate(zip(samples, (GREY, LOW, HIGH), strict=True)):
        if values.size:
            ax.vlines(values.mean(), -0.12 * top, -0.02 * top, color=hue, linewidth=1.3)
        ax.annotate(
            f"n = {values.size}", (1, 1), xycoords="axes fraction", xytext=(4, -8.5 * i),
            textcoords="offset points", va="top", fontsize=6.5, color=hue, annotation_clip=False,
        )  # fmt: skip
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _density(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return scipy's Gaussian kernel density at ``x``, all NaN if the values do not differ."""
    if np.unique(values.round(3)).size < 2:
        return np.full(len(x), np.nan)
    return gaussian_kde(values)(x)


@styled
def plot_accumulation(
    panels: Mapping[str, Mapping[str, tuple[Curve, Curve]]], target: int, title: str, note: str
) -> Figure:
    """Draw the score along the target layer's own axis, read at every layer, by what was wanted.

    One row per axis, one column per mode. The unit is the standard deviation of the training scores at
    the target layer, for all layers.

    Args:
        panels: axis -> mode -> curve when high was wanted, curve when low was wanted; x is the layer read.
        target: the layer whose axis is read, and whose scores the model was shown.
    """
    modes = list(dict.fromkeys(mode for by_mode in panels.values() for mode in by_mode))
    grid = {"sharex": True, "sharey": "row"}
    nothing = Curve(*np.empty((4, 0)))
    fig, axes = canvas(len(panels), len(modes), _height(len(panels)), title, note, **grid)
    for row, (axis, by_mode) in zip(axes, panels.items(), strict=True):
        for ax, mode in zip(row, modes, strict=True):
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            high, low = by_mode.get(mode, (nothing, nothing))
            _band(ax, low, LOW, "low wanted", _LOW_DASH)
            _band(ax, high, HIGH, "high wanted", "-")
            name = f"layer {target}, the target"
            ax.axvline(target, color=GREY, linewidth=0.9, linestyle=":", zorder=1, label=name)
        row[0].set_ylabel(axis, rotation=0, ha="right", va="center")
    curves = [curve for by_mode in panels.values() for pair in by_mode.values() for curve in pair]
    for ax in axes[-1]:
        layer_axis(ax, sorted({int(x) for curve in curves for x in curve.x}))
        ax.set_xlabel("layer read")
    for ax, mode in zip(axes[0], modes, strict=True):
        ax.set_title(MODE_TITLES[mode])
    fig.supylabel(f"score on layer {target}'s axis (std)", fontsize=8)
    key_below_title(fig, axes[0, 0])
    return fig


def _band(ax: Axes, curve: Curve, hue: str, label: str, dash: str | tuple[float, tuple[float, ...]]) -> None:
    mark = "o" if len(curve.x) <= 12 else None
    ax.plot(curve.x, curve.y, color=hue, linestyle=dash, marker=mark, markersize=2.5, label=label)
    edge = 6 if len(curve.x) == 1 else 0  # the edge alone shows the interval of a single layer
    ax.fill_between(curve.x, curve.low, curve.high, color=hue, alpha=0.18, linewidth=edge)


def _height(rows: int) -> float:
    """Return inches for ``rows`` rows of panels."""
    return 1.2 + (1.5 if rows < 4 else 0.85) * rows


@styled
def plot_precision(panels: Mapping[str, Mapping[str, Bars]], title: str, note: str) -> Figure:
    """Draw control precision |d on the target| / mean |d on other axes| of every targeted axis.

    1 means that the targeted axis moves no more than the others. The scale is logarithmic if the values
    span more than a factor 10; an interval that goes on for another factor 10 then ends at the frame.

    Args:
        panels: mode -> variant, that is which axes are in the mean -> names, values and intervals; NaN
            where not known. All modes have the same variants; a mode's variants have the same names.
    """
    fig, axes = canvas(1, len(panels), 3.2, title, note, sharey=True)
    for ax, (mode, variants) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        for i, (variant, (names, value, low, high)) in enumerate(variants.items()):
            curve = Curve(np.arange(len(names), dtype=float), value, low, high)
            hue, face = (("black", "black"), (GREY, "white"))[i % 2]
            shift = 9 * (i - (len(variants) - 1) / 2)
            style = {"linestyle": "", "markerfacecolor": face, "zorder": 3}
            _error_points(ax, curve, hue, MARKERS[i], variant, shift / max(1, len(names) / 4), **style)
        _names_axis(ax, names, len(panels))
        _tell_missing(ax, np.all(~np.isfinite([bars[1] for bars in variants.values()]), axis=0), 1)
        ax.set_title(MODE_TITLES[mode])
    axes[0, 0].set_ylabel("control precision")
    _maybe_log(axes[0, 0], [bars for variants in panels.values() for bars in variants.values()])
    key_below_title(fig, axes[0, 0])
    return fig


def _maybe_log(ax: Axes, drawn: Sequence[Bars]) -> None:
    values = np.concatenate([bars[1] for bars in drawn])
    values = values[values > 0]
    if not values.size or values.max() <= 10 * values.min():
        ax.set_ylim(bottom=0)
        return
    ends = np.concatenate([part for bars in drawn for part in bars[1:]])
    ends = ends[ends > 0]
    bottom, top = min(values.min(), 1), max(values.max(), 1)
    ax.set_yscale("log")
    ax.set_ylim(max(ends.min(), bottom / 10) / 1.3, min(max(ends.max(), 1), top * 10) * 1.3)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


@styled
def plot_groups(panels: Mapping[str, Mapping[str, Curve]], title: str, note: str) -> Figure:
    """Draw d against the targeted layer, averaged over groups of axes, one panel per mode.

    Args:
        panels: mode -> group -> curve of the mean d over the group's axes, with x the targeted layer.
    """
    fig, axes = canvas(1, len(panels), 3.0, title, note, sharey=True)
    for ax, (mode, curves) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        for i, (group, curve) in enumerate(curves.items()):
            shift = 2 * (i - (len(curves) - 1) / 2)
            size = 3.5 if len(curve.x) <= 12 else 2.2
            _error_points(ax, curve, OKABE_ITO[i % 8], MARKERS[i % 8], group, shift, markersize=size)
        layer_axis(ax, sorted({int(x) for curve in curves.values() for x in curve.x}))
        ax.set_xlabel("layer targeted")
        ax.set_title(MODE_TITLES[mode])
    axes[0, 0].set_ylabel(f"mean {EFFECT}")
    for ax, curves in zip(axes[0], panels.values(), strict=True):  # once the shared y range is known
        ends = [(*last_point(c), group, OKABE_ITO[i % 8]) for i, (group, c) in enumerate(curves.items())]
        direct_labels(ax, ends)
    return fig


def _error_points(
    ax: Axes, curve: Curve, hue: str, mark: str, label: str, shift: float, **style: Any
) -> None:
    """Draw a curve with bars; ``shift`` moves the drawing by points, the data stay where they are."""
    drawn: list[Artist] = [*ax.plot(curve.x, curve.y, color=hue, marker=mark, label=label, **style)]
    drawn.append(ax.vlines(curve.x, curve.low, curve.high, color=hue, linewidth=0.8, alpha=0.7))
    for artist in drawn:  # after drawing, so that the limits of the axes come from the data
        artist.set_transform(ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans))


@styled
def plot_cosine_bars(panels: Mapping[str, Bars], title: str, note: str) -> Figure:
    """Draw the cosine between the mean change of the hidden state and the targeted axis.

    Args:
        panels: mode -> names, cosines and intervals; NaN where not known.
    """
    fig, axes = canvas(1, len(panels), 2.9, title, note, sharey=True)
    for ax, (mode, (names, value, low, high)) in zip(axes[0], panels.items(), strict=True):
        x = np.arange(len(names))
        ax.bar(x, value, width=0.6, color=[colour(name, names) for name in names], alpha=0.85)
        ax.vlines(x, low, high, color="black", linewidth=1.0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        _names_axis(ax, names, len(panels))
        _tell_missing(ax, ~np.isfinite(value), 0)
        ax.set_title(MODE_TITLES[mode])
    axes[0, 0].set_ylabel("cosine with the targeted axis")
    return fig


def _names_axis(ax: Axes, names: Sequence[str], panels: int) -> None:
    """Put the names of axes below x = 0, 1, ...; slanted where they would touch."""
    slant: dict[str, Any] = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(names) * panels > 8 else {}
    )
    ax.set_xticks(range(len(names)), names, **slant)
    margin = max(0.6, (4 - len(names)) / 2)  # few axes stand in the middle, near each other
    ax.set_xlim(-margin, len(names) - 1 + margin)
    ax.set_xlabel("targeted axis")


def _tell_missing(ax: Axes, missing: np.ndarray, height: float) -> None:
    for x in np.flatnonzero(missing).tolist():
        ax.text(x, height, "n/a", ha="center", va="bottom", fontsize=6.5, color=GREY)
