"""Tables of the arms of control: true feedback against sham, what a push does, and what a text carries.

Everything is a change: the mean score when high was wanted minus the mean score when low was, in standard
deviations of held-out sentences. Shape letters as in ``analysis.tables.series``; C cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.statistics.effects import Effects, effects
from analysis.statistics.family import max_t, smallest_p
from analysis.statistics.numbers import p_value, with_interval
from analysis.statistics.power import critical_t, detectable, experiments_needed
from analysis.statistics.verdict import Evidence, verdict
from analysis.tables.read import ControlData
from analysis.tables.rows import Row
from analysis.tables.series import ControlSeries
from analysis.tables.text import text_table
from configs.settings import ACTIVE, ARMS, PUSHED, SHAM, TRUE, Settings

CONTRAST = "true - sham"
"""The effect of interest: what true scores do that the same scores in random order do not."""
PARTS = ("in context", "text alone", "context - text", "words", "embedding")
"""Of what was written: its score where it was written; when it is read again by itself, in the conversation
that the axes were fitted in; the difference of the two; and what probes of its words and of its input
embeddings say."""


@dataclass(frozen=True)
class _Cell:
    """One effect: scores (E, F) when high and when low was wanted, and what it is called."""

    about: Row
    high: Float[np.ndarray, "E F"]
    low: Float[np.ndarray, "E F"]
    exps: np.ndarray
    """(E,) numbers of the experiments."""


def arms_table(data: ControlData, seed: int = 0) -> list[Row]:
    """Return one row per axis, layer, levels, mode, N, and arm or contrast.

    Keys: axis, layer, levels, mode, n, arm (an arm, or ``true - sham``), value, low, high (95 %, for new
    experiments), dz, dz_low, dz_high, p (sign flips), p_family, experiments, trials, verdict, sentence.
    Only rows of a family have p_family and a verdict: the contrast, and the pushed arm, at the largest N. "No
    effect larger than X" is about the X of the setting ``equivalence``.

    Args:
        data: with the arms that were run.
        seed: of the sign patterns.
    """
    cells = [cell for arm in ARMS for series in data.arms[arm] for cell in _arm_cells(series)]
    cells += [cell for pair in _pairs(data) for cell in _contrast_cells(*pair)]
    rows = _effect_rows(cells, seed)
    for arm in (CONTRAST, PUSHED):
        family = [k for k, row in enumerate(rows) if row["arm"] == arm and row["n"] == _last(rows, row)]
        _judge(rows, [cells[k] for k in family], family, bound_of(data), seed)
    return rows


def text_table_rows(data: ControlData, seed: int = 0) -> list[Row]:
    """Return what a written sentence carries by itself, and what its context adds, in the true arm.

    One row per axis, layer, levels, N and part (see PARTS), with the keys of :func:`arms_table` but for those
    of a test: parts describe an effect, they are not tests of one.
    """
    cells = [cell for series in data.arms[TRUE] if ACTIVE in series.modes for cell in _part_cells(series)]
    plain = ("p", "dz", "dz_low", "dz_high")
    return [{k: v for k, v in row.items() if k not in plain} for row in _effect_rows(cells, seed)]


def bound_of(data: ControlData) -> float:
    """Return X of "no effect larger than X" that the runs were set to, in standard deviations."""
    return float(data.meta.get("settings", {}).get("equivalence", Settings.equivalence))


def compared(data: ControlData) -> bool:
    """Return whether another arm than the true one was run."""
    return any(data.arms[arm] for arm in (SHAM, PUSHED))


def describe(data: ControlData) -> str:
    """Return both tables at the largest N as text, empty where there is only the true arm."""
    if not compared(data):
        return ""
    rows = [row for row in arms_table(data) if "verdict" in row]
    where = ("axis", "layer", "levels", "mode", "n")
    judged = [
        (*(row[key] for key in where), row["arm"], _change(row), p_value(row["p_family"]), row["experiments"],
         row["verdict"])
        for row in rows
    ]  # fmt: skip
    last = max(row["n"] for row in rows)
    parts = [row for row in text_table_rows(data) if row["n"] == last]
    texts = [(*(row[key] for key in where), row["part"], _change(row)) for row in parts]
    head, change = ("axis", "layer", "levels", "mode", "N"), "change [95 % CI]"
    return "\n".join([
        "Arms: change of the score from low to high wanted, in standard deviations",
        text_table((*head, "arm", change, "p (family)", "experiments", "verdict"), judged),
        "\nWhat the text of a written sentence carries",
        text_table((*head, "part", change), texts),
    ])  # fmt: skip


def _change(row: Row) -> str:
    return with_interval(row["value"], row["low"], row["high"])


# ---------------------------------------------------------------- cells


def _about(series: ControlSeries) -> Row:
    return {"axis": series.axis, "layer": series.layer, "levels": series.levels}


def _arm_cells(series: ControlSeries) -> Iterable[_Cell]:
    for m, mode in enumerate(series.modes):
        for s, n in enumerate(series.shots):
            about = {**_about(series), "mode": mode, "n": int(n), "arm": series.arm}
            here = series.target[:, s, m]
            yield _Cell(about, here[..., 1], here[..., 0], series.exps)


def _part_cells(series: ControlSeries) -> Iterable[_Cell]:
    m, column = series.modes.index(ACTIVE), series.affected.index(series.axis)
    context, alone = series.target[:, :, m], series.neutral[:, :, m, ..., column]
    parts = dict(zip(PARTS, (context, alone, context - alone), strict=False))
    parts |= {name: series.measured[name][:, :, m] for name in PARTS[3:]}
    for name, scores in parts.items():
        for s, n in enumerate(series.shots):
            about = {**_about(series), "mode": ACTIVE, "n": int(n), "part": name}
            yield _Cell(about, scores[:, s, :, 1], scores[:, s, :, 0], series.exps)


def _pairs(data: ControlData) -> Iterable[tuple[ControlSeries, ControlSeries]]:
    """Yield the true and the sham series of the same axis, layer and levels."""
    sham = {(s.axis, s.layer, s.levels): s for s in data.arms[SHAM]}
    for series in data.arms[TRUE]:
        key = (series.axis, series.layer, series.levels)
        if key in sham:
            yield series, sham[key]


def _contrast_cells(true: ControlSeries, sham: ControlSeries) -> Iterable[_Cell]:
    """Yield true minus sham, trial by trial, where both arms have experiments, a mode and N."""
    exps, mine, other = np.intersect1d(true.exps, sham.exps, return_indices=True)
    for mode in (mode for mode in true.modes if mode in sham.modes):
        for n in np.intersect1d(true.shots, sham.shots):
            parts = [
                series.target[rows, series.shots.tolist().index(n), series.modes.index(mode)]
                for series, rows in ((true, mine), (sham, other))
            ]
            about = {**_about(true), "mode": mode, "n": int(n), "arm": CONTRAST}
            left = parts[0] - parts[1]
            yield _Cell(about, left[..., 1], left[..., 0], exps)


# ---------------------------------------------------------------- rows


def _effect_rows(cells: Sequence[_Cell], seed: int) -> list[Row]:
    """Return the change of every cell; cells with equally many experiments are computed together."""
    rows: list[Row] = [{} for _ in cells]
    for size in {len(cell.exps) for cell in cells}:
        here = [k for k, cell in enumerate(cells) if len(cell.exps) == size]
        high, low = (np.stack([getattr(cells[k], name) for k in here], axis=-1) for name in ("high", "low"))
        found = effects(high.astype(np.float64), low.astype(np.float64), seed=seed)
        for c, k in enumerate(here):
            rows[k] = {**cells[k].about, **_numbers(found, c)}
    return rows


def _numbers(found: Effects, c: int) -> Row:
    columns = {"value": "change", "low": "change_low", "high": "change_high", "dz": "dz_hedges"}
    columns |= {"dz_low": "dz_low", "dz_high": "dz_high", "p": "p", "error": "change_error", "df": "df"}
    row: Row = {name: float(getattr(found, field)[c]) for name, field in columns.items()}
    return row | {"experiments": int(found.n_experiments[c]), "trials": int(found.n_trials[c])}


def _last(rows: Sequence[Row], row: Row) -> int:
    """Return the largest N of a row's arm, axis, layer, levels and mode."""
    same = ("arm", "axis", "layer", "levels", "mode")
    return max(int(other["n"]) for other in rows if all(other[name] == row[name] for name in same))


def _judge(rows: list[Row], cells: Sequence[_Cell], family: Sequence[int], bound: float, seed: int) -> None:
    """Add family-wise p and verdict to the rows of a family: one table, one family, one test a row."""
    if not family:
        return
    exps = np.unique(np.concatenate([cell.exps for cell in cells]))
    changes = np.full((len(cells), len(exps)), np.nan)
    for r, cell in enumerate(cells):
        changes[r, np.searchsorted(exps, cell.exps)] = (cell.high - cell.low).mean(axis=1)
    p, critical = max_t(changes, seed)
    for r, k in enumerate(family):
        row, n = rows[k], int(np.isfinite(changes[r]).sum())
        t = critical_t(critical, n)
        seen = float(detectable(row["error"], row["df"], t))
        needed = experiments_needed(row["value"], row["error"] ** 2, 0.0, n, bound)
        said = verdict(Evidence(
            row["value"], row["low"], row["high"], float(p[r]), row["experiments"], bound, seen, needed,
            smallest_p(n), "change",
        ))  # fmt: skip
        row |= {"p_family": float(p[r]), "detectable": seen, "verdict": said.text, "sentence": said.sentence}
