"""Turn the cached units of a study into arrays, with NaN where a trial or a run is missing.

Shape letters, besides those of the repository:
    E experiments   S values of N   M modes   F label assignments (0 as they are, 1 flipped)
    W wanted side (0 low, 1 high)   P positions of a report sequence
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import store as results
from analysis.missing import no_axes, no_runs
from analysis.store import Store, UnitKey
from utils import UserError, unknown

log = logging.getLogger(__name__)

MODES = ("active", "inactive")
SHOWN_PCS = (1, 2, 4, 8, 32, 128, 512)
"""Principal components that are kept as affected axes, besides those that were targeted."""
PER_UNIT = ("axis", "layer", "exp")
"""Identity fields that name a unit; two units of one figure may differ in nothing else."""


@dataclass(frozen=True)
class ControlSeries:
    """All control trials of one targeted axis of one layer."""

    axis: str
    layer: int
    exps: np.ndarray
    """(E,) int, the experiments on disk."""
    shots: np.ndarray
    """(S,) int, rising."""
    modes: tuple[str, ...]
    affected: tuple[str, ...]
    """K names of axes scored in the target layer: all but the PCs that no figure shows."""
    scores: np.ndarray
    """(E, S, M, F, W, K) float32 in training std; NaN: missing, or the reply was empty."""
    by_layer: np.ndarray
    """(E, S, M, F, W, L) float32, the axis of the same name read at every layer."""
    layers_read: np.ndarray
    """(L,) int, the layers of ``by_layer``."""
    copy_rate: np.ndarray
    """(E, S, M, F, W) float32; NaN when inactive or missing."""
    cut: np.ndarray
    """(E, S, M, F, W) float32, 1: a trailing score was cut off the reply; NaN: missing."""
    empty: np.ndarray
    """(E, S, M, F, W) float32, 1: the reply was empty; NaN: missing."""
    text: np.ndarray
    """(E, S, M, F, W) object, the sentence, None where missing."""

    @property
    def target(self) -> np.ndarray:
        """(E, S, M, F, W) scores on the targeted axis."""
        return self.scores[..., self.affected.index(self.axis)]


@dataclass(frozen=True)
class ControlData:
    """Everything that the control figures read."""

    series: tuple[ControlSeries, ...]
    originals: Mapping[tuple[str, int], np.ndarray]
    """(axis, layer) -> (n_trial,) scores of the original trial sentences, where they are on disk."""
    meta: Mapping[str, Any]
    """Meta data of the first unit: settings and provenance that all units share."""


@dataclass(frozen=True)
class ReportSeries:
    """All report sequences of one axis of one layer."""

    axis: str
    layer: int
    exps: np.ndarray
    """(E,) int."""
    logit_true: np.ndarray
    """(E, F, P) float32: logit of the label shown minus the other one, at the label's position."""
    labels: np.ndarray
    """(E, P) float32, 0 or 1 before flipping; NaN past the end of a shorter sequence."""


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
    build = functools.partial(_control_series, store, targeted)
    series, meta = _load(store, "imit", axes, layers, build)
    return ControlData(series, _originals(store, series), meta)


