"""Read the cached units of a study: which there are, whether their settings agree, and their arrays.

Shape letters as in ``analysis.tables.series``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.axes.ensemble import fit_ensemble
from analysis.axes.names import ENSEMBLE, LR, axis_order
from analysis.base.errors import UserError, unknown
from analysis.results import store as results
from analysis.results.commands import no_axes, no_runs
from analysis.results.schema import check_axes, check_split, check_unit
from analysis.results.store import Store, UnitKey
from analysis.tables.series import (
    ControlSeries,
    Records,
    ReportSeries,
    control_series,
    report_series,
)

log = logging.getLogger(__name__)

PER_UNIT = ("axis", "layer", "exp", "levels")
"""Identity fields that name a unit; two units of one figure may differ in nothing else."""


@dataclass(frozen=True)
class ControlData:
    """Everything that the control figures read."""

    series: tuple[ControlSeries, ...]
    originals: Mapping[tuple[str, int], np.ndarray]
    """(axis, layer) -> (n_trial,) scores of the original trial sentences, where they are on disk."""
    meta: Mapping[str, Any]
    """Meta data of the first unit: settings and provenance that all units share."""


@dataclass(frozen=True)
class ReportData:
    """Everything that the report figures read."""

    series: tuple[ReportSeries, ...]
    meta: Mapping[str, Any]


def load_control(
    store: Store, axes: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> ControlData:
    """Read the control units of ``store``; ``axes`` and ``layers`` narrow the choice.

    Raises:
        UserError: nothing to read (the message holds the command that makes it), or units were made
            with differing settings (the message names the field).
    """
    targeted = {unit.axis for unit in store.units("imit")}
    build = functools.partial(control_series, store, targeted)
    series, meta = _load(store, "imit", axes, layers, build)
    return ControlData(series, _original_scores(store, series), meta)


def load_report(
    store: Store, axes: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> ReportData:
    """Read the report units of ``store``; arguments and errors as for :func:`load_control`."""
    return ReportData(*_load(store, "pred", axes, layers, report_series))


def only_modes(data: ControlData, modes: Sequence[str]) -> ControlData:
    """Return ``data`` with the trials of ``modes`` alone."""
    have = sorted({m for s in data.series for m in s.modes})
    missing = [mode for mode in modes if mode not in have]
    if missing:
        raise unknown("mode", missing[0], have, "the runs on disk; the setting is modes")
    series = tuple(s.only(modes) for s in data.series if set(modes) & set(s.modes))
    return replace(data, series=series)


# ---------------------------------------------------------------- which units

Build = Callable[[Sequence[UnitKey], Records], Any]


def _load(
    store: Store,
    kind: str,
    axes: Sequence[str] | None,
    layers: Sequence[int] | None,
    build: Build,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Read one (axis, layer) after the other and keep what ``build(keys, records)`` makes of it."""
    found, first = [], None
    for keys in _groups(store, kind, axes, layers):
        records = [_unit(store, key) for key in keys]
        first = first or (keys[0], records[0]["meta"])
        for key, record in zip(keys, records, strict=True):
            _same_settings(store, first, (key, record["meta"]))
        found.append(build(keys, records))
    return tuple(found), first[1]


def _unit(store: Store, key: UnitKey) -> Mapping[str, Any]:
    record = results.read(store.unit(key))
    check_unit(store.unit(key), key, record)
    return record


def read_axes(store: Store, layer: int) -> Mapping[str, Any]:
    """Read and check the axes file of one layer."""
    record = results.read(store.axes(layer))
    check_axes(store.axes(layer), record)
    return record


def read_split(store: Store) -> Mapping[str, Any]:
    """Read and check the split."""
    record = results.read(store.split)
    check_split(store.split, record)
    return record


def _groups(
    store: Store, kind: str, axes: Sequence[str] | None, layers: Sequence[int] | None
) -> list[list[UnitKey]]:
    """Return the chosen units, one group per (axis, layer, levels), experiments in order."""
    units = store.units(kind)
    if not units:
        raise no_runs(store, kind, axes[0] if axes else None, layers) if store.layers() else no_axes(store)
    for axis in axes or ():
        if not any(u.axis == axis and (layers is None or u.layer in layers) for u in units):
            raise no_runs(store, kind, axis, layers, units)
    units = [u for u in units if axes is None or u.axis in axes]
    for layer in layers or ():
        if not any(u.layer == layer for u in units):
            raise no_runs(store, kind, units[0].axis, [layer], units)
    chosen: dict[tuple[str, int, int], list[UnitKey]] = {}
    for unit in units:
        if layers is None or unit.layer in layers:
            chosen.setdefault((unit.axis, unit.layer, unit.levels), []).append(unit)
    order = sorted(chosen, key=lambda part: (part[2], axis_order(part[0]), part[1]))
    _warn_of_gaps(order)
    return [chosen[part] for part in order]


def _warn_of_gaps(parts: Sequence[tuple[str, int, int]]) -> None:
    for layer, levels in sorted({part[1:] for part in parts}):
        here = {axis for axis, *place in parts if tuple(place) == (layer, levels)}
        lacking = {axis for axis, _, n in parts if n == levels} - here
        if lacking:
            names = ", ".join(sorted(lacking))
            log.warning("layer %d has no runs of %d levels for %s: left out there", layer, levels, names)


Read = tuple[UnitKey, Mapping[str, Any]]


def _same_settings(store: Store, first: Read, other: Read) -> None:
    (key, old), (key_other, new) = ((key, meta["identity"]) for key, meta in (first, other))
    for field in sorted({*old, *new} - set(PER_UNIT)):
        if old.get(field) != new.get(field):
            raise UserError(
                f"runs of one figure were made with different settings: {field} is {old.get(field)!r} in "
                f"{store.unit(key).name} and {new.get(field)!r} in {store.unit(key_other).name}; choose "
                "with --axes and --layer, or redo one of them with --overwrite"
            )


def _original_scores(store: Store, series: Iterable[ControlSeries]) -> dict[tuple[str, int], np.ndarray]:
    """Return the trial sentences' own scores; empty where split or axes are not on disk."""
    if not store.split.exists():
        return {}
    split = read_split(store)
    rows, found = split["trial_rows"], {}
    for layer in sorted({s.layer for s in series if store.axes(s.layer).exists()}):
        axes = read_axes(store, layer)
        columns = {s.axis: axes["names"].index(s.axis) for s in series if s.axis in axes["names"]}
        found |= {(name, layer): axes["scores"][rows, column] for name, column in columns.items()}
    members = [s.layer for s in series if s.axis == ENSEMBLE]
    if members:
        by_layer = [read_axes(store, layer) for layer in store.layers()]
        scores = np.stack([a["scores"][:, a["names"].index(LR)] for a in by_layer], axis=1)
        ensemble = fit_ensemble(scores, split["axis_rows"], by_layer[0]["meta"]["identity"]["threshold"])
        found |= {(ENSEMBLE, layer): ensemble.scores[rows] for layer in members}
    return found
