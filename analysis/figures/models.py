"""Figures that compare models: arrays in, Figure out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from analysis.figures.control import EFFECT, MODE_TITLES
from analysis.figures.style import (
    GREY,
    MARKERS,
    OKABE_ITO,
    Bars,
    Curve,
    canvas,
    colour,
    error_line,
    key_below_title,
    styled,
)
from analysis.statistics.power_law import power_fit


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return name -> the part after its last slash, or the whole name where two parts would be equal."""
    parts = {model: model.rstrip("/").rsplit("/", 1)[-1] for model in models}
    times = Counter(parts.values())
    return {model: part if times[part] == 1 else model for model, part in parts.items()}


# ---------------------------------------------------------------- effect by depth


@styled
def plot_depth(panels: Mapping[tuple[str, str], Mapping[str, Curve]], title: str, note: str) -> Figure:
    """Draw the control effect at the largest N against depth; rows are axes, columns are modes.

    The panels of a row share their scale; rows do not, since axes differ a lot in their effect.

    Args:
        panels: (axis, mode) -> model -> curve with x = layer / (number of layers - 1), from 0 to 1.
    """
    axes_names = list(dict.fromkeys(axis for axis, _ in panels))
    modes = list(dict.fromkeys(mode for _, mode in panels))
    models = list(dict.fromkeys(model for curves in panels.values() for model in curves))
    height = 1.2 + (2.2 if len(axes_names) == 1 else 1.3) * len(axes_names)
    fig, grid = canvas(len(axes_names), len(modes), height, title, note, sharex=True, sharey="row")
    for row, axis in zip(grid, axes_names, strict=True):
        for ax, mode in zip(row, modes, strict=True):
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            for model, curve in panels.get((axis, mode), {}).items():
                _model_line(ax, curve, models, models.index(model))
        row[0].set_ylabel(axis, fontweight="bold")
    for ax, mode in zip(grid[0], modes, strict=True):
        ax.set_title(MODE_TITLES[mode])
    for ax in grid[-1]:
        ax.set_xlabel("depth (0: first layer, 1: last)")
    fig.supylabel(EFFECT, fontsize=8)
    fig.align_ylabels(grid[:, 0])
    key_below_title(fig)
    return fig


def _model_line(ax: Axes, curve: Curve, models: list[str], i: int) -> None:
    """Draw a model's curve with bars, moved by points so that bars at equal depths stand side by side."""
    hue = OKABE_ITO[i % len(OKABE_ITO)]
    label = short_names(models)[models[i]]
    many = len(curve.x) > 12
    form: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 2 if many else 3.5}
    drawn = ax.plot(curve.x, curve.y, color=hue, label=label, linewidth=0.9 if many else 1.3, **form)
    bars = ax.vlines(curve.x, curve.low, curve.high, color=hue, linewidth=0.7, alpha=0.35 if many else 0.6)
    shift = 1.4 * (i - (len(models) - 1) / 2)
    for artist in (*drawn, bars):
        artist.set_transform(ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans))


# ---------------------------------------------------------------- effect by size


@styled
def plot_size(panels: Mapping[str, Mapping[str, Curve]], title: str, note: str) -> Figure:
    """Draw the control effect against the number of parameters, both logarithmic, one panel per mode.

    Effects that are not > 0 have no place on such a scale: the key counts them. A bar that ends at the
    bottom of the panel goes on below it.

    Args:
        panels: mode -> axis -> curve with x the number of parameters of each model.

    Raises:
        ValueError: a number of parameters is not > 0.
    """
    texts = {mode: [_fit_text(a, curve) for a, curve in by.items()] for mode, by in panels.items()}
    key = 0.18 + 0.13 * max(sum(1 + text.count("\n") for text in lines) for lines in texts.values())  # inches
    fig, grid = canvas(2, len(panels), 3.2 + key, title, note, height_ratios=(2.4, key))
    for (ax, below), (mode, curves) in zip(grid.T, panels.items(), strict=True):
        for axis, curve in curves.items():
            _size_series(ax, curve, axis, list(curves))
        ax.set_title(MODE_TITLES[mode])
        ax.set_xlabel("parameters")
        _key_of_fits(below, ax, texts[mode])
    grid[0, 0].set_ylabel(EFFECT)
    every = [curve for curves in panels.values() for curve in curves.values()]
    for ax in grid[0]:
        _log_axes(ax, every)
        if not any(np.isfinite(line.get_ydata()).any() for line in ax.lines):
            ax.text(0.5, 0.5, "no effect > 0", ha="center", color=GREY, transform=ax.transAxes)
    return fig


def _size_series(ax: Axes, curve: Curve, axis: str, among: list[str]) -> None:
    """Draw one axis's models, and their line where there is one."""
    y, low, high = (np.where(curve.y > 0, part, np.nan) for part in (curve.y, curve.low, curve.high))
    middle = (len(among) - 1) / 2
    error_line(ax, Curve(curve.x, y, low, high), axis, among, shift=1.8 * (among.index(axis) - middle))
    ax.lines[-1].set_linestyle("none")
    fit = power_fit(curve.x, curve.y)
    if fit:
        ends = np.array([curve.x[curve.y > 0].min(), curve.x[curve.y > 0].max()])
        style: dict[str, Any] = {
            "color": colour(axis, among),
            "linewidth": 0.9,
            "linestyle": "--",
            "alpha": 0.8,
        }
        ax.plot(ends, fit.prefactor * ends**fit.exponent, **style)


