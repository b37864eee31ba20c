"""The figures of one targeted layer: what the control runs of all its axes show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.axes.names import ENSEMBLE
from analysis.figures import control as figures_control
from analysis.figures import control_detail
from analysis.figures.style import Curve, count
from analysis.pages.drawn import (
    BANDS,
    Drawn,
    bars,
    curve,
    effect_curve,
    effect_numbers,
    n_text,
    note,
    numbers,
)
from analysis.results.store import Store
from analysis.tables import control as control_tables
from analysis.tables.read import ControlData
from analysis.tables.series import ControlSeries
from configs.settings import MODES

Row = dict[str, Any]


def modes_of(series: Sequence[ControlSeries]) -> list[str]:
    """Return the modes that have runs."""
    return [mode for mode in MODES if any(mode in s.modes for s in series)]


def by_mode_and_axis(rows: Sequence[Row], modes: Sequence[str], x: str) -> dict[str, dict[str, Curve]]:
    """Group rows of effects into mode -> axis -> curve over column ``x``."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    return {
        mode: {
            axis: effect_curve([row for row in rows if row["mode"] == mode and row["axis"] == axis], x)
            for axis in axes
        }
        for mode in modes
    }


class LayerFigures:
    """Draws the figures of one targeted layer and number of levels."""

    def __init__(
        self, store: Store, data: ControlData, rows: Sequence[Row], layer: int, levels: int,
        directions: Callable[[str, int], np.ndarray | None],
    ) -> None:  # fmt: skip
        """Take all control data, the rows of control_table, and ``directions(axis, layer)``: (D,) axes."""
        self.layer, self.data, self.directions = layer, data, directions
        self.series = [s for s in data.series if (s.layer, s.levels) == (layer, levels)]
        self.rows = [row for row in rows if (row["layer"], row["levels"]) == (layer, levels)]
        self.modes = modes_of(self.series)
        self.largest = max(int(s.shots[-1]) for s in self.series)
        self.end = f"layer{layer}" + ("" if levels == 2 else f"_levels{levels}")
        self.group = f"layer {layer}" + ("" if levels == 2 else f", {levels} levels")
        self.where = f"{store.model}, {store.dataset}, {self.group}"
        self.about = {"layer": layer, "levels": levels}

    def effect(self) -> Drawn:
        """Effect against the number of examples."""
        panels = by_mode_and_axis(self.rows, self.modes, "n")
        title = f"Control against examples in context ({self.where})"
        figure = figures_control.plot_control(panels, title, note(self.rows))
        caption = (
            "Control. Effect of wanting a high rather than a low score on the score itself. At N = 0 nothing "
            "has been shown, so d should be near 0."
        )
        return self._drawn("effect", "control", caption, figure, effect_numbers(self.rows))

    def readout(self) -> Drawn:
        """Effect on the axis of the same name of every layer."""
        rows = [
            {"axis": s.axis, "mode": mode, "n": int(s.shots[-1]), **row}
            for s in self.series
            for mode in s.modes
            for row in control_tables.layer_effects(s, mode)
        ]
        panels = by_mode_and_axis(rows, self.modes, "layer_read")
        title = f"The same axis read at every layer, N = {self.largest} ({self.where} targeted)"
        figure = figures_control.plot_readout(panels, self.layer, title, note(rows, BANDS))
        caption = (
            "Where the effect is visible: the axis of the same name, read at every layer; principal "
            "components are turned to agree with the targeted one."
        )
        return self._drawn("readout", "control_readout", caption, figure, effect_numbers(rows))

    def heatmap(self) -> Drawn:
        """Effect on every affected axis."""
        found = {mode: control_tables.affected_effects(self.series, mode) for mode in self.modes}
        targets, affected, _ = control_tables.matrix(found[self.modes[0]])
        title = f"Effect on the targeted and on other axes, N = {self.largest} ({self.where})"
        every = [{**row, "mode": mode} for mode, rows in found.items() for row in rows]
        text = f"{n_text(every)} Outlined: the targeted axis itself. Intervals: summary.csv."
        tables = {mode: control_tables.matrix(rows)[2] for mode, rows in found.items()}
        figure = figures_control.plot_heatmap(tables, targets, affected, title, text)
        caption = (
            "How specific control is: the effect on the targeted axis (outlined) and on others. Axes are not "
            "orthogonal across kinds, so some spread is expected."
        )
        return self._drawn("heatmap", "control_heatmap", caption, figure, effect_numbers(every))

    def scores(self) -> Drawn:
        """Histograms at the smallest and largest N."""
        cells = {s.axis: _histogram_cells(s) for s in self.series}
        title = f"Scores when a high or a low score was wanted ({self.where})"
        text = (
            f"{n_text(self.rows)} Dashed: means. Scores beyond the axis's ends are counted in the last bins."
        )
        figure = figures_control.plot_score_histograms(cells, self._originals(), title, text)
        rows = [
            _mean_row(values, axis=axis, mode=mode, n=n, variant=f"{want} wanted")
            for axis, by in cells.items()
            for (mode, n), pair in by.items()
            for want, values in zip(("high", "low"), pair, strict=True)
        ]
        caption = "Scores behind the effect, at the smallest and the largest N."
        return self._drawn("scores", "control_scores", caption, figure, rows)

    def density(self) -> Drawn:
        """Densities of the original and of the imitated scores."""
        imitated = {
            s.axis: {
                mode: tuple(s.target[:, -1, m, :, want].ravel() for want in (1, 0))
                for m, mode in enumerate(s.modes)
            }
            for s in self.series
        }
        title = f"Original and imitated scores, N = {self.largest} ({self.where})"
        text = "Kernel density estimates (Scott's rule); ticks: means; n: scores of each curve."
        figure = control_detail.plot_densities(self._originals(), imitated, title, text)
        rows = [
            _mean_row(values, axis=axis, mode=mode, n=self.largest, variant=f"{want} wanted")
            for axis, by_mode in imitated.items()
            for mode, pair in by_mode.items()
            for want, values in zip(("high", "low"), pair, strict=True)
        ]
        rows += [
            _mean_row(values, axis=axis, variant="original") for axis, values in self._originals().items()
        ]
        caption = "Scores of the original sentences against those that were reached at the largest N."
        return self._drawn("density", "control_density", caption, figure, rows)

    def accumulation(self) -> Drawn | None:
        """The target layer's axis at every layer; None if no axis has a direction (lr_ensemble)."""
        directed = [s for s in self.series if s.axis != ENSEMBLE]
        if not directed:
            return None
        rows = [
            {"axis": s.axis, "mode": mode, "n": int(s.shots[-1]), "variant": row["want"], **row}
            for s in directed
            for mode in s.modes
            for row in control_tables.accumulation_rows(s, mode)
        ]
        panels = {
            s.axis: {
                mode: tuple(_wanted(rows, s.axis, mode, want) for want in ("high", "low")) for mode in s.modes
            }
            for s in directed
        }
        title = f"The target layer's axis read at every layer, N = {self.largest} ({self.where})"
        figure = control_detail.plot_accumulation(panels, self.layer, title, note(rows, BANDS))
        caption = (
            "How the effect builds up over layers: position of the residual stream on the targeted layer's "
            "own axis, in standard deviations of that layer's scores, when high and when low was wanted."
        )
        found = numbers(rows, "position")
        return self._drawn("accumulation", "control_accumulation", caption, figure, found)

    def precision(self) -> Drawn:
        """Control precision."""
        rows = self._per_series(control_tables.precision_rows)
        variants = ("without target", "with target")
        panels = {
            mode: {v: bars([r for r in rows if (r["mode"], r["variant"]) == (mode, v)]) for v in variants}
            for mode in self.modes
        }
        title = f"Control precision, N = {self.largest} ({self.where})"
        others = count((row["others"] for row in rows), "other axis").replace("axiss", "axes")
        text = (
            f"|d on the target| / mean |d on lr and the PCs| ({others}), the target left out of the mean or "
            f"included. 1: no precision. {note(self.rows)}"
        )
        figure = control_detail.plot_precision(panels, title, text)
        caption = (
            "Control precision: how much more the targeted axis moves than the others. Where no axis moves, "
            "it is a ratio of noise: read it together with the effects."
        )
        return self._drawn("precision", "control_precision", caption, figure, numbers(rows, "precision"))

    def cosine(self) -> Drawn | None:
        """Neural-difference cosine; None if no directions are on disk."""
        rows = [
            {"mode": mode, **control_tables.cosine_row(s, mode, direction)}
            for s in self.series
            if (direction := self.directions(s.axis, self.layer)) is not None
            for mode in s.modes
        ]
        if not rows:
            return None
        panels = {mode: bars([row for row in rows if row["mode"] == mode]) for mode in self.modes}
        title = f"Does the hidden state move along the axis? N = {self.largest} ({self.where})"
        text = f"Cosine between the mean change of the hidden state and the axis. {note(rows)}"
        figure = control_detail.plot_cosine_bars(panels, title, text)
        caption = "Neural-difference cosine: 1 if the hidden state moves along the targeted axis only."
        return self._drawn("cosine", "control_cosine", caption, figure, numbers(rows, "cosine"))

    # ------------------------------------------------------------ small parts

    def _drawn(self, kind: str, name: str, caption: str, figure: Any, rows: list[Row]) -> Drawn:
        found = [{**self.about, **row} for row in rows]
        return Drawn(kind, f"{name}_{self.end}", self.group, caption, figure, found)

    def _per_series(self, of: Callable[[ControlSeries, str], list[Row]]) -> list[Row]:
        return [{"mode": mode, **row} for s in self.series for mode in s.modes for row in of(s, mode)]

    def _originals(self) -> Mapping[str, np.ndarray]:
        known = self.data.originals
        return {s.axis: known[s.axis, self.layer] for s in self.series if (s.axis, self.layer) in known}


