"""The figures of control: what the runs of all axes show, layer by layer and over the targeted layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.axes.names import ENSEMBLE
from analysis.figures import control as charts
from analysis.figures import control_detail as details
from analysis.figures.control_detail import Sides
from analysis.figures.style import Curve, count
from analysis.pages.drawn import (
    BANDS,
    Drawn,
    bars,
    curve,
    effect_curve,
    effect_numbers,
    levels_in_words,
    n_text,
    note,
    numbers,
)
from analysis.results.schema import Axes
from analysis.results.store import Store, levels_in_name
from analysis.tables import control as tables
from analysis.tables.read import ControlData, read_axes
from analysis.tables.rows import Row
from analysis.tables.series import ControlSeries
from configs.settings import MODES


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


# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class ControlView:
    """What the figures of control are drawn from."""

    store: Store
    data: ControlData
    rows: Sequence[Row]
    """Of control_table."""
    axes: Sequence[str] | None = None
    """Axes that other models are compared on; None: all."""
    models: Sequence[str] | None = None
    """Models to compare with; None: all with runs on the dataset."""

    @cached_property
    def targets(self) -> list[Target]:
        """The targeted layers, each number of levels apart."""
        directions = direction_reader(self.store)
        places = sorted({(s.layer, s.levels) for s in self.data.series})
        return [Target(self, layer, levels, directions) for layer, levels in places]


Directions = Callable[[str, int], np.ndarray | None]


def direction_reader(store: Store) -> Directions:
    """Return a function of (axis, layer) that gives the unit direction (D,), None where there is none."""

    @lru_cache(maxsize=2)
    def axes_of(layer: int) -> Axes | None:
        return read_axes(store, layer) if store.axes(layer).exists() else None

    def direction(axis: str, layer: int) -> np.ndarray | None:
        axes = axes_of(layer)
        if axes is None or axis not in axes.names:
            return None
        return axes.directions[axes.names.index(axis)].astype(np.float64)

    return direction


class Target:
    """One targeted layer and number of levels, with the runs of all its axes."""

    def __init__(self, view: ControlView, layer: int, levels: int, directions: Directions) -> None:
        """Take what belongs to ``layer`` and ``levels`` from the view."""
        self.layer, self.levels, self.directions = layer, levels, directions
        self.series = [s for s in view.data.series if (s.layer, s.levels) == (layer, levels)]
        self.rows = [row for row in view.rows if (row["layer"], row["levels"]) == (layer, levels)]
        self.modes = modes_of(self.series)
        self.largest = max(int(s.shots[-1]) for s in self.series)
        self.group = f"layer {layer}{levels_in_words(levels)}"
        self.where = f"{view.store.model}, {view.store.dataset}, {self.group}"
        known = view.data.originals
        self.originals = {s.axis: known[s.axis, layer] for s in self.series if (s.axis, layer) in known}

    def drawn(self, name: str, caption: str, figure: Figure, rows: Sequence[Row]) -> Drawn:
        """Return a figure of this layer with its numbers."""
        about = {"layer": self.layer, "levels": self.levels}
        name = f"{name}_layer{self.layer}{levels_in_name(self.levels)}"
        return Drawn(name, self.group, caption, figure, [{**about, **row} for row in rows])

    def each(
        self, of: Callable[[ControlSeries, str], list[Row]], among: Sequence[ControlSeries] | None = None
    ) -> list[Row]:
        """Return the rows ``of(series, mode)`` of every axis and mode, which are about its largest N."""
        return [
            {"axis": s.axis, "mode": mode, "n": int(s.shots[-1]), **row}
            for s in (self.series if among is None else among)
            for mode in s.modes
            for row in of(s, mode)
        ]


def each_target(draw: Callable[[Target], Drawn | None]) -> Callable[[ControlView], Iterator[Drawn]]:
    """Turn a function that draws one targeted layer into one that draws all of them."""

    @functools.wraps(draw)
    def every(view: ControlView) -> Iterator[Drawn]:
        yield from filter(None, map(draw, view.targets))

    return every


# ---------------------------------------------------------------- figures of one layer


@each_target
def effect(here: Target) -> Drawn:
    """Effect against the number of examples."""
    panels = by_mode_and_axis(here.rows, here.modes, "n")
    title = f"Control against examples in context ({here.where})"
    figure = charts.plot_control(panels, title, note(here.rows))
    caption = (
        "Control. Effect of wanting a high rather than a low score on the score itself. At N = 0 nothing "
        "has been shown, so d should be near 0."
    )
    return here.drawn("control", caption, figure, effect_numbers(here.rows))


@each_target
def readout(here: Target) -> Drawn:
    """Effect on the axis of the same name of every layer."""
    rows = here.each(tables.layer_effects)
    panels = by_mode_and_axis(rows, here.modes, "layer_read")
    title = f"The same axis read at every layer, N = {here.largest} ({here.where} targeted)"
    figure = charts.plot_readout(panels, here.layer, title, note(rows, BANDS))
    caption = (
        "Where the effect is visible: the axis of the same name, read at every layer; principal "
        "components are turned to agree with the targeted one."
    )
    return here.drawn("control_readout", caption, figure, effect_numbers(rows))


@each_target
def heatmap(here: Target) -> Drawn:
    """Effect on every affected axis."""
    found = {mode: tables.affected_effects(here.series, mode) for mode in here.modes}
    targets, affected, _ = tables.matrix(found[here.modes[0]])
    panels = {mode: tables.matrix(rows)[2] for mode, rows in found.items()}
    title = f"Effect on the targeted and on other axes, N = {here.largest} ({here.where})"
    every = [{**row, "mode": mode} for mode, rows in found.items() for row in rows]
    text = f"{n_text(every)} Outlined: the targeted axis itself. Intervals: summary.csv."
    figure = charts.plot_heatmap(panels, targets, affected, title, text)
    caption = (
        "How specific control is: the effect on the targeted axis (outlined) and on others. Axes are not "
        "orthogonal across kinds, so some spread is expected."
    )
    return here.drawn("control_heatmap", caption, figure, effect_numbers(every))


@each_target
def scores(here: Target) -> Drawn:
    """Histograms at the smallest and largest N."""
    cells = {s.axis: _histogram_cells(s) for s in here.series}
    title = f"Scores when a high or a low score was wanted ({here.where})"
    text = f"{n_text(here.rows)} Dashed: means. Scores beyond the axis's ends are counted in the last bins."
    figure = charts.plot_score_histograms(cells, here.originals, title, text)
    rows = [
        row
        for axis, by in cells.items()
        for (mode, n), pair in by.items()
        for row in _mean_rows(pair, axis=axis, mode=mode, n=n)
    ]
    caption = "Scores behind the effect, at the smallest and the largest N."
    return here.drawn("control_scores", caption, figure, rows)


@each_target
def density(here: Target) -> Drawn:
    """Densities of the original and of the imitated scores."""
    imitated = {s.axis: {mode: _sides(s, mode, -1) for mode in s.modes} for s in here.series}
    title = f"Original and imitated scores, N = {here.largest} ({here.where})"
    text = "Kernel density estimates (Scott's rule); ticks: means; n: scores of each curve."
    figure = details.plot_densities(here.originals, imitated, title, text)
    rows = [
        row
        for axis, by_mode in imitated.items()
        for mode, pair in by_mode.items()
        for row in _mean_rows(pair, axis=axis, mode=mode, n=here.largest)
    ]
    rows += [_mean_row(values, axis=axis, variant="original") for axis, values in here.originals.items()]
    caption = "Scores of the original sentences against those that were reached at the largest N."
    return here.drawn("control_density", caption, figure, rows)


@each_target
def accumulation(here: Target) -> Drawn | None:
    """The target layer's axis at every layer; None if no axis has a direction (lr_ensemble)."""
    directed = [s for s in here.series if s.axis != ENSEMBLE]
    if not directed:
        return None
    rows = [{"variant": row["want"], **row} for row in here.each(tables.accumulation_rows, directed)]
    panels = {s.axis: {mode: _wanted(rows, s.axis, mode) for mode in s.modes} for s in directed}
    title = f"The target layer's axis read at every layer, N = {here.largest} ({here.where})"
    figure = details.plot_accumulation(panels, here.layer, title, note(rows, BANDS))
    caption = (
        "How the effect builds up over layers: position of the residual stream on the targeted layer's "
        "own axis, in standard deviations of that layer's scores, when high and when low was wanted."
    )
    return here.drawn("control_accumulation", caption, figure, numbers(rows, "position"))