def _fit_text(axis: str, curve: Curve) -> str:
    """Return the text of the key: the exponent, and what is not in the panel."""
    fit, effect = power_fit(curve.x, curve.y), curve.y
    known, above = int(np.isfinite(effect).sum()), int((effect > 0).sum())
    numbers = [f"{round(v, 2) + 0.0:.2f}" for v in (fit.exponent, fit.low, fit.high)] if fit else []
    text = f"{axis}: {'{} [{}, {}]'.format(*numbers) if fit else 'no line'}, n = {above}"
    absent = [f"{known - above} of {known} not > 0, not drawn"] if known > above else []
    absent += [f"{len(effect) - known} missing"] if known < len(effect) else []
    return text + ("\n" + "; ".join(absent) if absent else "")


def _key_of_fits(below: Axes, ax: Axes, texts: list[str]) -> None:
    """Fill the panel below with the key, which therefore cannot cover anything."""
    below.set_axis_off()
    key = below.legend(
        ax.get_legend_handles_labels()[0], texts, loc="upper left", bbox_to_anchor=(-0.02, 1),
        title="exponent [95 % interval], models fitted", title_fontsize=7, alignment="left", fontsize=6.5,
        borderaxespad=0, borderpad=0, handlelength=1, handletextpad=0.5, labelspacing=0.35,
    )  # fmt: skip
    key.set_in_layout(False)


def _log_axes(ax: Axes, curves: list[Curve]) -> None:
    """Make both axes logarithmic around the points of all panels that are > 0."""
    x = np.concatenate([curve.x for curve in curves])
    y, low, high = (
        np.concatenate([getattr(curve, name) for curve in curves]) for name in ("y", "low", "high")
    )
    above = y > 0
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(x.min() / 1.6, x.max() * 1.6)
    if above.any():
        smallest = float(y[above].min())
        ends = low[above & (low > smallest / 4)]  # a low end near 0 would squeeze all points
        bottom, top = min([smallest / 1.3, *ends / 1.1]), max(y[above].max(), *high[above & (high > 0)], 0)
        ax.set_ylim(bottom, top * 1.2)
    _log_ticks(ax.xaxis, ax.get_xlim(), _parameters)
    _log_ticks(ax.yaxis, ax.get_ylim(), lambda value: f"{value:g}")


def _log_ticks(axis: Axis, limits: tuple[float, float], text: Callable[[float], str]) -> None:
    wide = limits[1] / limits[0] > 500
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _parameters(value: float) -> str:
    """Return such as 500M or 8B."""
    for unit, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.999 * unit:
            return f"{value / unit:g}{sign}"
    return f"{value:g}"


# ---------------------------------------------------------------- observers


@styled
def plot_observers(panels: Mapping[str, Mapping[str, Bars]], title: str, note: str) -> Figure:
    """Draw the report accuracy of the model beside its baselines, one panel per model and layer.

    Args:
        panels: panel's title, such as ``org/model, layer 15`` -> source (the model itself, ideal observer,
            input only, bag of words, majority) -> names of T axes, accuracy (T,), low (T,), high (T,).
            Accuracies that are NaN are not drawn.
    """
    sources = list(dict.fromkeys(source for by_source in panels.values() for source in by_source))
    names = list(dict.fromkeys(n for by in panels.values() for dots in by.values() for n in dots[0]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    inches = 0.5 + len(names) * max(0.28, 0.085 * len(sources))
    fig, grid = canvas(rows, columns, 0.8 + rows * inches, title, note, sharex=True, sharey=True)
    titles = short_names(panels)
    for ax, (panel, by_source) in zip(grid.flat, panels.items(), strict=False):
        ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=1, label="chance")
        ax.hlines(
            np.arange(1, len(names)) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="#E4E4E4", lw=0.6
        )
        for source, dots in by_source.items():
            _dots(ax, dots, names, sources, source)
        ax.set_title(titles[panel])
        ax.tick_params(axis="y", length=0)
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < len(panels))
        if len(panels) - columns <= i < len(panels):
            ax.set_xlabel("accuracy")
            ax.tick_params(labelbottom=True)
    key_below_title(fig)
    return fig


def _dots(ax: Axes, dots: Bars, names: list[str], sources: list[str], source: str) -> None:
    i = sources.index(source)
    hue = OKABE_ITO[(1, 0, 2, 4, 3, 5, 6, 7)[i % 8]]  # the first source, the model, in the strongest colour
    y = np.array([names.index(name) for name in dots[0]]) + 0.8 * ((i + 0.5) / len(sources) - 0.5)
    _, value, low, high = dots
    ax.hlines(y, low, high, color=hue, linewidth=0.9, alpha=0.7)
    ax.plot(value, y, color=hue, marker=MARKERS[i % len(MARKERS)], linestyle="none", label=source)
