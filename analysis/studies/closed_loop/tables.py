"""What a closed loop did: drift over turns, effect per turn, and the true arm against the others.

Experiments are the independent samples: intervals resample them, p values flip their signs.

Shape letters: E experiments   A arms   F label flips   W wanted side (0 low, 1 high)   K turns
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.results.store import read
from analysis.statistics.moments import nanmean
from analysis.statistics.resampling import MeanCI, mean_ci
from analysis.statistics.signflips import sign_flip_p
from analysis.studies.closed_loop.prompts import NO_SCORE
from analysis.studies.closed_loop.stage import LoopStage
from analysis.tables.control import effect_row, pair_effects
from analysis.tables.rows import Row, mean_known, with_q
from analysis.tables.text import interval, show_p, text_table

_COLUMNS = ("score", "label", "complied", "empty", "cut", "copy_rate")
_LEVEL = 0.05
"""A drift is called one where q is below this and the interval leaves out 0."""


@dataclass(frozen=True)
class LoopSeries:
    """All experiments of one axis, layer, number of levels and mode."""

    axis: str
    layer: int
    levels: int
    mode: str
    arms: tuple[str, ...]
    scores: np.ndarray
    """(E, A, F, W, K) true scores in training deviations; NaN for replies that are empty or not the sentence
    asked for."""
    label: np.ndarray
    """(E, A, F, W, K) true labels, NO_SCORE where there is no score."""
    shown: np.ndarray
    """(E, A, F, W, K - 1) labels that were shown after each turn but the last."""
    complied: np.ndarray
    """(E, A, F, W, K) 1 where the reply is not empty and, in mode repeat, is the sentence asked for."""
    empty: np.ndarray
    cut: np.ndarray
    """(E, A, F, W, K) 1 where a score text was cut off the reply."""
    copy_rate: np.ndarray
    """(E, A, F, W, K) share of the reply found in an earlier turn's; NaN in the first."""

    @property
    def about(self) -> Row:
        """What every row of a table says of the series."""
        return {"axis": self.axis, "layer": self.layer, "levels": self.levels, "mode": self.mode}

    @property
    def change(self) -> np.ndarray:
        """(E, A, F, K): half of high wanted minus low wanted, the mean distance towards what is wanted."""
        return (self.scores[:, :, :, 1] - self.scores[:, :, :, 0]) / 2


def load_series(stage: LoopStage) -> list[LoopSeries]:
    """Return the finished grid of a stage, from disk; experiments in order."""
    groups: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    units = [unit for unit in stage.units() if not unit.donor]
    for unit in sorted(units, key=lambda unit: (stage.loop.modes.index(unit.mode), unit.key)):
        key = unit.key
        record = read(stage.path(unit), stage.identity(unit))
        groups.setdefault((key.axis, key.layer, key.levels, unit.mode), []).append(record)
    return [build_series(*group, stage.loop.arms, records) for group, records in groups.items()]


def build_series(
    axis: str, layer: int, levels: int, mode: str, arms: Sequence[str], records: Sequence[dict[str, Any]]
) -> LoopSeries:
    """Return the records of E experiments as arrays."""
    turns = records[0]["score"].shape[1]
    shape = (len(records), len(arms), 2, 2, turns)
    parts = {name: np.full(shape, np.nan, np.float32) for name in _COLUMNS}
    shown = np.full((*shape[:-1], turns - 1), np.nan, np.float32)
    for e, record in enumerate(records):
        place = ([arms.index(arm) for arm in record["arm"]], record["flip"].astype(int), record["want"])
        for name, values in parts.items():
            values[(e, *place)] = record[name]
        shown[(e, *place)] = record["shown"]
    parts["scores"] = np.where(parts["complied"] == 1, parts.pop("score"), np.nan)
    return LoopSeries(axis, layer, levels, mode, tuple(arms), shown=shown, **parts)


# ---------------------------------------------------------------- measures


def slopes(values: np.ndarray) -> np.ndarray:
    """Return the least-squares slope per turn along the last axis; NaN with fewer than 2 values."""
    known = np.isfinite(values)
    turns = nanmean(np.where(known, np.arange(values.shape[-1]), np.nan), -1)
    away = np.where(known, np.arange(values.shape[-1]) - turns[..., None], 0.0)
    power = (away**2).sum(axis=-1)
    rise = (away * np.where(known, values, 0.0)).sum(axis=-1)
    return np.divide(rise, power, out=np.full(power.shape, np.nan), where=power > 0)


