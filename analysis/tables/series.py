"""Turn the cached units of one (axis, layer, levels) into arrays; what a run or a unit lacks is NaN.

Shape letters, besides those of the repository:
    E experiments   S values of N   M modes   F label assignments (0 as they are, 1 flipped)
    W wanted side (0 low, 1 high)   P positions of a report sequence   A label levels
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from analysis.axes.names import SHOWN_PCS, axis_order, pc_number
from analysis.results.fields import fields_of_shape
from analysis.results.schema import ControlUnit, ReportUnit
from analysis.results.store import UnitKey
from configs.settings import MODES, TRUE

ASKED = ("n", "flip", "target", "want")
"""Fields of a control unit that say what a trial asks for."""
MEASURED = tuple(name for name in fields_of_shape(ControlUnit, "T") if name not in ASKED)
"""Fields that hold one number of every trial: copy_rate, words, and whatever the schema adds to them."""
WIDE = ("scores", "neutral", "by_layer", "projection")
"""Fields that hold a row of numbers of every trial: of the affected axes, or of the layers read."""


@dataclass(frozen=True)
class ControlSeries:
    """All control trials of one targeted axis of one layer."""

    axis: str
    layer: int
    levels: int
    """Labels shown: 2, or quantile levels."""
    arm: str
    """See configs.settings.ARMS."""
    exps: Int[np.ndarray, " E"]
    """The experiments on disk."""
    shots: Int[np.ndarray, " S"]
    """Numbers of examples, rising."""
    modes: tuple[str, ...]
    affected: tuple[str, ...]
    """K names of axes scored in the target layer: all but the PCs that no figure shows."""
    scores: Float[np.ndarray, "E S M 2 2 K"]
    """In training std; NaN: missing, the reply was empty, or the unit was not scored on that axis."""
    neutral: Float[np.ndarray, "E S M 2 2 K"]
    """The same for the sentence read by itself, in the conversation that the axes were fitted in."""
    by_layer: Float[np.ndarray, "E S M 2 2 L"]
    """The axis of the same name read at every layer."""
    projection: Float[np.ndarray, "E S M 2 2 L"]
    """The target layer's axis read at every layer, in the target layer's std."""
    layers_read: Int[np.ndarray, " L"]
    """The layers of ``by_layer`` and ``projection``."""
    measured: Mapping[str, Float[np.ndarray, "E S M 2 2"]]
    """Field of a unit -> its value, see MEASURED: ``copy_rate`` (also NaN when inactive); ``cut``, 1 where a
    trailing score was cut off the reply; ``empty``, 1 where the reply was empty. NaN: missing."""
    text: np.ndarray
    """(E, S, M, F, W) object, the sentence, None where missing."""
    differences: Mapping[str, Float[np.ndarray, "E D"]]
    """mode -> change of the hidden state at the largest N, high wanted minus low wanted; NaN: missing."""

    @property
    def target(self) -> Float[np.ndarray, "E S M 2 2"]:
        """Scores on the targeted axis."""
        return self.scores[..., self.affected.index(self.axis)]

    def only(self, modes: Sequence[str]) -> ControlSeries:
        """Return the same series with the trials of ``modes`` alone."""
        index = [i for i, mode in enumerate(self.modes) if mode in modes]
        arrays = {name: getattr(self, name)[:, :, index] for name in (*WIDE, "text")}
        measured = {name: values[:, :, index] for name, values in self.measured.items()}
        return replace(self, modes=tuple(self.modes[i] for i in index), measured=measured, **arrays)


@dataclass(frozen=True)
class ReportSeries:
    """All report sequences of one axis of one layer."""

    axis: str
    layer: int
    levels: int
    exps: Int[np.ndarray, " E"]
    logits: Float[np.ndarray, "E 2 P A"]
    """Of the digit that stands for each true level, before label i is shown."""
    labels: Float[np.ndarray, "E P"]
    """True level, 0 to A - 1, before flipping; NaN past the end of a shorter sequence."""
    scores: Float[np.ndarray, "E P"]
    """True scores."""
    observers: Mapping[str, Float[np.ndarray, "E P"]]
    """name -> probability of the upper half of the levels, see analysis/experiments/observers.py; NaN where a
    unit lacks that observer."""

    @property
    def sides(self) -> Float[np.ndarray, "E P"]:
        """1 for the upper half of the levels, 0 for the lower."""
        return np.where(np.isnan(self.labels), np.nan, self.labels >= self.levels / 2)

    @functools.cached_property
    def logit_true(self) -> Float[np.ndarray, "E 2 P"]:
        """Logit of the true side of the threshold, all digits of a side together."""
        half = self.levels // 2
        logits = self.logits.astype(np.float64)
        upper = logsumexp(logits[..., half:], axis=-1) - logsumexp(logits[..., :half], axis=-1)
        return upper * (2 * self.sides - 1)[:, None]


# ---------------------------------------------------------------- arrays


def control_series(
    targeted: Collection[str], keys: Sequence[UnitKey], units: Sequence[ControlUnit], arm: str = TRUE
) -> ControlSeries:
    """Return the trials of one arm of the units ``keys`` as one series.

    Args:
        targeted: axes that were targeted somewhere; they are kept as affected ones whatever they are.
        keys: of one axis, layer and number of levels.
        units: theirs. What one of them was not scored on, or does not hold, is NaN: an axis may have been
            imported between two runs.
        arm: one of configs.settings.ARMS, which a unit at least has trials of.

    Raises:
        ValueError: hidden states of differing sizes, which reading refuses.
    """
    names = {name for unit in units for name in unit.affected if _is_shown(name, targeted)}
    affected = tuple(sorted(names, key=axis_order))
    layers = np.unique(np.concatenate([unit.layers for unit in units]))
    trials = [np.flatnonzero(np.array(unit.arms) == arm) for unit in units]
    shots = np.unique(np.concatenate([unit.n[here] for unit, here in zip(units, trials, strict=True)]))
    modes = tuple(mode for mode in MODES if any(mode in unit.mode for unit in units))
    shape = (len(units), len(shots), len(modes), 2, 2)
    wide = dict.fromkeys(("scores", "neutral"), (len(affected),))
    wide |= dict.fromkeys(("by_layer", "projection"), layers.shape)
    arrays = {name: np.full((*shape, *wide.get(name, ())), np.nan, np.float32) for name in (*WIDE, *MEASURED)}
    text = np.full(shape, None, object)
    for e, (unit, here) in enumerate(zip(units, trials, strict=True)):
        mode = np.array([modes.index(unit.mode[t]) for t in here], dtype=int)
        place = np.searchsorted(shots, unit.n[here])
        cell = (np.full(len(mode), e), place, mode, unit.flip[here].astype(int), unit.want[here])
        columns = dict.fromkeys(("scores", "neutral"), _places(affected, unit.affected))
        columns |= dict.fromkeys(("by_layer", "projection"), _places(layers.tolist(), unit.layers.tolist()))
        for name, array in arrays.items():
            values = getattr(unit, name)
            _put(array, cell, None if values is None else values[here], columns.get(name))
        text[cell] = np.array(unit.text, dtype=object)[here]
    first, exps = keys[0], np.array([key.exp for key in keys])
    moved = {mode: _differences(units, mode) for mode in modes}
    return ControlSeries(
        first.axis, first.layer, first.levels, arm, exps, shots, modes, affected, layers_read=layers,
        text=text, differences=moved, measured={name: arrays.pop(name) for name in MEASURED}, **arrays,
    )  # fmt: skip


Places = tuple[list[int], list[int]]
"""Columns of a series, and those of a unit that belong there."""


def _places(wanted: Sequence[object], there: Sequence[object]) -> Places:
    place = {name: column for column, name in enumerate(there)}
    pairs = [(column, place[name]) for column, name in enumerate(wanted) if name in place]
    return [column for column, _ in pairs], [column for _, column in pairs]


def _put(
    array: np.ndarray, cell: tuple[np.ndarray, ...], values: np.ndarray | None, columns: Places | None
) -> None:
    """Write a unit's ``values`` (T,) or (T, K) into the cells of its trials; None: it does not have them."""
    if values is None:
        return
    if columns is None:
        array[cell] = values
    else:
        trials = tuple(part[:, None] for part in cell)
        array[trials + (np.array(columns[0], dtype=int),)] = values[:, columns[1]]


