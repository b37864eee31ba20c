"""Figures of the evasion study: arrays in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from scipy.stats import gaussian_kde

from analysis.figures.style import (
    GREY,
    HIGH,
    LOW,
    OKABE_ITO,
    Curve,
    canvas,
    key_below_title,
    styled,
)

STYLES = {
    "before": ("black", "o"), "neutral": (OKABE_ITO[7], "s"), "evasion": (OKABE_ITO[1], "v"),
    "amplification": (OKABE_ITO[2], "^"), "written low": (LOW, "v"), "written high": (HIGH, "^"),
}  # fmt: skip
"""Colour and marker of every condition."""
_PALE = "#D0D0D0"


@styled
def plot_rates(
    names: Sequence[str],
    conditions: Mapping[str, Curve],
    reference: tuple[float, str],
    ylabel: str,
    title: str,
    note: str,
) -> Figure:
    """Draw one number of every probe in every condition, with bars.

    Args:
        names: of Q probes, such as ``MLP`` with the scope on a second line.
        conditions: name out of STYLES -> values and intervals (Q,); x is not read. NaN leaves a gap.
        reference: height and name of a dashed line, such as chance.
        ylabel: what the numbers are.
    """
    fig, ((ax,),) = canvas(1, 1, 3.3, title, note)
    ax.axhline(reference[0], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    ax.annotate(
        reference[1], (1, reference[0]), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", fontsize=7, color=GREY, annotation_clip=False,
    )  # fmt: skip
    x = np.arange(len(names), dtype=float)
    for i, (name, curve) in enumerate(conditions.items()):
        hue, mark = STYLES[name]
        shift = 9 * (i - (len(conditions) - 1) / 2)
        drawn = ax.plot(x, curve.y, color=hue, marker=mark, markersize=5, linestyle="", label=name, zorder=3)
        drawn.append(ax.vlines(x, curve.low, curve.high, color=hue, linewidth=1.1))
        for artist in drawn:  # after drawing, so that the limits of the axes come from the data
            artist.set_transform(ax.transData + ScaledTranslation(shift / 72, 0, fig.dpi_scale_trans))
    ax.set_xticks(x, names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel(ylabel)
    key_below_title(fig, ax)
    return fig


@styled
def plot_class_scores(
    conditions: Mapping[str, tuple[np.ndarray, np.ndarray]],
    notes: Mapping[str, str],
    threshold: tuple[float, str],
    xlabel: str,
    title: str,
    note: str,
) -> Figure:
    """Draw the densities of one probe's scores of both classes, one row per condition.

    Args:
        conditions: name -> scores of class 1 and of class 0, any shapes.
        notes: condition -> text beside its row, such as its AUROC.
        threshold: score and name of a dotted line.
        xlabel: what the scores are.
    """
    fig, axes = canvas(len(conditions), 1, 1.1 + 0.9 * len(conditions), title, note, sharex=True)
    values = np.concatenate([part.ravel() for pair in conditions.values() for part in pair])
    margin = 0.15 * float(np.ptp(values)) or 1.0
    x = np.linspace(values.min() - margin, values.max() + margin, 300)
    for (ax,), (name, (one, zero)) in zip(axes, conditions.items(), strict=True):
        _classes(ax, x, one.ravel(), zero.ravel())
        ax.axvline(threshold[0], color=GREY, linewidth=0.9, linestyle=":", label=threshold[1])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.annotate(
            notes[name], (1, 0.5), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7, annotation_clip=False,
        )  # fmt: skip
    axes[-1, 0].set_xlabel(xlabel)
    key_below_title(fig, axes[0, 0])
    return fig


def _classes(ax: Axes, x: np.ndarray, one: np.ndarray, zero: np.ndarray) -> None:
    behind, front = (_density(values, x) for values in (zero, one))
    top = float(np.nan_to_num([behind, front]).max()) or 1.0
    ax.fill_between(x, behind, color=_PALE, linewidth=0, label="class 0")
    ax.plot(x, front, color=OKABE_ITO[0], label="class 1")
    ax.vlines(zero.mean(), -0.12 * top, -0.02 * top, color=GREY, linewidth=1.5)
    ax.vlines(one.mean(), -0.12 * top, -0.02 * top, color=OKABE_ITO[0], linewidth=1.5)
    ax.set_ylim(-0.14 * top, 1.08 * top)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _density(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return scipy's Gaussian kernel density at ``x``, all NaN if the values do not differ."""
    if np.unique(values.round(6)).size < 2:
        return np.full(len(x), np.nan)
    return gaussian_kde(values)(x)
