"""From the experiments of a causal study on disk to its table, CSV file and figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.style import count, write_figure
from analysis.pages.drawn import curve
from analysis.studies.causal.experiment import later_layers
from analysis.studies.causal.figures import Points, plot_arms, plot_steering
from analysis.studies.causal.flags import CausalSizes, CurveSizes
from analysis.studies.causal.stage import CausalStage, CurveStage
from analysis.studies.causal.tables import (
    ASSIGNMENTS,
    RESULTS,
    Row,
    causal_summary,
    causal_table,
    curve_summary,
    curve_table,
    slope,
    slope_verdict,
)
from analysis.tables.text import write_csv

# ---------------------------------------------------------------- causal report


def present_report(stage: CausalStage) -> str:
    """Write figures and CSV files of every layer; return the tables as text."""
    return "\n".join(_report_of(stage, layer) for layer in stage.layers)


def _report_of(stage: CausalStage, layer: int) -> str:
    store, axis = stage.store, stage.axis
    rows, stem = causal_table(stage.found(layer)["lean"]), f"{stage.stem}_{axis}_layer{layer}"
    table = write_csv(rows, store.figures / f"{stem}.csv")
    where = f"{store.model}, {store.dataset}, {axis}, layer {layer}"
    paths = write_figure(draw_arms(rows, where, stage.sizes), store.figures, stem, ["png"])
    return "\n".join([where, causal_summary(rows), *map(str, [table, *paths])])


def draw_arms(rows: Sequence[Row], where: str, sizes: CausalSizes) -> Figure:
    """Return the figure of all arms."""
    points = {
        name: Points(*(np.array([row[f"{name}{end}"] for row in rows]) for end in ("", "_low", "_high")))
        for name in RESULTS
    }
    tests = count([1 if sizes.repeat_sentence else sizes.n_test], "test sentence").removeprefix("n = ")
    note = (
        f"{count((row['experiments'] for row in rows), 'experiment')}; in each {sizes.n_examples} examples "
        f"and {tests}, read with both signs under both mappings; pushes of {sizes.alpha:g} std. Bars: 95 % "
        "bootstrap interval over experiments. Dashed: chance. clean and query_only are 0.5 by design. "
        "Random directions: a new one per experiment; random is pushed by as many of its own std as target, "
        "random_norm as far in activation space."
    )
    return plot_arms([row["arm"] for row in rows], points, f"Is a push reported? {where}", note)


# ---------------------------------------------------------------- steering curve


def present_curve(stage: CurveStage) -> str:
    """Write figures and CSV files of every layer; return the tables as text."""
    return "\n".join(_curve_of(stage, layer) for layer in stage.layers)


def _curve_of(stage: CurveStage, layer: int) -> str:
    store, sizes, axis = stage.store, stage.sizes, stage.axis
    found, stem = stage.found(layer), f"{stage.stem}_{axis}_layer{layer}"
    rows = curve_table(found, sizes.alphas, later_layers(layer, len(stage.study.layers)))
    fit = slope(found["lean"], sizes.alphas)
    table = write_csv([*rows, {"what": "slope of the logit", **_as_row(fit)}], store.figures / f"{stem}.csv")
    where = f"{store.model}, {store.dataset}, {axis}, layer {layer}"
    paths = write_figure(draw_curve(rows, fit, where, layer, sizes), store.figures, stem, ["png"])
    return "\n".join([where, curve_summary(rows, fit), *map(str, [table, *paths])])


def draw_curve(rows: Sequence[Row], fit: Row, where: str, layer: int, sizes: CurveSizes) -> Figure:
    """Return the figure."""

    def pick(what: str, read: int | str = "") -> list[Row]:
        return [row for row in rows if (row["what"], row["layer_read"]) == (what, read)]

    layers = dict.fromkeys(row["layer_read"] for row in rows if row["what"] == "score")
    measured = {read: curve(pick("score", read), "alpha") for read in layers}
    by_flip = {name: curve(pick(f"P(upper), {name}"), "alpha").y for name in ASSIGNMENTS}
    tests = count([sizes.n_test], "test sentence").removeprefix("n = ")
    note = (
        f"{count([fit['experiments']], 'experiment')}, {tests} in each. Bands: 95 % bootstrap interval over "
        "experiments. Left: the sentence alone, in the measuring conversation. Right: after "
        f"{count([sizes.n_examples], 'example').removeprefix('n = ')} with true labels; only the test "
        f"sentence is pushed, its text stays the same. {slope_verdict(fit).capitalize()}."
    )
    title = f"A push, its score and the reported label: {where}"
    return plot_steering(measured, layer, curve(pick("P(upper)"), "alpha"), by_flip, title, note)


def _as_row(fit: Row) -> Row:
    ends = {"value": fit["slope"], "low": fit["slope_low"], "high": fit["slope_high"]}
    return {**ends, "experiments": fit["experiments"]}
