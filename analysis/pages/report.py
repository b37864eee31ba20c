"""The figures of the report runs: the model against its baselines, by axis, layer and number of levels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.axes.names import family_of
from analysis.figures import levels as level_charts
from analysis.figures import report as charts
from analysis.figures.models import plot_observers
from analysis.figures.style import Bars, Curve, count
from analysis.pages import drawn
from analysis.pages.drawn import Drawn, bars, curve_numbers, levels_in_words, numbers
from analysis.results.store import Store, levels_in_name
from analysis.tables import report as tables
from analysis.tables.read import ReportData
from analysis.tables.report import OBSERVERS, Curves
from analysis.tables.rows import Row
from analysis.tables.series import ReportSeries

SOURCES = {
    "accuracy": "the model",
    "accuracy_own": "ideal observer (activations)",
    "accuracy_embedding": "input only (embeddings)",
    "accuracy_words": "bag of words",
    "majority": "majority",
}
"""Column of the report table -> what answers."""
ALL_LAYERS = "all layers"


# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class ReportView:
    """What the figures of report are drawn from."""

    store: Store
    data: ReportData
    rows: Sequence[Row]
    """Of report_table."""
    axes: Sequence[str] | None = None
    """Axes that other models are compared on; None: all."""
    models: Sequence[str] | None = None
    """Models to compare with; None: all with runs on the dataset."""

    @cached_property
    def scales(self) -> list[Scale]:
        """What was run with one number of levels, for each of these numbers."""
        return [Scale(self, levels) for levels in sorted({s.levels for s in self.data.series})]


class Scale:
    """All runs with one number of levels."""

    def __init__(self, view: ReportView, levels: int) -> None:
        """Take what belongs to ``levels`` from the view."""
        self.levels = levels
        self.series = [s for s in view.data.series if s.levels == levels]
        self.rows = [row for row in view.rows if row["levels"] == levels]
        self.layers = sorted({s.layer for s in self.series})
        self.where = f"{view.store.model}, {view.store.dataset}"
        self.ending, self.words = levels_in_name(levels), levels_in_words(levels)
        self.note = note(self.series)

    @cached_property
    def curves(self) -> dict[tuple[str, int], Curves]:
        """(axis, layer) -> curves over the number of examples shown."""
        return {(s.axis, s.layer): tables.report_curves(s) for s in self.series}

    def at(self, layer: int) -> dict[str, Curves]:
        """Return axis -> curves of one layer."""
        return {axis: found for (axis, at), found in self.curves.items() if at == layer}

    def group(self, layer: int) -> str:
        """Return the heading of one layer's figures."""
        return f"layer {layer}{self.words}"

    def numbers(self, found: Mapping[str, Curves], **about: Any) -> list[Row]:
        """Return all points of the curves as rows for summary.csv."""
        return [
            row
            for axis, curves in found.items()
            for metric in curves
            if metric != "shown"
            for row in curve_numbers(
                Curve(curves["shown"], *curves[metric]), metric, "n", axis=axis, levels=self.levels, **about
            )
        ]


class Place:
    """One layer of a scale with more than two levels."""

    def __init__(self, scale: Scale, layer: int) -> None:
        """Take what belongs to ``layer``."""
        self.layer, self.levels = layer, scale.levels
        self.series = [s for s in scale.series if s.layer == layer]
        self.group, self.ending = scale.group(layer), f"_layer{layer}{scale.ending}"
        self.where = f"{scale.where}, {self.group}"

    def drawn(self, name: str, caption: str, figure: Figure, rows: Sequence[Row]) -> Drawn:
        """Return a figure of this layer with its numbers."""
        about = {"layer": self.layer, "levels": self.levels}
        return Drawn(f"{name}{self.ending}", self.group, caption, figure, [{**about, **row} for row in rows])


def each_scale(draw: Callable[[Scale], Iterator[Drawn]]) -> Callable[[ReportView], Iterator[Drawn]]:
    """Turn a function that draws one number of levels into one that draws all of them."""

    @functools.wraps(draw)
    def every(view: ReportView) -> Iterator[Drawn]:
        for scale in view.scales:
            yield from draw(scale)

    return every