@each_target
def precision(here: Target) -> Drawn:
    """Control precision."""
    rows = here.each(tables.precision_rows)
    variants = ("without target", "with target")
    panels = {
        mode: {v: bars([r for r in rows if (r["mode"], r["variant"]) == (mode, v)]) for v in variants}
        for mode in here.modes
    }
    title = f"Control precision, N = {here.largest} ({here.where})"
    others = count((row["others"] for row in rows), "other axis").replace("axiss", "axes")
    text = (
        f"|d on the target| / mean |d on lr and the PCs| ({others}), the target left out of the mean or "
        f"included. 1: no precision. {note(here.rows)}"
    )
    figure = details.plot_precision(panels, title, text)
    caption = (
        "Control precision: how much more the targeted axis moves than the others. Where no axis moves, "
        "it is a ratio of noise: read it together with the effects."
    )
    return here.drawn("control_precision", caption, figure, numbers(rows, "precision"))


@each_target
def cosine(here: Target) -> Drawn | None:
    """Neural-difference cosine; None if no directions are on disk."""
    rows = [
        {"mode": mode, **tables.cosine_row(s, mode, direction)}
        for s in here.series
        if (direction := here.directions(s.axis, here.layer)) is not None
        for mode in s.modes
    ]
    if not rows:
        return None
    panels = {mode: bars([row for row in rows if row["mode"] == mode]) for mode in here.modes}
    title = f"Does the hidden state move along the axis? N = {here.largest} ({here.where})"
    text = f"Cosine between the mean change of the hidden state and the axis. {note(rows)}"
    figure = details.plot_cosine_bars(panels, title, text)
    caption = "Neural-difference cosine: 1 if the hidden state moves along the targeted axis only."
    return here.drawn("control_cosine", caption, figure, numbers(rows, "cosine"))


