"""What all figures share: colours, type sizes, labels at the lines, and how a figure becomes a file.

Figure functions take arrays and return a ``matplotlib.figure.Figure``; none of them uses pyplot, so no
figure is left open and no global setting changes.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation
from scipy.optimize import isotonic_regression

from analysis.axes.names import PAPER_AXES, axis_order
from analysis.base.files import save_bytes

WIDTH = 7.0
"""Inches: the text width of a paper with one column."""
_TITLE_LINE, _NOTE_LINE = 92, 135
"""Characters of a title and of a note that fit into WIDTH."""
GREY = "#595959"
HIGH, LOW = "#D55E00", "#0072B2"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
"""Okabe and Ito's colour-blind safe palette; its yellow, too pale for a line on white, became grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "figure.titlesize": 9, "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "lines.linewidth": 1.3, "lines.markersize": 3.5, "axes.titlelocation": "left",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line with its interval."""

    x: np.ndarray
    """(Q,) float."""
    y: np.ndarray
    """(Q,) float; NaN leaves a gap."""
    low: np.ndarray
    """(Q,) lower end of the 95 % interval."""
    high: np.ndarray
    """(Q,) upper end."""


class Bars(NamedTuple):
    """One value with its interval for each of T names."""

    names: Sequence[str]
    value: np.ndarray
    """(T,) float; NaN where not known."""
    low: np.ndarray
    """(T,) lower end of the 95 % interval."""
    high: np.ndarray
    """(T,) upper end."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a figure function under the style above and put the settings back."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def canvas(rows: int, columns: int, height: float, title: str, note: str, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure ``WIDTH`` wide and its (rows, columns) axes, with a title and a note below.

    Args:
        height: inches.
        note: what n and the interval are, and whatever else a reader needs to judge the figure.
    """
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, **grid)
    fig.suptitle(_wrapped(title, _TITLE_LINE), x=0.01, ha="left", fontweight="bold")
    fig.supxlabel(_wrapped(note, _NOTE_LINE), x=0.01, ha="left", fontsize=6.5, color=GREY)
    return fig, axes


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def colour(axis: str, among: Sequence[str] = ()) -> str:
    """Return the axis's colour: the same in every figure for the usual axes."""
    return OKABE_ITO[_slot(axis, among)]


def marker(axis: str, among: Sequence[str] = ()) -> str:
    """Return the axis's marker, which tells axes apart without colour."""
    return MARKERS[_slot(axis, among)]


def _slot(axis: str, among: Sequence[str]) -> int:
    if axis in PAPER_AXES:
        return PAPER_AXES.index(axis)
    free = [i for i, name in enumerate(PAPER_AXES) if name not in among] or [len(PAPER_AXES) - 1]
    others = sorted((name for name in {axis, *among} if name not in PAPER_AXES), key=axis_order)
    return free[::-1][others.index(axis) % len(free)]