KINDS: dict[str, Callable[[LayerFigures], Drawn | None]] = {
    "effect": LayerFigures.effect,
    "readout": LayerFigures.readout,
    "heatmap": LayerFigures.heatmap,
    "scores": LayerFigures.scores,
    "density": LayerFigures.density,
    "accumulation": LayerFigures.accumulation,
    "precision": LayerFigures.precision,
    "cosine": LayerFigures.cosine,
}
"""Figures of one layer."""


def across_layers(store: Store, data: ControlData, rows: Sequence[Row]) -> Iterator[Drawn]:
    """Yield the figures over the layer that was targeted, for every number of levels with several layers."""
    for levels in sorted({s.levels for s in data.series}):
        chosen = [s for s in data.series if s.levels == levels]
        if len({s.layer for s in chosen}) < 2:
            continue
        end = "" if levels == 2 else f"_levels{levels}"
        where = f"{store.model}, {store.dataset}" + ("" if levels == 2 else f", {levels} levels")
        last = max(int(s.shots[-1]) for s in chosen)
        at_last = [row for row in rows if row["levels"] == levels and row["n"] == last]
        title = f"Control against the layer that is targeted, N = {last} ({where})"
        panels = by_mode_and_axis(at_last, modes_of(chosen), "layer")
        figure = figures_control.plot_effect_by_target(panels, title, note(at_last))
        caption = "Control at the largest N, by the layer that the scores came from."
        found = effect_numbers(at_last)
        yield Drawn("layers", f"control_by_layer{end}", "all layers", caption, figure, found)
        yield _groups(chosen, where, end, last)


