"""Figures and tables of the evasion study: what probes detect before and under control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    count,
    key_below_title,
    styled,
    write_figure,
)
from analysis.studies.evasion.probes import CONDITIONS, MLP_ALPHA, MLP_EPOCHS, MLP_UNITS, Judged, Row
from analysis.tables.text import interval, show_p, text_table, write_csv

STYLES = {
    "before": ("black", "o"), "neutral": (OKABE_ITO[7], "s"), "evasion": (OKABE_ITO[1], "v"),
    "amplification": (OKABE_ITO[2], "^"), "written low": (LOW, "v"), "written high": (HIGH, "^"),
}  # fmt: skip
"""Colour and marker of every condition."""
_PALE = "#D0D0D0"
COLUMNS = (
    "model", "dataset", "axis", "layer", "n_examples", "probe", "scope", "metric", "condition", "against",
    "value", "low", "high", "p", "q", "experiments", "positives", "negatives", "fpr", "empty",
)  # fmt: skip
"""Of summary_evasion.csv; with ``against``, the value is that of ``against`` minus that of the condition."""


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


# ---------------------------------------------------------------- from rows to files


def write_evasion(
    judged: Mapping[tuple[str, str], Judged], rows: Sequence[Row], folder: Path, about: Mapping[str, Any]
) -> list[Path]:
    """Write the figures and summary_evasion.csv, and return the paths.

    Args:
        judged: (probe, scope) -> what it says.
        rows: of ``evasion_rows``.
        folder: where to.
        about: model, dataset, axis, layer and n_examples.
    """
    where = f"{about['model']}, {about['dataset']}, control of {about['axis']} at layer {about['layer']}"
    names = [f"{probe}\n{scope}" for probe, scope in judged]
    auroc, tpr = ({name: _curve(_pick(rows, m, name)) for name in CONDITIONS} for m in ("auroc", "tpr"))
    found = {name: _curve(_pick(rows, "detected", name)) for name in ("written low", "written high")}
    fpr = _pick(rows, "tpr", "original")[0]["fpr"]
    rate = f"{100 * fpr:.3g} %"
    base = _note(rows, about)
    at = f"Threshold: {rate} false positives among {_pick(rows, 'tpr', 'original')[0]['negatives']} original "
    at += "class-0 sentences."
    chance, low = (0.5, "chance"), (fpr, rate)
    titles = (
        f"Class 1 against class 0 before and under control\n{where}",
        f"Detection at {rate} false positives\n{where}",
    )
    figures = {
        "auroc": plot_rates(names, auroc, chance, "AUROC", titles[0], base),
        "tpr": plot_rates(names, tpr, low, "class-1 sentences detected", titles[1], f"{base} {at}"),
        "written": plot_rates(
            names, found, low, "written sentences detected",
            f"Sentences that the model wrote, low or high wanted\n{where}", f"{_written_note(rows)} {at}",
        ),
        "scores": _scores_figure(judged, rows, rate, where, base),
    }  # fmt: skip
    paths = [path for name, figure in figures.items() for path in write_figure(figure, folder, name, ["png"])]
    return [*paths, write_csv([{**about, **row} for row in rows], folder / "summary_evasion.csv", COLUMNS)]


def _scores_figure(
    judged: Mapping[tuple[str, str], Judged], rows: Sequence[Row], rate: str, where: str, base: str
) -> Figure:
    (probe, scope), one = next(iter(judged.items()))
    notes = {name: f"AUROC\n{_pick(rows, 'auroc', name)[0]['value']:.2f}" for name in CONDITIONS}
    threshold = one.threshold, f"{rate} of original class 0"
    title = f"Scores of the linear probe ({probe}, {scope})\n{where}"
    note = f"{base} AUROC within experiments; densities of all experiments together; ticks are means."
    return plot_class_scores(one.conditions(), notes, threshold, "score (std)", title, note)


def _note(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    first = _pick(rows, "auroc", "evasion")[0]
    sizes = f"{first['positives']} and {first['negatives']} scores of class 1 and class 0 in evasion"
    return (
        f"{count([first['experiments']], 'experiment')} with {about['n_examples']} examples, {sizes}. "
        "Bars: 95 % bootstrap interval over experiments. "
        f"MLP: one hidden layer of {MLP_UNITS} units, L2 {MLP_ALPHA:g}, at most {MLP_EPOCHS} epochs."
    )


def _written_note(rows: Sequence[Row]) -> str:
    first = _pick(rows, "detected", "written low")[0]
    return (
        f"{count([first['experiments']], 'experiment')}, {first['positives']} sentences for each request, "
        f"empty replies left out: {first['empty']}. Bars: 95 % bootstrap interval over experiments."
    )


def evasion_tables(rows: Sequence[Row]) -> str:
    """Return the text tables: AUROC, its changes with p and q, detection rates, written sentences."""
    probes = list(dict.fromkeys((row["probe"], row["scope"]) for row in rows))
    names = [f"{probe}, {scope}" for probe, scope in probes]
    asked = [
        ("evasion", "before"),
        ("evasion", "neutral"),
        ("amplification", "neutral"),
        ("neutral", "before"),
    ]
    conditions = ("original", *CONDITIONS)
    parts = [_levels("AUROC", names, [_pick(rows, "auroc", name) for name in conditions], conditions)]
    for metric, title in (("auroc", "AUROC"), ("tpr", "detection")):
        for condition, against in asked:
            changes = _pick(rows, metric, condition, against)
            parts.append(_changes(f"{title}: {against} - {condition}", names, changes))
    fixed, own = _pick(rows, "tpr", "original")[0], _pick(rows, "tpr_own", "before")[0]
    title = f"class 1 detected, {_at(fixed['fpr'])} of {fixed['negatives']} original class-0 sentences above"
    parts.insert(1, _levels(title, names, [_pick(rows, "tpr", name) for name in conditions], conditions))
    title = "class 0 detected at this threshold"
    parts.insert(2, _levels(title, names, [_pick(rows, "alarms", name) for name in CONDITIONS], CONDITIONS))
    title = (
        f"class 1 detected, {_at(own['fpr'])} of the condition's own class 0 above (from {own['negatives']})"
    )
    parts.insert(3, _levels(title, names, [_pick(rows, "tpr_own", name) for name in CONDITIONS], CONDITIONS))
    sides = ("written low", "written high")
    parts.append(
        _levels("written, detected", names, [_pick(rows, "detected", side) for side in sides], sides)
    )
    parts.append(_changes("written: high - low", names, _pick(rows, "detected", *sides)))
    smallest = 2 / 2 ** _pick(rows, "auroc", "evasion")[0]["experiments"]
    parts.append(
        f"Smallest p that so many experiments allow: {show_p(smallest)}. Intervals of fewer than about 12 "
        "experiments are too narrow: judge by p and q."
    )
    return "\n\n".join(parts)


def _levels(title: str, names: Sequence[str], columns: Iterable[Sequence[Row]], header: Sequence[str]) -> str:
    cells = [[_interval(row) for row in column] for column in columns]
    lines = [list(line) for line in zip(names, *cells, strict=True)]
    return f"{title}\n{text_table(['probe', *header], lines)}"


def _changes(title: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [
        [name, _interval(row), show_p(row["p"]), show_p(row["q"]), _verdict(row)]
        for name, row in zip(names, rows, strict=True)
    ]
    return f"{title}\n{text_table(['probe', 'difference', 'p', 'q', ''], lines)}"


def _verdict(row: Row) -> str:
    if not row["q"] < 0.05:
        return "no detectable effect"
    return "falls" if row["value"] > 0 else "rises"


def _interval(row: Row) -> str:
    rounded = {key: round(row[key], 3) + 0.0 for key in ("value", "low", "high")}  # + 0.0: -0.0 becomes 0.0
    return interval({"v": rounded["value"], "v_low": rounded["low"], "v_high": rounded["high"]}, "v", 3)


def _at(fpr: float) -> str:
    exact = fpr <= 0.01
    return f"{100 * fpr:.3g} %" if exact else f"{100 * fpr:.3g} % (the fewest resolvable, not 1 %)"


def _pick(rows: Sequence[Row], metric: str, condition: str, against: str = "") -> list[Row]:
    """Return the row of every probe for one number."""
    key = metric, condition, against
    return [row for row in rows if (row["metric"], row["condition"], row["against"]) == key]


def _curve(rows: Sequence[Row]) -> Curve:
    value, low, high = (np.array([row[key] for row in rows], float) for key in ("value", "low", "high"))
    return Curve(np.arange(len(rows), dtype=float), value, low, high)