def each_place(draw: Callable[[Place], Drawn]) -> Callable[[ReportView], Iterator[Drawn]]:
    """Turn a function that draws one layer with more than two levels into one that draws all of them."""

    @functools.wraps(draw)
    def every(view: ReportView) -> Iterator[Drawn]:
        for scale in view.scales:
            if scale.levels > 2:
                yield from (draw(Place(scale, layer)) for layer in scale.layers)

    return every


# ---------------------------------------------------------------- any number of levels


@each_scale
def by_examples(here: Scale) -> Iterator[Drawn]:
    """Accuracy and cross-entropy of every layer against the number of examples."""
    for layer in here.layers:
        group = here.group(layer)
        yield _report(here, here.at(layer), f"layer{layer}", group, group, layer=layer)


@each_scale
def mean_over_layers(here: Scale) -> Iterator[Drawn]:
    """The same, the mean over layers."""
    if len(here.layers) < 2:
        return
    by_axis: dict[str, list[ReportSeries]] = {}
    for series in here.series:
        by_axis.setdefault(series.axis, []).append(series)
    found = {axis: tables.mean_over_layers(parts) for axis, parts in by_axis.items()}
    yield _report(here, found, "mean", ALL_LAYERS, f"mean over layers{here.words}")


def _report(
    here: Scale, found: Mapping[str, Curves], name: str, group: str, what: str, **about: Any
) -> Drawn:
    accuracy, entropy = (_lines(found, metric) for metric in ("accuracy", "cross_entropy"))
    title = f"Reporting the model's own scores ({here.where}, {what})"
    figure = charts.plot_report(accuracy, entropy, *baselines(found), title, here.note)
    caption = (
        "Report. The model predicts the side of the threshold that its own activation gives each "
        "sentence, after the examples before it, against baselines that see the same examples."
    )
    return Drawn(f"report_{name}{here.ending}", group, caption, figure, here.numbers(found, **about))


@each_scale
def by_layer(here: Scale) -> Iterator[Drawn]:
    """All layers in one figure."""
    if len(here.layers) < 2:
        return
    panels, rows = {}, []
    for layer in here.layers:
        found = here.at(layer)
        rows += here.numbers(found, layer=layer)
        panels[layer] = (_lines(found, "accuracy"), _lines(found, "cross_entropy"), *baselines(found))
    title = f"Reporting the model's own scores, by layer ({here.where}{here.words})"
    figure = charts.plot_report_layers(panels, title, here.note)
    caption = "Report at every layer that was run; all panels of a row share their scale."
    yield Drawn(f"report_by_layer{here.ending}", ALL_LAYERS, caption, figure, rows)


@each_scale
def observers(here: Scale) -> Iterator[Drawn]:
    """The model beside whatever else answers."""
    title = f"The model and observers of the same examples ({here.where}{here.words})"
    text = f"Accuracy over the later half of the examples. {drawn.note(here.rows)}"
    panels = {f"layer {at}": sources([r for r in here.rows if r["layer"] == at]) for at in here.layers}
    caption = (
        "What could be known: logistic regressions that see the same examples, given the layer's own "
        "activations (the ideal observer), the input embeddings, or the words."
    )
    figure = plot_observers(panels, title, text)
    yield Drawn(f"report_observers{here.ending}", ALL_LAYERS, caption, figure, source_numbers(here.rows))


# ---------------------------------------------------------------- more than two levels


@each_place
def exact_levels(here: Place) -> Drawn:
    """What more than two levels add, against the number of examples."""
    found = {s.axis: tables.level_curves(s) for s in here.series}
    names = {"exact": "accuracy", "cross_entropy": "cross_entropy", "correlation": "spearman"}
    panels = {new: _lines(found, old) for old, new in names.items()}
    figure = level_charts.plot_level_report(
        panels, here.levels, f"Reporting levels ({here.where})", note(here.series)
    )
    rows = [
        row
        for metric, lines in panels.items()
        for axis, line in lines.items()
        for row in curve_numbers(line, f"level_{metric}", "n", axis=axis)
    ]
    caption = "Report of exact levels: share right, cross-entropy over all digits, rank correlation."
    return here.drawn("report_levels", caption, figure, rows)