def shots_axis(ax: Axes, shots: Iterable[float]) -> None:
    """Make x logarithmic to base 2 with 0 one step before the first doubling, ticks at ``shots``."""
    ticks = np.unique(np.asarray(list(shots), dtype=float))
    positive = ticks[ticks > 0]
    start = float(positive[0]) if positive.size else 1.0
    ax.set_xscale("symlog", base=2, linthresh=start, linscale=0.5)
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def layer_axis(ax: Axes, layers: Sequence[int]) -> None:
    """Put ticks at the layers, thinned so that they stay readable."""
    step = max(1, -(-len(layers) // 10))
    ax.xaxis.set_major_locator(FixedLocator(list(layers)[::step]))
    ax.set_xlabel("layer")


def error_line(ax: Axes, curve: Curve, axis: str, among: Sequence[str], shift: float = 0.0) -> None:
    """Draw a curve with bars; ``shift`` moves the drawing by points, the data stay where they are."""
    hue = colour(axis, among)
    drawn: list[Artist] = [*ax.plot(curve.x, curve.y, color=hue, marker=marker(axis, among), label=axis)]
    drawn.append(ax.vlines(curve.x, curve.low, curve.high, color=hue, linewidth=0.8, alpha=0.6))
    if shift:  # after drawing, so that the limits of the axes come from the data
        for artist in drawn:
            artist.set_transform(ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans))


def band_line(ax: Axes, curve: Curve, axis: str, among: Sequence[str], markers: bool = True) -> None:
    """Draw a curve with its interval as a band."""
    hue = colour(axis, among)
    ax.plot(curve.x, curve.y, color=hue, marker=marker(axis, among) if markers else None, label=axis)
    ax.fill_between(curve.x, curve.low, curve.high, color=hue, alpha=0.15, linewidth=0)


def direct_labels(ax: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.07) -> None:
    """Write each line's name to the right of its end, moved apart where names would touch.

    Args:
        ends: (x, y, name, colour) of each line's last point.
        gap: smallest distance between two names, as a share of the panel's height.
    """
    ends = sorted((end for end in ends if np.isfinite(end[1])), key=lambda end: end[1])
    if not ends:
        return
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top)
    wanted = np.array([(end[1] - bottom) / (top - bottom) for end in ends])
    steps = gap * np.arange(len(ends))
    nearest = isotonic_regression(wanted - steps).x  # of all heights that keep the gap
    spread = np.clip(nearest, 0.0, max(0.0, 1 - steps[-1])) + steps
    for (x, y, name, hue), height in zip(ends, spread, strict=True):
        stroke = {"arrowstyle": "-", "color": hue, "linewidth": 0.5, "alpha": 0.6}
        ax.annotate(
            name, xy=(x, y), xycoords="data", xytext=(1.06, height), textcoords="axes fraction",
            color=hue, fontsize=7, va="center", annotation_clip=False,
            arrowprops={**stroke, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def key_below_title(fig: Figure, ax: Axes | None = None) -> None:
    """Put one key of ``ax``, or of all axes, under the figure's title, in as many rows as it needs."""
    entries: dict[str, Any] = {}
    for one in fig.axes if ax is None else [ax]:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    line = 1 - (0.2 + 0.15 * fig.get_suptitle().count("\n")) / fig.get_figheight()
    for columns in range(len(entries), 0, -1):
        key = fig.legend(
            entries.values(), entries.keys(), loc="upper left", bbox_to_anchor=(0.0, line), ncols=columns,
            borderaxespad=0.2, handlelength=1.4, columnspacing=1.0, handletextpad=0.5,
        )  # fmt: skip
        key.set_in_layout(False)
        if key.get_window_extent().width <= fig.bbox.width or columns == 1:
            break
        key.remove()
    room = "\n" * -(-len(entries) // columns)  # a line of the title is as high as a row of the key
    fig.suptitle(f"{fig.get_suptitle()}{room}", x=0.01, ha="left", fontweight="bold")


def last_point(curve: Curve) -> tuple[float, float]:
    """Return the last known point of a curve, (nan, nan) if there is none."""
    known = np.flatnonzero(np.isfinite(curve.y))
    return (float(curve.x[known[-1]]), float(curve.y[known[-1]])) if known.size else (np.nan, np.nan)


def count(values: Iterable[int], noun: str) -> str:
    """Return such as ``n = 6 experiments`` or ``n = 3 to 6 experiments``."""
    known = sorted(set(values))
    if not known:
        return f"n = 0 {noun}s"
    shown = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"n = {shown} {noun}{'' if known == [1] else 's'}"


def figure_bytes(fig: Figure, form: str) -> bytes:
    """Return the figure as a file's content; equal figures give equal bytes."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with mpl.rc_context({"svg.hashsalt": "neurofeedback", "pdf.fonttype": 42, "svg.fonttype": "none"}):
        fig.savefig(buffer, format=form, dpi=200, metadata=undated[form])
    return buffer.getvalue()


def figure_files(fig: Figure, path: Path, formats: Sequence[str]) -> dict[Path, bytes]:
    """Return the content of ``<path>.<format>`` for every format."""
    return {path.with_name(f"{path.name}.{form}"): figure_bytes(fig, form) for form in formats}


def write_figure(fig: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write ``folder/name.<format>`` for every format and return the paths."""
    files = figure_files(fig, folder / name, formats)
    for path, content in files.items():
        save_bytes(content, path)
    return list(files)
