"""Figures of the closed loop: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    MARKERS,
    OKABE_ITO,
    Bars,
    Curve,
    canvas,
    direct_labels,
    key_below_title,
    last_point,
    styled,
)

MODE_TITLES = {"write": "write a new sentence", "repeat": "repeat one sentence"}
_HUES = tuple(OKABE_ITO[i] for i in (6, 3, 4, 7, 2))
"""The first arm, true, is black; blue and red are low and high wanted in another figure of the same run."""
_APART = 0.08
"""Turns between the lines of two arms, so that their bars do not cover each other."""


@styled
def plot_loop_scores(
    panels: Mapping[str, Mapping[str, tuple[Curve, Curve]]], title: str, note: str
) -> Figure:
    """Draw the true score over turns, one row per mode, one panel per arm.

    Args:
        panels: mode -> arm -> curves when high and when low was wanted, x the turn from 1; every mode has the
            same arms.
    """
    arms = list(next(iter(panels.values())))
    height = 1.0 + 1.7 * len(panels)
    fig, axes = canvas(len(panels), len(arms), height, title, note, sharex=True, sharey="row")
    for ax, arm in zip(axes[0], arms, strict=True):
        ax.set_title(f"feedback: {arm}")
    for row, (mode, curves) in zip(axes, panels.items(), strict=True):
        for ax, arm in zip(row, arms, strict=True):
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            for one, hue, shape, name in zip(
                curves[arm], (HIGH, LOW), ("o", "s"), ("high wanted", "low wanted"), strict=True
            ):
                ax.plot(one.x, one.y, color=hue, marker=shape, label=name)
                ax.fill_between(one.x, one.low, one.high, color=hue, alpha=0.15, linewidth=0)
            _turns(ax)
        row[0].set_ylabel(f"{MODE_TITLES[mode]}\ntrue score (std)")
    for ax in axes[-1]:
        ax.set_xlabel("turn")
    key_below_title(fig, axes[0, 0])
    return fig


@styled
def plot_loop_effect(panels: Mapping[str, Mapping[str, Curve]], title: str, note: str) -> Figure:
    """Draw Cohen's d of high against low wanted over turns, one panel per mode, one line per arm."""
    fig, axes = canvas(1, len(panels), 2.9, title, note, sharey=True)
    for ax, (mode, curves) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        middle = (len(curves) - 1) / 2
        for i, (arm, one) in enumerate(curves.items()):
            x = one.x + _APART * (i - middle)
            ax.plot(x, one.y, color=_HUES[i], marker=MARKERS[i], label=arm)
            ax.vlines(x, one.low, one.high, color=_HUES[i], linewidth=0.8, alpha=0.6)
        ax.set_title(MODE_TITLES[mode])
        ax.set_xlabel("turn")
        _turns(ax)
    axes[0, 0].set_ylabel("effect (Cohen's d)")
    for ax, curves in zip(axes[0], panels.values(), strict=True):
        named = zip(curves.items(), _HUES, strict=False)
        direct_labels(ax, [(*last_point(one), arm, hue) for (arm, one), hue in named])
    return fig


@styled
def plot_loop_drift(panels: Mapping[str, tuple[Bars, Bars]], title: str, note: str) -> Figure:
    """Draw the drift of each arm, and of the true arm minus the others, one row per mode.

    Args:
        panels: mode -> slopes of the arms, differences of slopes, in training deviations per turn towards
            what is wanted; every mode has the same arms.
    """
    arms = next(iter(panels.values()))[0][0]
    height = 1.2 + len(panels) * (0.45 + 0.2 * len(arms))
    fig, axes = canvas(len(panels), 2, height, title, note, sharex="col")
    for row, (mode, (each, against)) in zip(axes, panels.items(), strict=True):
        _points(row[0], each, each[0], arms)
        _points(row[1], against, [f"true - {arm}" for arm in against[0]], arms)
        row[0].set_ylabel(MODE_TITLES[mode].replace(" ", "\n", 1))
    axes[0, 0].set_title("drift towards the goal")
    axes[0, 1].set_title("difference of drifts")
    for ax in axes[-1]:
        ax.set_xlabel("std per turn")
    return fig


def _points(ax: Axes, bars: Bars, names: Sequence[str], arms: Sequence[str]) -> None:
    """Draw values with their intervals, the first on top."""
    ax.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for y, (arm, value, low, high) in enumerate(zip(*bars, strict=True)):
        i = arms.index(arm)
        ax.hlines(y, low, high, color=_HUES[i], linewidth=1.2)
        ax.plot(value, y, color=_HUES[i], marker=MARKERS[i], linestyle="none", markersize=4.5)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)


def _turns(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
