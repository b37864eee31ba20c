"""Figures over several models: the control effect against depth and size, the report beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.base.errors import UserError
from analysis.figures import models as charts
from analysis.figures.style import Curve
from analysis.pages.control import ControlView, by_mode_and_axis
from analysis.pages.drawn import Drawn, effect_curve, effect_numbers, note
from analysis.pages.report import ReportView, source_numbers, sources
from analysis.results.schema import CONTROL, REPORT
from analysis.results.store import Store
from analysis.tables import control as control_tables
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from analysis.tables.rows import Row
from configs.settings import MODES

GROUP = "several models"


@dataclass(frozen=True)
class ModelResults:
    """One model's tables with what places it among others."""

    name: str
    n_layers: int
    n_parameters: int
    rows: list[Row]


def other_stores(
    store: Store, names: Sequence[str] | None, kind: str, axes: Sequence[str] | None
) -> list[Store]:
    """Return the stores to compare: ``names``, or every model in the results folder with such runs.

    ``store`` itself comes first.

    Raises:
        UserError: a named model has no runs of any of ``axes``.
    """
    if names is None:
        folders = sorted(path.parent for path in store.root.glob(f"*/{store.folder.name}/") if path.is_dir())
        others = [Store(store.root, folder.name, store.dataset) for folder in folders]
        others = [other for other in others if other.folder != store.folder]
        return [store, *(other for other in others if _with_runs(other, axes, kind))]
    others = [Store(store.root, name, store.dataset) for name in names]
    others = [other for other in others if other.folder != store.folder]
    for other in others:
        if not _with_runs(other, axes, kind):
            what = f" of {', '.join(axes)}" if axes else ""
            raise UserError(f"--models {other.model}: there are no runs{what} in {other.folder}")
    return [store, *others]


def _compared(
    view: ControlView | ReportView, kind: str, results: Callable[[Store, Sequence[str] | None], ModelResults]
) -> list[ModelResults]:
    """Return the models that have comparable runs; none if there is no other model."""
    stores = other_stores(view.store, view.models, kind, view.axes)
    found = [results(store, view.axes) for store in stores] if len(stores) > 1 else []
    return [model for model in found if model.rows]


def control_results(store: Store, axes: Sequence[str] | None) -> ModelResults:
    """Return the effects of one model's binary control runs, at each series' largest N."""
    data = tables_read.load_control(store, _with_runs(store, axes, CONTROL))
    rows = control_tables.control_table(data)
    last = {(s.axis, s.layer, s.levels): int(s.shots[-1]) for s in data.series}
    kept = [r for r in rows if r["levels"] == 2 and r["n"] == last[r["axis"], r["layer"], 2]]
    return _placed(store, data.meta, kept)


def report_results(store: Store, axes: Sequence[str] | None) -> ModelResults:
    """Return the report table of one model's binary runs."""
    data = tables_read.load_report(store, _with_runs(store, axes, REPORT))
    return _placed(store, data.meta, [r for r in report_tables.report_table(data) if r["levels"] == 2])


def _with_runs(store: Store, axes: Sequence[str] | None, kind: str) -> list[str]:
    have = {unit.axis for unit in store.units(kind)}
    return sorted(have) if axes is None else [axis for axis in axes if axis in have]


def _placed(store: Store, meta: Mapping[str, Any], rows: list[Row]) -> ModelResults:
    name = str(meta.get("model_name", store.model))
    return ModelResults(name, _size(store, meta, "n_layers"), _size(store, meta, "n_parameters"), rows)


def _size(store: Store, meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"the runs in {store.folder} do not say {name}: leave the figures over models out")
    return value


def control_models(view: ControlView) -> Iterator[Drawn]:
    """Yield effect against depth, and at each model's middle-most layer against size."""
    models, dataset = _compared(view, CONTROL, control_results), view.store.dataset
    if not models:
        return
    every = [
        {**row, "model": m.name, "depth": row["layer"] / max(1, m.n_layers - 1), "size": m.n_parameters}
        for m in models
        for row in m.rows
    ]
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in every)]
    figure = charts.plot_depth(
        _by_depth(every, modes), f"Control at the largest N against depth ({dataset})", note(every)
    )
    caption = "The control effect of several models against the depth of the targeted layer."
    yield Drawn("models_depth", GROUP, caption, figure, effect_numbers(every))
    middle = [row for row in every if row["layer"] == _middle_layer(every, row)]
    figure = charts.plot_size(
        by_mode_and_axis(middle, modes, "size"),
        f"Control at the largest N against model size ({dataset})",
        f"The layer nearest to the middle that has runs of the axis. {note(middle)}",
    )
    caption = "The control effect against the number of parameters; the line is a fitted power law."
    yield Drawn("models_size", GROUP, caption, figure, effect_numbers(middle))


def _by_depth(every: Sequence[Row], modes: Sequence[str]) -> dict[tuple[str, str], dict[str, Curve]]:
    """Return (axis, mode) -> model -> curve over depth."""
    panels: dict[tuple[str, str], dict[str, Curve]] = {}
    for axis in dict.fromkeys(row["axis"] for row in every):
        for mode in modes:
            chosen = [row for row in every if (row["axis"], row["mode"]) == (axis, mode)]
            names = dict.fromkeys(row["model"] for row in chosen)
            panels[axis, mode] = {
                name: effect_curve([r for r in chosen if r["model"] == name], "depth") for name in names
            }
    return panels


def _middle_layer(every: Sequence[Row], row: Row) -> int:
    """Return the layer nearest to depth 1/2 among the runs of the row's model and axis."""
    same = [
        r for r in every if (r["model"], r["axis"], r["mode"]) == (row["model"], row["axis"], row["mode"])
    ]
    return min(same, key=lambda r: (abs(r["depth"] - 0.5), r["layer"]))["layer"]


def report_models(view: ReportView) -> Iterator[Drawn]:
    """Yield the ideal observer and the model's report, per axis and model."""
    models, dataset = _compared(view, REPORT, report_results), view.store.dataset
    if not models:
        return
    panels, found = {}, []
    for model in models:
        for layer in sorted({row["layer"] for row in model.rows}):
            here = [row for row in model.rows if row["layer"] == layer]
            panels[f"{model.name}, layer {layer}"] = sources(here)
            found += [{"model": model.name, **row} for row in here]
    title = f"Report and ideal observer of several models ({dataset})"
    text = f"Accuracy over the later half of the examples. {note(found)}"
    figure = charts.plot_observers(panels, title, text)
    caption = "Report accuracy beside that of the ideal observer and the other baselines, per axis and model."
    yield Drawn("models_observers", GROUP, caption, figure, source_numbers(found))