def load_report(
    store: Store, axes: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> ReportData:
    """Read the report units of ``store``; arguments and errors as for :func:`load_control`."""
    return ReportData(*_load(store, "pred", axes, layers, _report_series))


def only_modes(data: ControlData, modes: Sequence[str]) -> ControlData:
    """Return ``data`` with the trials of ``modes`` alone."""
    have = sorted({m for s in data.series for m in s.modes})
    missing = [mode for mode in modes if mode not in have]
    if missing:
        raise unknown("mode", missing[0], have, "the runs on disk; the setting is modes")
    series = tuple(_take_modes(s, modes) for s in data.series if set(modes) & set(s.modes))
    return replace(data, series=series)


def _take_modes(series: ControlSeries, modes: Sequence[str]) -> ControlSeries:
    index = [i for i, mode in enumerate(series.modes) if mode in modes]
    names = ("scores", "by_layer", "copy_rate", "cut", "empty", "text")
    arrays = {name: getattr(series, name)[:, :, index] for name in names}
    return replace(series, modes=tuple(series.modes[i] for i in index), **arrays)


# ---------------------------------------------------------------- which units

Records = Sequence[Mapping[str, Any]]
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
        records = [results.read(store.unit(key)) for key in keys]
        first = first or (keys[0], records[0]["meta"])
        for key, record in zip(keys, records, strict=True):
            _same_settings(store, first, (key, record["meta"]))
        found.append(build(keys, records))
    return tuple(found), first[1]


def _groups(
    store: Store, kind: str, axes: Sequence[str] | None, layers: Sequence[int] | None
) -> list[list[UnitKey]]:
    """Return the chosen units, one group per (axis, layer), experiments in order."""
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
    chosen: dict[tuple[str, int], list[UnitKey]] = {}
    for unit in units:
        if layers is None or unit.layer in layers:
            chosen.setdefault((unit.axis, unit.layer), []).append(unit)
    order = sorted(chosen, key=lambda pair: (axis_order(pair[0]), pair[1]))
    _warn_of_gaps(order)
    return [chosen[pair] for pair in order]


def axis_order(name: str) -> tuple[int, int, str]:
    """Sort key: lr, meandiff, the PCs by number, then the rest by name."""
    first = {"lr": 0, "meandiff": 1}
    if name in first:
        return (first[name], 0, name)
    if name.startswith("pc") and name[2:].isdigit():
        return (2, int(name[2:]), name)
    return (3, 0, name)


def _warn_of_gaps(pairs: Sequence[tuple[str, int]]) -> None:
    for layer in sorted({layer for _, layer in pairs}):
        lacking = {axis for axis, _ in pairs} - {axis for axis, at in pairs if at == layer}
        if lacking:
            log.warning("layer %d has no runs for %s: left out there", layer, ", ".join(sorted(lacking)))


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


# ---------------------------------------------------------------- arrays


def _control_series(
    store: Store, targeted: Collection[str], keys: Sequence[UnitKey], records: Records
) -> ControlSeries:
    names, layers_read = _columns(records[0])
    for key, record in zip(keys, records, strict=True):
        if key.axis not in names or _columns(record) != (names, layers_read):
            raise UserError(
                f"{store.unit(key)} was scored on other axes or layers than the rest: redo it with "
                "--overwrite"
            )
    affected = tuple(sorted((name for name in names if _is_shown(name, targeted)), key=axis_order))
    columns = [names.index(name) for name in affected]
    shots = np.unique(np.concatenate([r["n"] for r in records]))
    modes = tuple(m for m in MODES if any(m in r["mode"] for r in records))
    shape = (len(records), len(shots), len(modes), 2, 2)
    wide = {"scores": len(affected), "by_layer": len(layers_read)}
    arrays = {name: np.full((*shape, size), np.nan, np.float32) for name, size in wide.items()}
    arrays |= {name: np.full(shape, np.nan, np.float32) for name in ("copy_rate", "cut", "empty")}
    text = np.full(shape, None, object)
    for e, record in enumerate(records):
        mode = np.array([modes.index(m) for m in record["mode"]], dtype=int)
        flip, want = (np.asarray(record[name]).astype(int) for name in ("flip", "want"))
        cell = (e, np.searchsorted(shots, record["n"]), mode, flip, want)
        for name, array in arrays.items():
            array[cell] = record[name][:, columns] if name == "scores" else record[name]
        text[cell] = np.array(record["text"], dtype=object)
    exps = np.array([key.exp for key in keys])
    about = {"affected": affected, "layers_read": np.array(layers_read), "text": text}
    return ControlSeries(keys[0].axis, keys[0].layer, exps, shots, modes, **about, **arrays)


def _is_shown(name: str, targeted: Collection[str]) -> bool:
    """Return whether an affected axis is kept: units are scored on every PC, 512 of them."""
    is_pc = name.startswith("pc") and name[2:].isdigit()
    return not is_pc or name in targeted or int(name[2:]) in SHOWN_PCS


def _columns(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the axes and the layers that a control unit was scored on."""
    layers = record.get("layers", range(record["by_layer"].shape[1]))
    return tuple(record["affected"]), tuple(int(layer) for layer in layers)


def _originals(store: Store, series: Iterable[ControlSeries]) -> dict[tuple[str, int], np.ndarray]:
    """Return the trial sentences' own scores; empty where split or axes are not on disk."""
    if not store.split.exists():
        return {}
    rows, found = results.read(store.split)["trial_rows"], {}
    for layer in sorted({s.layer for s in series}):
        if store.axes(layer).exists():
            axes = results.read(store.axes(layer))
            columns = {s.axis: axes["names"].index(s.axis) for s in series if s.axis in axes["names"]}
            found |= {(name, layer): axes["scores"][rows, column] for name, column in columns.items()}
    return found


def _report_series(keys: Sequence[UnitKey], records: Records) -> ReportSeries:
    longest = max(len(r["labels"]) for r in records)
    logit = np.full((len(records), 2, longest), np.nan, np.float32)
    labels = np.full((len(records), longest), np.nan, np.float32)
    for e, record in enumerate(records):
        n = len(record["labels"])
        labels[e, :n] = record["labels"]
        sign = 2.0 * np.asarray(record["labels"]) - 1  # +1: label 1 is shown as "1", flipped as "0"
        for row, flip in zip(record["logit_diff"], record["flip"], strict=True):
            logit[e, int(flip), :n] = row * (-sign if flip else sign)
    return ReportSeries(keys[0].axis, keys[0].layer, np.array([k.exp for k in keys]), logit, labels)
