"""The figures of the report runs: the model against its baselines, by axis, layer and number of levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.axes.names import family_of
from analysis.figures import levels as level_figures
from analysis.figures import models, report
from analysis.figures.style import Curve, count
from analysis.pages import drawn
from analysis.pages.drawn import Drawn, curve_numbers, numbers
from analysis.results.store import Store
from analysis.tables import report as report_tables
from analysis.tables.read import ReportData
from analysis.tables.report import OBSERVERS
from analysis.tables.series import ReportSeries

Row = dict[str, Any]
Curves = Mapping[str, np.ndarray]
SOURCES = {
    "accuracy": "the model",
    "accuracy_own": "ideal observer (activations)",
    "accuracy_embedding": "input only (embeddings)",
    "accuracy_words": "bag of words",
    "majority": "majority",
}
"""Column of the report table -> what answers."""


def report_figures(
    store: Store, data: ReportData, rows: Sequence[Row], kinds: Sequence[str]
) -> Iterator[Drawn]:
    """Yield the figures of ``kinds`` that the data allow; ``rows`` are those of report_table."""
    for levels in sorted({s.levels for s in data.series}):
        chosen = [s for s in data.series if s.levels == levels]
        yield from _LevelFigures(store, chosen, levels, [r for r in rows if r["levels"] == levels]).draw(
            kinds
        )


class _LevelFigures:
    """Draws what belongs to one number of levels."""

    def __init__(
        self, store: Store, series: Sequence[ReportSeries], levels: int, rows: Sequence[Row]
    ) -> None:
        self.series, self.levels, self.rows = series, levels, rows
        self.layers = sorted({s.layer for s in series})
        self.end = "" if levels == 2 else f"_levels{levels}"
        self.where = f"{store.model}, {store.dataset}"
        self.scale = "" if levels == 2 else f", {levels} levels"
        self.curves = {(s.axis, s.layer): report_tables.report_curves(s) for s in series}
        self.note = note(series)

    def draw(self, kinds: Sequence[str]) -> Iterator[Drawn]:
        """Yield the figures of ``kinds``."""
        several = len(self.layers) > 1
        if "report" in kinds:
            yield from (self._report_of(layer) for layer in self.layers)
        if "layers" in kinds and several:
            yield self._by_layer()
        if "mean" in kinds and several:
            yield self._mean()
        if "observers" in kinds:
            yield self._observers()
        for kind, draw in LEVEL_KINDS.items():
            if kind in kinds and self.levels > 2:
                yield from (draw(self, [s for s in self.series if s.layer == at], at) for at in self.layers)

    def _group(self, layer: int) -> str:
        return f"layer {layer}{self.scale}"

    def _at(self, layer: int) -> dict[str, Curves]:
        return {axis: found for (axis, at), found in self.curves.items() if at == layer}

    def _numbers(self, found: Mapping[str, Curves], **about: Any) -> list[Row]:
        return [
            row
            for axis, curves in found.items()
            for metric in curves
            if metric != "shown"
            for row in curve_numbers(
                Curve(curves["shown"], *curves[metric]), metric, "n", axis=axis, levels=self.levels, **about
            )
        ]

    def _report_of(self, layer: int) -> Drawn:
        return self._report(
            self._at(layer), f"report_layer{layer}{self.end}", self._group(layer), layer=layer
        )

    def _report(self, found: Mapping[str, Curves], name: str, group: str, **about: Any) -> Drawn:
        accuracy, entropy = (_lines(found, metric) for metric in ("accuracy", "cross_entropy"))
        title = f"Reporting the model's own scores ({self.where}, {group})"
        figure = report.plot_report(accuracy, entropy, *baselines(found), title, self.note)
        caption = (
            "Report. The model predicts the side of the threshold that its own activation gives each "
            "sentence, after the examples before it, against baselines that see the same examples."
        )
        return Drawn("report", name, group, caption, figure, self._numbers(found, **about))

    def _by_layer(self) -> Drawn:
        panels, rows = {}, []
        for layer in self.layers:
            found = self._at(layer)
            rows += self._numbers(found, layer=layer)
            panels[layer] = (_lines(found, "accuracy"), _lines(found, "cross_entropy"), *baselines(found))
        title = f"Reporting the model's own scores, by layer ({self.where}{self.scale})"
        figure = report.plot_report_layers(panels, title, self.note)
        caption = "Report at every layer that was run; all panels of a row share their scale."
        return Drawn("layers", f"report_by_layer{self.end}", "all layers", caption, figure, rows)

    def _mean(self) -> Drawn:
        by_axis: dict[str, list[ReportSeries]] = {}
        for series in self.series:
            by_axis.setdefault(series.axis, []).append(series)
        found = {axis: report_tables.mean_over_layers(parts) for axis, parts in by_axis.items()}
        one = self._report(found, f"report_mean{self.end}", f"mean over layers{self.scale}")
        return Drawn("mean", one.name, "all layers", one.caption, one.figure, one.numbers)

    def _observers(self) -> Drawn:
        title = f"The model and observers of the same examples ({self.where}{self.scale})"
        text = f"Accuracy over the later half of the examples. {drawn.note(self.rows)}"
        panels = {
            f"layer {layer}": sources([r for r in self.rows if r["layer"] == layer]) for layer in self.layers
        }
        figure = models.plot_observers(panels, title, text)
        caption = (
            "What could be known: logistic regressions that see the same examples, given the layer's own "
            "activations (the ideal observer), the input embeddings, or the words."
        )
        return Drawn(
            "observers",
            f"report_observers{self.end}",
            "all layers",
            caption,
            figure,
            source_numbers(self.rows),
        )

    def exact(self, here: Sequence[ReportSeries], layer: int) -> Drawn:
        """What more than two levels add, against the number of examples."""
        about = {"layer": layer, "levels": self.levels}
        found = {s.axis: report_tables.level_curves(s) for s in here}
        names = {"exact": "accuracy", "cross_entropy": "cross_entropy", "correlation": "spearman"}
        panels = {new: _lines(found, old) for old, new in names.items()}
        title = f"Reporting levels ({self.where}, {self._group(layer)})"
        rows = [
            row
            for metric, lines in panels.items()
            for axis, line in lines.items()
            for row in curve_numbers(line, f"level_{metric}", "n", axis=axis, **about)
        ]
        figure = level_figures.plot_level_report(panels, self.levels, title, note(here))
        caption = "Report of exact levels: share right, cross-entropy over all digits, rank correlation."
        name = f"report_levels_layer{layer}{self.end}"
        return Drawn("levels", name, self._group(layer), caption, figure, rows)

    def confusion(self, here: Sequence[ReportSeries], layer: int) -> Drawn:
        """Digits by true level."""
        about = {"layer": layer, "levels": self.levels}
        tables = {s.axis: report_tables.confusion(s) for s in here}
        n = count((len(s.exps) for s in here), "experiment")
        text = f"Means over the later half of the examples, no interval. {n}."
        title = f"Digits by true level ({self.where}, {self._group(layer)})"
        figure = level_figures.plot_confusion(tables, title, text)
        rows = [
            {
                **about,
                "axis": axis,
                "metric": "probability",
                "variant": f"level {a}, digit {b}",
                "value": float(p),
            }
            for axis, table in tables.items()
            for (a, b), p in np.ndenumerate(table)
        ]
        caption = "Mean probability of each digit by true level: a diagonal where the model reports levels."
        name = f"report_confusion_layer{layer}{self.end}"
        return Drawn("confusion", name, self._group(layer), caption, figure, rows)

    def scores(self, here: Sequence[ReportSeries], layer: int) -> Drawn:
        """How scores become levels."""
        parts = {s.axis: [s.scores[s.labels == a] for a in range(self.levels)] for s in here}
        half = self.levels // 2
        middle = {axis: _between(by[:half], by[half:]) for axis, by in parts.items()}
        title = f"True scores by level ({self.where}, {self._group(layer)})"
        text = (
            "Quantiles of the fitting sentences, cut separately on both sides of the threshold (dashed). "
            "Every point is a sentence, so no interval; at the right n: their number."
        )
        figure = level_figures.plot_level_scores(
            {axis: [np.unique(level) for level in by] for axis, by in parts.items()}, middle, title, text
        )
        rows = [
            {
                "axis": axis, "layer": layer, "levels": self.levels, "metric": "mean_score",
                "variant": f"level {a}", "value": float(level.mean()) if len(level) else float("nan"),
            }
            for axis, by in parts.items()
            for a, level in enumerate(by)
        ]  # fmt: skip
        caption = "How scores become levels."
        name = f"report_level_scores_layer{layer}{self.end}"
        return Drawn("level_scores", name, self._group(layer), caption, figure, rows)


LEVEL_KINDS = {
    "levels": _LevelFigures.exact,
    "confusion": _LevelFigures.confusion,
    "level_scores": _LevelFigures.scores,
}
"""Figures of one layer that more than two levels add."""


def sources(rows: Sequence[Row]) -> dict[str, tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    """Return what answers -> names of axes, accuracy, low and high ends, from rows of report_table."""
    found = {}
    for column, name in SOURCES.items():
        if all(column in row for row in rows):
            keys = (column, f"{column}_low", f"{column}_high")
            found[name] = (
                [row["axis"] for row in rows],
                *(np.array([row.get(key, np.nan) for row in rows], float) for key in keys),
            )
    return found


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
