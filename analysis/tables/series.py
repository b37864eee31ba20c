"""Turn the cached units of one (axis, layer, levels) into arrays, NaN where a trial or a run is missing.

Shape letters, besides those of the repository:
    E experiments   S values of N   M modes   F label assignments (0 as they are, 1 flipped)
    W wanted side (0 low, 1 high)   P positions of a report sequence   A label levels
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from analysis.axes.names import SHOWN_PCS, axis_order, pc_number
from analysis.base.errors import UserError
from analysis.results.store import Store, UnitKey
from configs.settings import MODES

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ControlSeries:
    """All control trials of one targeted axis of one layer."""

    axis: str
    layer: int
    levels: int
    """Labels shown: 2, or quantile levels."""
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
    projection: np.ndarray
    """(E, S, M, F, W, L) float32, the target layer's axis read at every layer, in the target layer's std."""
    layers_read: np.ndarray
    """(L,) int, the layers of ``by_layer`` and ``projection``."""
    copy_rate: np.ndarray
    """(E, S, M, F, W) float32; NaN when inactive or missing."""
    cut: np.ndarray
    """(E, S, M, F, W) float32, 1: a trailing score was cut off the reply; NaN: missing."""
    empty: np.ndarray
    """(E, S, M, F, W) float32, 1: the reply was empty; NaN: missing."""
    text: np.ndarray
    """(E, S, M, F, W) object, the sentence, None where missing."""
    differences: Mapping[str, np.ndarray]
    """mode -> (E, D) float32, change of the hidden state at the largest N, high wanted minus low wanted."""

    @property
    def target(self) -> np.ndarray:
        """(E, S, M, F, W) scores on the targeted axis."""
        return self.scores[..., self.affected.index(self.axis)]

    def only(self, modes: Sequence[str]) -> ControlSeries:
        """Return the same series with the trials of ``modes`` alone."""
        index = [i for i, mode in enumerate(self.modes) if mode in modes]
        names = ("scores", "by_layer", "projection", "copy_rate", "cut", "empty", "text")
        arrays = {name: getattr(self, name)[:, :, index] for name in names}
        return replace(self, modes=tuple(self.modes[i] for i in index), **arrays)


@dataclass(frozen=True)
class ReportSeries:
    """All report sequences of one axis of one layer."""

    axis: str
    layer: int
    levels: int
    exps: np.ndarray
    """(E,) int."""
    logits: np.ndarray
    """(E, F, P, A) float32 of the digit that stands for each true level, before label i is shown."""
    labels: np.ndarray
    """(E, P) float32 true level, 0 to A - 1, before flipping; NaN past the end of a shorter sequence."""
    scores: np.ndarray
    """(E, P) float32 true scores."""
    observers: Mapping[str, np.ndarray]
    """name -> (E, P) float32: the probability of the upper half of the levels, see
    analysis/experiments/observers.py."""

    @property
    def sides(self) -> np.ndarray:
        """(E, P) float32, 1 for the upper half of the levels, 0 for the lower."""
        return np.where(np.isnan(self.labels), np.nan, self.labels >= self.levels / 2)

    @functools.cached_property
    def logit_true(self) -> np.ndarray:
        """(E, F, P) logit of the true side of the threshold, all digits of a side together."""
        half = self.levels // 2
        logits = self.logits.astype(np.float64)
        upper = logsumexp(logits[..., half:], axis=-1) - logsumexp(logits[..., :half], axis=-1)
        return upper * (2 * self.sides - 1)[:, None]


# ---------------------------------------------------------------- arrays


def control_series(
    store: Store, targeted: Collection[str], keys: Sequence[UnitKey], records: Records
) -> ControlSeries:
    """Return the units ``keys`` as one series; axes that were ``targeted`` somewhere are kept as affected."""
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
    wide = {"scores": len(affected), "by_layer": len(layers_read), "projection": len(layers_read)}
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
    if len({part.shape for r in records for part in r["difference"].values()}) > 1:
        raise UserError(
            f"the control units of {store.folder} have hidden states of differing sizes: redo them"
        )
    moved = {mode: np.stack([r["difference"][mode] for r in records]) for mode in modes}
    about = {"affected": affected, "layers_read": np.array(layers_read), "text": text, "differences": moved}
    first = keys[0]
    return ControlSeries(first.axis, first.layer, first.levels, exps, shots, modes, **about, **arrays)


def _is_shown(name: str, targeted: Collection[str]) -> bool:
    """Return whether an affected axis is kept: units are scored on every PC, 512 of them."""
    return name in targeted or pc_number(name) in (None, *SHOWN_PCS)


def _columns(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the axes and the layers that a control unit was scored on."""
    layers = record.get("layers", range(record["by_layer"].shape[1]))
    return tuple(record["affected"]), tuple(int(layer) for layer in layers)


def report_series(keys: Sequence[UnitKey], records: Records) -> ReportSeries:
    """Return the units ``keys`` as one series."""
    first, longest = keys[0], max(len(r["labels"]) for r in records)
    logits = np.full((len(records), 2, longest, first.levels), np.nan, np.float32)
    wide = {name: np.full((len(records), longest), np.nan, np.float32) for name in ("labels", "scores")}
    names = sorted({name for r in records for name in r["observers"]})
    observers = {name: np.full((len(records), longest), np.nan, np.float32) for name in names}
    for e, record in enumerate(records):
        n = len(record["labels"])
        for name, array in wide.items():
            array[e, :n] = record[name]
        for name, values in record["observers"].items():
            observers[name][e, :n] = values
        for row, flip in zip(record["logits"], record["flip"], strict=True):
            logits[e, int(flip), :n] = row[:, ::-1] if flip else row
    exps = np.array([key.exp for key in keys])
    return ReportSeries(first.axis, first.layer, first.levels, exps, logits, **wide, observers=observers)
