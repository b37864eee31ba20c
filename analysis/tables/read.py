"""Read the cached units of a study: which there are, whether their settings agree, and their arrays.

Shape letters as in ``analysis.tables.series``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from analysis.axes.ensemble import fit_ensemble
from analysis.axes.names import ENSEMBLE, LR, axis_order
from analysis.base.errors import UserError, unknown
from analysis.base.files import DamagedFile
from analysis.base.seeds import fingerprint
from analysis.results.commands import no_axes, no_runs
from analysis.results.schema import CONTROL, REPORT, Axes, ControlUnit, ReportUnit, Split
from analysis.results.store import PER_UNIT, Store, UnitKey, read_as, read_meta
from analysis.tables.series import ControlSeries, ReportSeries, control_series, report_series
from configs.settings import ARMS, TRUE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControlData:
    """Everything that the control figures read."""

    series: tuple[ControlSeries, ...]
    """Of the true arm."""
    arms: Mapping[str, tuple[ControlSeries, ...]]
    """Arm -> the series of the axes and layers that it was run for, the true one among them."""
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
    targeted = {unit.axis for unit in store.units(CONTROL)}
    build = partial(_by_arm, targeted)
    found, meta = _load(store, CONTROL, ControlUnit, axes, layers, build)
    arms = {arm: tuple(one[arm] for one in found if arm in one) for arm in ARMS}
    return ControlData(arms[TRUE], arms, _original_scores(store, arms[TRUE]), meta)


def _by_arm(
    targeted: Collection[str], keys: Sequence[UnitKey], units: Sequence[ControlUnit]
) -> dict[str, ControlSeries]:
    """Return the series of every arm that a unit has trials of."""
    there = [arm for arm in ARMS if any(arm in unit.arms for unit in units)]
    return {arm: control_series(targeted, keys, units, arm) for arm in there}


def load_report(
    store: Store, axes: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> ReportData:
    """Read the report units of ``store``; arguments and errors as for :func:`load_control`."""
    return ReportData(*_load(store, REPORT, ReportUnit, axes, layers, report_series))


def only_modes(data: ControlData, modes: Sequence[str]) -> ControlData:
    """Return ``data`` with the trials of ``modes`` alone."""
    have = sorted({m for s in data.series for m in s.modes})
    missing = [mode for mode in modes if mode not in have]
    if missing:
        raise unknown("mode", missing[0], have, "the runs on disk; the setting is modes")
    arms = {
        arm: tuple(s.only(modes) for s in series if set(modes) & set(s.modes))
        for arm, series in data.arms.items()
    }
    return replace(data, series=arms[TRUE], arms=arms)


# ---------------------------------------------------------------- which units

Unit = TypeVar("Unit", ControlUnit, ReportUnit)
Series = TypeVar("Series")


def _load(
    store: Store,
    kind: str,
    record: type[Unit],
    axes: Sequence[str] | None,
    layers: Sequence[int] | None,
    build: Callable[[Sequence[UnitKey], Sequence[Unit]], Series],
) -> tuple[tuple[Series, ...], Mapping[str, Any]]:
    """Read one (axis, layer) after the other and keep what ``build(keys, units)`` makes of it."""
    found: list[Series] = []
    first: Read | None = None
    for keys in _groups(store, kind, axes, layers):
        units = [read_as(record, store.unit(key)) for key in keys]
        for key, unit in zip(keys, units, strict=True):
            first = first or (key, unit.meta)
            _same_settings(store, first, (key, unit.meta))
        _same_sizes(store, keys, units)
        found.append(build(keys, units))
    assert first is not None  # _groups raises where there is nothing
    _same_preparation(store, first)
    return tuple(found), first[1]


def _same_sizes(store: Store, keys: Sequence[UnitKey], units: Sequence[ControlUnit | ReportUnit]) -> None:
    """Raise DamagedFile if hidden states of one series differ in size; newer units tell it themselves."""
    sizes = [{len(moved) for moved in getattr(unit, "difference", {}).values()} for unit in units]
    for key, size in zip(keys, sizes, strict=True):
        if size != sizes[0]:
            raise DamagedFile(store.unit(key), f"its hidden size is not that of {store.unit(keys[0]).name}")


def read_axes(store: Store, layer: int) -> Axes:
    """Read and check the axes file of one layer."""
    return read_as(Axes, store.axes(layer))


def read_split(store: Store) -> Split:
    """Read and check the split."""
    return read_as(Split, store.split)


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


def _same_preparation(store: Store, first: Read) -> None:
    """Raise UserError if units and the axes beside them are of different preparations."""
    key, meta = first
    made_with = meta["identity"].get("preparation")
    if made_with is None or not store.axes(key.layer).exists():
        return  # one model reads the scores of another: their preparation lies in the other's folder
    if made_with != fingerprint(read_meta(store.axes(key.layer))["identity"]):
        raise UserError(
            f"{store.unit(key)} was made with other axes than those in {store.axes(key.layer).name}: redo "
            "one of them with --overwrite, or choose another --results folder"
        )


def _original_scores(store: Store, series: Iterable[ControlSeries]) -> dict[tuple[str, int], np.ndarray]:
    """Return the trial sentences' own scores; empty where split or axes are not on disk."""
    if not store.split.exists():
        return {}
    split, series = read_split(store), list(series)
    found: dict[tuple[str, int], np.ndarray] = {}
    for layer in sorted({s.layer for s in series if store.axes(s.layer).exists()}):
        axes = _axes_of(store, layer, split)
        columns = {s.axis: axes.names.index(s.axis) for s in series if s.axis in axes.names}
        found |= {(name, layer): axes.scores[split.trial_rows, column] for name, column in columns.items()}
    members = [s.layer for s in series if s.axis == ENSEMBLE]
    by_layer = [_axes_of(store, layer, split) for layer in store.layers()] if members else []
    by_layer = [axes for axes in by_layer if LR in axes.names]
    if by_layer:
        scores = np.stack([axes.scores[:, axes.names.index(LR)] for axes in by_layer], axis=1)
        threshold = str(by_layer[0].meta["identity"].get("threshold"))
        ensemble = fit_ensemble(scores, split.trial_rows, threshold)
        found |= {(ENSEMBLE, layer): ensemble.scores[split.trial_rows] for layer in members}
    return found


def _axes_of(store: Store, layer: int, split: Split) -> Axes:
    """Return the axes of one layer, after checking that they are those of the split."""
    axes = read_axes(store, layer)
    differ = [
        name
        for name in axes.meta["identity"].keys() & split.meta["identity"].keys()
        if axes.meta["identity"][name] != split.meta["identity"][name]
    ]
    if differ or len(axes.scores) != len(split.sentences):
        shown = ", ".join(sorted(differ)) or "other sentences"
        raise UserError(
            f"{store.axes(layer)} does not belong to {store.split.name} ({shown}): prepare again with "
            "main_prep.py --overwrite"
        )
    return axes