@each_place
def confusion(here: Place) -> Drawn:
    """Digits by true level."""
    found = {s.axis: tables.confusion(s) for s in here.series}
    n = count((len(s.exps) for s in here.series), "experiment")
    text = f"Means over the later half of the examples, no interval. {n}."
    figure = level_charts.plot_confusion(found, f"Digits by true level ({here.where})", text)
    rows = [
        {"axis": axis, "metric": "probability", "variant": f"level {a}, digit {b}", "value": float(p)}
        for axis, table in found.items()
        for (a, b), p in np.ndenumerate(table)
    ]
    caption = "Mean probability of each digit by true level: a diagonal where the model reports levels."
    return here.drawn("report_confusion", caption, figure, rows)


@each_place
def level_scores(here: Place) -> Drawn:
    """How scores become levels."""
    parts = {s.axis: [s.scores[s.labels == a] for a in range(here.levels)] for s in here.series}
    half = here.levels // 2
    middle = {axis: _between(by[:half], by[half:]) for axis, by in parts.items()}
    text = (
        "Quantiles of the fitting sentences, cut separately on both sides of the threshold (dashed). "
        "Every point is a sentence, so no interval; at the right n: their number."
    )
    shown = {axis: [np.unique(level) for level in by] for axis, by in parts.items()}
    figure = level_charts.plot_level_scores(shown, middle, f"True scores by level ({here.where})", text)
    rows = [
        {
            "axis": axis, "metric": "mean_score", "variant": f"level {a}",
            "value": float(level.mean()) if len(level) else float("nan"),
        }
        for axis, by in parts.items()
        for a, level in enumerate(by)
    ]  # fmt: skip
    return here.drawn("report_level_scores", "How scores become levels.", figure, rows)


# ---------------------------------------------------------------- small parts


def sources(rows: Sequence[Row]) -> dict[str, Bars]:
    """Return what answers -> accuracy of every axis, from rows of report_table."""
    return {
        name: bars(rows, (column, f"{column}_low", f"{column}_high"))
        for column, name in SOURCES.items()
        if all(column in row for row in rows)
    }


def source_numbers(rows: Sequence[Row]) -> list[Row]:
    """Return rows for summary.csv: the accuracy of everything that answers, from rows of report_table."""
    return [
        row
        for name in SOURCES
        for row in numbers(
            [r for r in rows if name in r], f"late_{name}", name, (f"{name}_low", f"{name}_high")
        )
    ]


def baselines(found: Mapping[str, Curves]) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Return the baselines' curves of accuracy and of cross-entropy, the mean over axes but controls."""
    real = [curves for axis, curves in found.items() if not family_of(axis).control] or list(found.values())
    longest = max((curves["shown"] for curves in real), key=len)
    same = [curves for curves in real if len(curves["shown"]) == len(longest)]

    def mean(metric: str) -> Curve:
        return Curve(longest, *np.mean([curves[metric] for curves in same], axis=0))

    names = {label: key for key, label in OBSERVERS.items() if all(f"accuracy_{key}" in c for c in same)}
    accuracy = {
        "majority": mean("majority"),
        **{label: mean(f"accuracy_{key}") for label, key in names.items()},
    }
    return accuracy, {label: mean(f"cross_entropy_{key}") for label, key in names.items()}


def note(series: Sequence[ReportSeries]) -> str:
    """Return n, what a point is, and what the baselines are."""
    single = all(len(s.exps) < 2 for s in series)
    bands = "One experiment has no interval" if single else "Bands: 95 % bootstrap interval over experiments"
    return (
        f"{count((len(s.exps) for s in series), 'experiment')}, each with both label assignments. Points are "
        f"means over ranges of positions (0, 1, 2, 3, 4-5, 6-7, 8-10, ...). {bands}. Chance: 0.5 and ln 2. "
        "Grey, mean over axes but controls: the label shown more often so far, and logistic regressions on "
        "the same examples, given the layer's activations (ideal observer), input embeddings, or words."
    )


def _between(lower: Sequence[np.ndarray], upper: Sequence[np.ndarray]) -> float:
    """Return a score between the two sides of the threshold, NaN if one of them has no sentence."""
    sides = [np.concatenate(part) for part in (lower, upper)]
    return (sides[0].max() + sides[1].min()) / 2 if all(map(len, sides)) else float("nan")


def _lines(found: Mapping[str, Curves], metric: str) -> dict[str, Curve]:
    return {axis: Curve(curves["shown"], *curves[metric]) for axis, curves in found.items()}