def thirds(values: np.ndarray) -> np.ndarray:
    """Return the mean of the last third along the last axis minus that of the first; one turn at least."""
    size = max(1, values.shape[-1] // 3)
    return nanmean(values[..., -size:], -1) - nanmean(values[..., :size], -1)


def per_experiment(series: LoopSeries, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return (E, A) a measure of the change over turns, the mean over the label flips that have it."""
    return nanmean(measure(series.change.astype(np.float64)), 2)


def side_means(series: LoopSeries) -> MeanCI:
    """Return the mean score over experiments with its interval, each (A, W, K)."""
    return mean_ci(nanmean(series.scores.astype(np.float64), 2))


# ---------------------------------------------------------------- tables


def drift_table(chosen: Sequence[LoopSeries]) -> list[Row]:
    """Return one row per series and arm.

    Keys: axis, layer, levels, mode, arm; slope (training deviations per turn towards what is wanted, mean
    over high and low wanted) and gain (last third of the turns minus first) with _low and _high (95 %
    bootstrap CI) and _p (sign flips); p and q of the slope (Benjamini-Hochberg over the rows); experiments;
    recorded turns, complied, empty and cut among them; copy_rate; upper (share of the true labels in the
    upper half: near 0 or 1, true feedback says little); same (share of the feedback that equals the true
    arm's in the same turn of the same conversation); finding.
    """
    rows = []
    for series in chosen:
        slope, gain = per_experiment(series, slopes), per_experiment(series, thirds)
        upper = np.where(series.label == NO_SCORE, np.nan, series.label >= series.levels / 2)
        for a, arm in enumerate(series.arms):
            found = {**_interval("slope", slope[:, a]), **_interval("gain", gain[:, a])}
            counted = {name: getattr(series, name)[:, a] for name in ("complied", "empty", "cut")}
            rows.append({
                **series.about, "arm": arm, **found, "p": found["slope_p"],
                "experiments": int(np.isfinite(slope[:, a]).sum()),
                "recorded": int(np.isfinite(series.empty[:, a]).sum()),
                **{name: int(np.nansum(values)) for name, values in counted.items()},
                "copy_rate": mean_known(series.copy_rate[:, a]),
                "upper": mean_known(upper[:, a]),
                "same": float((series.shown[:, a] == series.shown[:, series.arms.index("true")]).mean()),
            })  # fmt: skip
    return [{**row, "finding": finding(row)} for row in with_q(rows)]


def comparison_table(chosen: Sequence[LoopSeries]) -> list[Row]:
    """Return the slope of the true arm minus that of each other, experiment by experiment.

    Keys: axis, layer, levels, mode, against, slope with _low, _high and _p, p, q over the rows, experiments,
    finding.
    """
    rows = []
    for series in chosen:
        slope = per_experiment(series, slopes)
        true = slope[:, series.arms.index("true")]
        for a, arm in enumerate(series.arms):
            if arm != "true":
                found = _interval("slope", true - slope[:, a])
                count = int(np.isfinite(true - slope[:, a]).sum())
                about = {**series.about, "against": arm}
                rows.append({**about, **found, "p": found["slope_p"], "experiments": count})
    return [{**row, "finding": finding(row, "difference")} for row in with_q(rows)]


def turn_table(chosen: Sequence[LoopSeries]) -> list[Row]:
    """Return the effect of high against low wanted per series, arm and turn: the columns of an effect."""
    rows = []
    for series in chosen:
        found = pair_effects(series.scores.transpose(0, 2, 3, 1, 4))
        cells = enumerate(np.ndindex(len(series.arms), series.scores.shape[-1]))
        rows += [
            {**series.about, "arm": series.arms[a], "turn": turn + 1, **effect_row(found, cell)}
            for cell, (a, turn) in cells
        ]
    return with_q(rows)


def finding(row: Row, what: str = "drift") -> str:
    """Return the row's result in words."""
    if not np.isfinite(row["slope_low"]):
        return "too few experiments"
    if row["q"] < _LEVEL and row["slope_low"] > 0:
        return f"{what} towards the goal"
    if row["q"] < _LEVEL and row["slope_high"] < 0:
        return f"{what} away from the goal"
    return f"no detectable {what}"


def _interval(name: str, values: np.ndarray) -> Row:
    """Return the mean of (E,) values with its interval and p value as columns."""
    mean, low, high, _ = (float(part) for part in mean_ci(values))
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_p": sign_flip_p(values)}


# ---------------------------------------------------------------- as text


def table_text(drifts: Sequence[Row], against: Sequence[Row]) -> str:
    """Return the drift of each arm and the comparisons with the true arm as two tables."""
    return "\n\n".join([_drift_text(drifts), *([_difference_text(against)] if against else [])])


def _drift_text(drifts: Sequence[Row]) -> str:
    header = (
        "axis", "layer", "levels", "mode", "arm", "drift per turn [95 % CI]", "p", "q", "last - first third",
        "experiments", "complied", "empty", "copied", "upper", "same", "finding",
    )  # fmt: skip
    lines = [
        (
            row["axis"], row["layer"], row["levels"], row["mode"], row["arm"], interval(row, "slope", 3),
            show_p(row["p"]), show_p(row["q"]), interval(row, "gain"), row["experiments"],
            f"{row['complied']} of {row['recorded']}", row["empty"], row["copy_rate"],
            row["upper"], row["same"], row["finding"],
        )
        for row in drifts
    ]  # fmt: skip
    key = (
        "upper: share of true labels in the upper half (near 0 or 1, feedback says little); same: share of "
        "the feedback that equals that of arm true; copied: share of a reply found in an earlier turn"
    )
    return f"Closed loop: drift towards the goal\n{text_table(header, lines)}\n{key}"


def _difference_text(against: Sequence[Row]) -> str:
    header = ("axis", "layer", "levels", "mode", "drift of true minus", "difference [95 % CI]", "p", "q",
              "experiments", "finding")  # fmt: skip
    lines = [
        (
            row["axis"], row["layer"], row["levels"], row["mode"], row["against"], interval(row, "slope", 3),
            show_p(row["p"]), show_p(row["q"]), row["experiments"], row["finding"],
        )
        for row in against
    ]  # fmt: skip
    most = max(row["experiments"] for row in against)
    smallest = show_p(max(2 / 2**most, 1 / 10_001)) if most > 1 else "-"
    note = f"Smallest p that {most} experiments allow: {smallest}"
    return f"True feedback against the others\n{text_table(header, lines)}\n\n{note}"