# ---------------------------------------------------------------- figures over layers


def across_layers(view: ControlView) -> Iterator[Drawn]:
    """Yield the figures over the layer that was targeted, for every number of levels with several layers."""
    for levels in sorted({s.levels for s in view.data.series}):
        chosen = [s for s in view.data.series if s.levels == levels]
        if len({s.layer for s in chosen}) < 2:
            continue
        end = levels_in_name(levels)
        where = f"{view.store.model}, {view.store.dataset}{levels_in_words(levels)}"
        last = max(int(s.shots[-1]) for s in chosen)
        at_last = [row for row in view.rows if row["levels"] == levels and row["n"] == last]
        title = f"Control against the layer that is targeted, N = {last} ({where})"
        panels = by_mode_and_axis(at_last, modes_of(chosen), "layer")
        figure = charts.plot_effect_by_target(panels, title, note(at_last))
        caption = "Control at the largest N, by the layer that the scores came from."
        yield Drawn(f"control_by_layer{end}", "all layers", caption, figure, effect_numbers(at_last))
        yield _groups(chosen, where, end, last)


def _groups(chosen: Sequence[ControlSeries], where: str, end: str, last: int) -> Drawn:
    modes = modes_of(chosen)
    found = {mode: tables.group_rows(chosen, mode) for mode in modes}
    panels = {
        mode: {
            name: curve([row for row in rows if row["group"] == name], "layer")
            for name in dict.fromkeys(row["group"] for row in rows)
        }
        for mode, rows in found.items()
    }
    every = [{**row, "mode": mode, "variant": row["group"]} for mode, rows in found.items() for row in rows]
    members = "; ".join(f"{name}: {', '.join(axes)}" for name, axes in tables.GROUPS.items())
    title = f"Control by kind of axis, N = {last} ({where})"
    figure = details.plot_groups(
        panels, title, f"Mean d over the axes that have runs ({members}). {note(every)}"
    )
    rows = [{**row, "levels": chosen[0].levels} for row in numbers(every, "mean_cohens_d")]
    caption = "Control at the largest N against the targeted layer, for LR and for early and late PCs."
    return Drawn(f"control_groups{end}", "all layers", caption, figure, rows)


def _wanted(rows: Sequence[Row], axis: str, mode: str) -> tuple[Curve, Curve]:
    """Return the curves over layers when high was wanted, and when low was."""
    here = [row for row in rows if (row["axis"], row["mode"]) == (axis, mode)]
    high, low = ([row for row in here if row["want"] == want] for want in ("high", "low"))
    return curve(high, "layer_read"), curve(low, "layer_read")


def _sides(series: ControlSeries, mode: str, s: int) -> Sides:
    """Return the scores when high was wanted, and when low was, at the s-th N."""
    here = series.target[:, s, series.modes.index(mode)]  # (E, F, W)
    return here[..., 1].ravel(), here[..., 0].ravel()


def _histogram_cells(series: ControlSeries) -> dict[tuple[str, int], Sides]:
    """Return (mode, N) -> scores by what was wanted, at the smallest and the largest N."""
    ends = sorted({0, len(series.shots) - 1})
    return {(mode, int(series.shots[s])): _sides(series, mode, s) for mode in series.modes for s in ends}


def _mean_rows(pair: Sides, **about: Any) -> list[Row]:
    """Return the mean when high was wanted and that when low was."""
    named = zip(("high", "low"), pair, strict=True)
    return [_mean_row(values, **about, variant=f"{want} wanted") for want, values in named]


def _mean_row(values: np.ndarray, **about: Any) -> Row:
    known = values[np.isfinite(values)]
    middle = float(known.mean()) if known.size else float("nan")
    return {**about, "metric": "mean_score", "value": middle, "trials": int(known.size)}
