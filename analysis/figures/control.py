"""Figures of the control experiments: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    Curve,
    band_line,
    canvas,
    colour,
    direct_labels,
    error_line,
    key_below_title,
    last_point,
    layer_axis,
    shots_axis,
    styled,
)
from configs.settings import ACTIVE, INACTIVE

EFFECT = "control effect (Cohen's d)"
MODE_TITLES = {ACTIVE: "active: the model writes", INACTIVE: "inactive: the model reads"}
Panels = Mapping[str, Mapping[str, Curve]]
"""mode -> axis -> curve"""


@styled
def plot_control(panels: Panels, title: str, note: str) -> Figure:
    """Draw d against the number of examples, one panel per mode, one line per targeted axis.

    Args:
        panels: mode -> axis -> curve with x the number of examples in context.
    """
    fig, axes = canvas(1, len(panels), _height(panels), title, note, sharey=True)
    for ax, (mode, curves) in zip(axes[0], panels.items(), strict=True):
        _effect_lines(ax, curves, MODE_TITLES[mode])
        shots_axis(ax, np.concatenate([curve.x for curve in curves.values()]))
        ax.set_xlabel("examples in context, N")
    _finish(axes[0], panels)
    return fig


@styled
def plot_effect_by_target(panels: Panels, title: str, note: str) -> Figure:
    """Draw d at the largest N against the layer that was targeted; arguments as for plot_control."""
    fig, axes = canvas(1, len(panels), _height(panels), title, note, sharey=True)
    for ax, (mode, curves) in zip(axes[0], panels.items(), strict=True):
        _effect_lines(ax, curves, MODE_TITLES[mode])
        layer_axis(ax, sorted({int(x) for curve in curves.values() for x in curve.x}))
        ax.set_xlabel("layer targeted")
    _finish(axes[0], panels)
    return fig


@styled
def plot_readout(panels: Panels, target: int, title: str, note: str) -> Figure:
    """Draw d on the axis of the same name at every layer while layer ``target`` is the one scored."""
    fig, axes = canvas(1, len(panels), _height(panels), title, note, sharey=True)
    for ax, (mode, curves) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        ax.axvline(target, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        for axis, curve in curves.items():
            band_line(ax, curve, axis, list(curves), markers=len(curve.x) <= 12)
        layer_axis(ax, sorted({int(x) for curve in curves.values() for x in curve.x}))
        ax.set_xlabel("layer read")
        ax.set_title(MODE_TITLES[mode])
    _finish(axes[0], panels)
    for ax in axes[0]:
        ax.annotate(
            f"target {target}", (target, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", fontsize=6.5, color=GREY, va="top",
        )  # fmt: skip
    return fig


def _height(panels: Panels) -> float:
    """Return inches: taller where many lines need telling apart."""
    return 2.9 if max(map(len, panels.values())) < 5 else 3.6


def _effect_lines(ax: Axes, curves: Mapping[str, Curve], title: str) -> None:
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    middle = (len(curves) - 1) / 2
    for i, (axis, curve) in enumerate(curves.items()):
        error_line(ax, curve, axis, list(curves), shift=1.6 * (i - middle))
    ax.set_title(title)


def _finish(axes: Sequence[Axes], panels: Panels) -> None:
    """Label the lines after the shared y range is known."""
    axes[0].set_ylabel(EFFECT)
    for ax, curves in zip(axes, panels.values(), strict=True):
        names = list(curves)
        ends = [(*last_point(curve), axis, colour(axis, names)) for axis, curve in curves.items()]
        direct_labels(ax, ends)


@styled
def plot_heatmap(
    panels: Mapping[str, np.ndarray],
    targets: Sequence[str],
    affected: Sequence[str],
    title: str,
    note: str,
) -> Figure:
    """Draw d on every affected axis (columns) while one axis is targeted (rows), one panel per mode.

    Args:
        panels: mode -> (T, K) d; NaN where an axis was not scored.
        targets: T names.
        affected: K names.
    """
    known = np.concatenate([values[np.isfinite(values)] for values in panels.values()])
    reach = max(0.2, float(np.abs(known).max(initial=0.0)))
    height = 0.9 + len(panels) * (0.55 + 0.26 * len(targets))
    fig, axes = canvas(len(panels), 1, height, title, note, sharex=True)
    norm = TwoSlopeNorm(0, -reach, reach)
    for ax, (mode, values) in zip(axes[:, 0], panels.items(), strict=True):
        image = ax.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", norm=norm, aspect="auto")
        _cells(ax, values, reach)
        for row, name in enumerate(targets):
            if name in affected:
                corner = (affected.index(name) - 0.5, row - 0.5)
                ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.4))
        ax.set_title(MODE_TITLES[mode])
        ax.set_yticks(range(len(targets)), targets)
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(affected) > 8 else {}
        ax.set_xticks(range(len(affected)), affected, **slant)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_ylabel("targeted")
    axes[-1, 0].set_xlabel("affected axis")
    fig.colorbar(image, ax=axes, label="Cohen's d", fraction=0.03, pad=0.02, aspect=25, shrink=0.8)
    return fig


def _cells(ax: Axes, values: np.ndarray, reach: float) -> None:
    for row, column in np.ndindex(values.shape):
        value = float(values[row, column])
        known = bool(np.isfinite(value))
        pale = not known or abs(value) < 0.6 * reach
        text = f"{round(value, 2) + 0.0:.2f}" if known else "n/a"  # + 0.0: no minus before 0.00
        hue = "black" if pale else "white"
        ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=hue)


@styled
def plot_score_histograms(
    cells: Mapping[str, Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]]],
    originals: Mapping[str, np.ndarray],
    title: str,
    note: str,
) -> Figure:
    """Draw control scores when high or low was wanted; rows are axes, columns are (mode, N).

    Args:
        cells: axis -> (mode, N) -> scores when high was wanted (n,), when low was wanted (n,).
        originals: axis -> (n_trial,) scores of the original sentences, drawn behind in grey.
    """
    columns = list(dict.fromkeys(key for row in cells.values() for key in row))
    height = 1.0 + (1.1 if len(cells) < 4 else 0.8) * len(cells)
    fig, axes = canvas(len(cells), len(columns), height, title, note, sharex="row", sharey="row")
    for row, (axis, by_column) in zip(axes, cells.items(), strict=True):
        behind = originals.get(axis, np.empty(0))
        bins = _bins([behind, *(side for pair in by_column.values() for side in pair)])
        for ax, key in zip(row, columns, strict=True):
            if key in by_column:
                _histogram(ax, behind, *by_column[key], bins)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
        row[0].set_ylabel(axis, rotation=0, ha="right", va="center")
    for ax, (mode, n) in zip(axes[0], columns, strict=True):
        ax.set_title(f"{mode}, N = {n}")
    for ax in axes[-1]:
        ax.set_xlabel("score (std)")
    key_below_title(fig, axes[0, 0])
    return fig


def _bins(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the edges of bins over the middle 99 % of all scores, few bins where there are few scores."""
    sizes = [int(np.isfinite(part).sum()) for part in parts]
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (-1.0, 1.0)
    number = int(np.clip(3 * np.cbrt(min((n for n in sizes if n), default=1)), 6, 24))
    return np.linspace(low, high if high > low else low + 1, number + 1)


def _histogram(ax: Axes, behind: np.ndarray, high: np.ndarray, low: np.ndarray, bins: np.ndarray) -> None:
    def draw(values: np.ndarray, **style: Any) -> None:
        kept = values[np.isfinite(values)]
        if kept.size:
            kept = np.clip(kept, bins[0], bins[-1])  # what lies outside is counted in the last bin
            ax.hist(kept, bins=bins.tolist(), density=True, **style)

    draw(behind, color="#D0D0D0", label="original sentences")
    for values, hue, name in ((low, LOW, "low wanted"), (high, HIGH, "high wanted")):
        draw(values, color=hue, histtype="step", linewidth=1.1, label=name)
        known = values[np.isfinite(values)]
        if known.size:
            ax.axvline(known.mean(), color=hue, linewidth=0.9, linestyle="--")