def _differences(units: Sequence[ControlUnit], mode: str) -> Float[np.ndarray, "E D"]:
    found = [unit.difference.get(mode) for unit in units]
    size = next(len(moved) for moved in found if moved is not None)
    rows = [np.full(size, np.nan) if moved is None else moved for moved in found]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"hidden states of sizes {sorted({len(row) for row in rows})} in one series")
    return np.stack(rows)


def _is_shown(name: str, targeted: Collection[str]) -> bool:
    """Return whether an affected axis is kept: units are scored on every PC, 512 of them."""
    number = pc_number(name)
    return number is None or name in targeted or number in SHOWN_PCS


def report_series(keys: Sequence[UnitKey], units: Sequence[ReportUnit]) -> ReportSeries:
    """Return the units ``keys`` as one series; where a unit is shorter or lacks an observer, it is NaN."""
    first, shape = keys[0], (len(units), max(len(unit.labels) for unit in units))
    logits = np.full((len(units), 2, shape[1], first.levels), np.nan, np.float32)
    labels, scores = (np.full(shape, np.nan, np.float32) for _ in range(2))
    names = sorted({name for unit in units for name in unit.observers})
    observers = {name: np.full(shape, np.nan, np.float32) for name in names}
    for e, unit in enumerate(units):
        n = len(unit.labels)
        labels[e, :n], scores[e, :n] = unit.labels, unit.scores
        for name, values in unit.observers.items():
            observers[name][e, :n] = values
        for row, flip in zip(unit.logits, unit.flip, strict=True):
            logits[e, int(flip), :n] = row[:, ::-1] if flip else row
    exps = np.array([key.exp for key in keys])
    return ReportSeries(first.axis, first.layer, first.levels, exps, logits, labels, scores, observers)