def _groups(chosen: Sequence[ControlSeries], where: str, end: str, last: int) -> Drawn:
    modes = modes_of(chosen)
    found = {mode: control_tables.group_rows(chosen, mode) for mode in modes}
    panels = {
        mode: {
            name: curve([row for row in rows if row["group"] == name], "layer")
            for name in dict.fromkeys(row["group"] for row in rows)
        }
        for mode, rows in found.items()
    }
    every = [{**row, "mode": mode, "variant": row["group"]} for mode, rows in found.items() for row in rows]
    members = "; ".join(f"{name}: {', '.join(axes)}" for name, axes in control_tables.GROUPS.items())
    title = f"Control by kind of axis, N = {last} ({where})"
    figure = control_detail.plot_groups(
        panels, title, f"Mean d over the axes that have runs ({members}). {note(every)}"
    )
    rows = [{**row, "levels": chosen[0].levels} for row in numbers(every, "mean_cohens_d")]
    caption = "Control at the largest N against the targeted layer, for LR and for early and late PCs."
    return Drawn("layers", f"control_groups{end}", "all layers", caption, figure, rows)


def _wanted(rows: Sequence[Row], axis: str, mode: str, want: str) -> Curve:
    return curve([r for r in rows if (r["axis"], r["mode"], r["want"]) == (axis, mode, want)], "layer_read")


def _histogram_cells(series: ControlSeries) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Return (mode, N) -> scores when high was wanted, when low was, at the smallest and largest N."""
    ends = sorted({0, len(series.shots) - 1})
    return {
        (mode, int(series.shots[s])): tuple(series.target[:, s, m, :, want].ravel() for want in (1, 0))
        for m, mode in enumerate(series.modes)
        for s in ends
    }


def _mean_row(values: np.ndarray, **about: Any) -> Row:
    known = values[np.isfinite(values)]
    middle = float(known.mean()) if known.size else float("nan")
    return {**about, "metric": "mean_score", "value": middle, "trials": int(known.size)}
