"""From the rows of the evasion study to its figures, its CSV file, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.style import Curve, count, write_figure
from analysis.studies.evasion.figures import plot_class_scores, plot_rates
from analysis.studies.evasion.probes import CONDITIONS, MLP_ALPHA, MLP_EPOCHS, MLP_UNITS
from analysis.studies.evasion.stage import EvasionStage
from analysis.studies.evasion.tables import Judged, Row, evasion_rows, evasion_tables, judge, pick
from analysis.tables.text import write_csv

COLUMNS = (
    "model", "dataset", "axis", "layer", "n_examples", "probe", "scope", "metric", "condition", "against",
    "value", "low", "high", "p", "q", "experiments", "positives", "negatives", "fpr", "empty",
)  # fmt: skip
"""Of summary_evasion.csv; with ``against``, the value is that of ``against`` minus that of the condition."""


def present(stage: EvasionStage) -> str:
    """Judge the states on disk, write figures and summary_evasion.csv; return the tables as text."""
    store, plan, judged = stage.store, stage.plan, judge(stage)
    rows = evasion_rows(judged, stage.study.settings.seed)
    folder = store.figures / f"evasion_{plan.axis}_layer{plan.layer}"
    about = {"model": store.model, "dataset": store.dataset, "axis": plan.axis, "layer": plan.layer}
    written = write_evasion(judged, rows, folder, {**about, "n_examples": plan.n_examples})
    return "\n".join([evasion_tables(rows), *map(str, written)])


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
    auroc, tpr = ({name: _curve(pick(rows, m, name)) for name in CONDITIONS} for m in ("auroc", "tpr"))
    found = {name: _curve(pick(rows, "detected", name)) for name in ("written low", "written high")}
    fpr = pick(rows, "tpr", "original")[0]["fpr"]
    rate = f"{100 * fpr:.3g} %"
    base = _note(rows, about)
    at = f"Threshold: {rate} false positives among {pick(rows, 'tpr', 'original')[0]['negatives']} original "
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
    notes = {name: f"AUROC\n{pick(rows, 'auroc', name)[0]['value']:.2f}" for name in CONDITIONS}
    threshold = one.threshold, f"{rate} of original class 0"
    title = f"Scores of the linear probe ({probe}, {scope})\n{where}"
    note = f"{base} AUROC within experiments; densities of all experiments together; ticks are means."
    return plot_class_scores(one.conditions(), notes, threshold, "score (std)", title, note)


def _note(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    first = pick(rows, "auroc", "evasion")[0]
    sizes = f"{first['positives']} and {first['negatives']} scores of class 1 and class 0 in evasion"
    return (
        f"{count([first['experiments']], 'experiment')} with {about['n_examples']} examples, {sizes}. "
        "Bars: 95 % bootstrap interval over experiments. "
        f"MLP: one hidden layer of {MLP_UNITS} units, L2 {MLP_ALPHA:g}, at most {MLP_EPOCHS} epochs."
    )


def _written_note(rows: Sequence[Row]) -> str:
    first = pick(rows, "detected", "written low")[0]
    return (
        f"{count([first['experiments']], 'experiment')}, {first['positives']} sentences for each request, "
        f"empty replies left out: {first['empty']}. Bars: 95 % bootstrap interval over experiments."
    )


def _curve(rows: Sequence[Row]) -> Curve:
    value, low, high = (np.array([row[key] for row in rows], float) for key in ("value", "low", "high"))
    return Curve(np.arange(len(rows), dtype=float), value, low, high)
