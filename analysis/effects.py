"""Effects and their uncertainty, from the arrays of ``analysis.tables``.

A table is a list of plain dicts, one per row, so that it becomes CSV, HTML or text without more knowledge.
Shape letters as in ``analysis.tables``. The independent sample is the experiment everywhere: intervals
resample experiments, and p values flip the signs of whole experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from analysis import stats_fn
from analysis.tables import ControlData, ControlSeries, ReportData, ReportSeries, axis_order

Row = dict[str, Any]


# ---------------------------------------------------------------- control


def control_table(data: ControlData, seed: int = 0) -> list[Row]:
    """Return one row per axis, layer, mode and N: the effect on the targeted axis.

    Keys: axis, layer, mode, n, d (unpaired Cohen's d, high minus low), d_low, d_high (95 % bootstrap CI),
    dz, dz_low, dz_high (paired), p (sign flips over experiments), q (Benjamini-Hochberg over the rows of
    this table), experiments, trials (in complete pairs), recorded and missing (trials), empty and cut
    (replies), copy_rate (mean over replies; NaN when inactive).
    """
    rows = [
        _control_row(series, m, s, seed)
        for series in data.series
        for m in range(len(series.modes))
        for s in range(len(series.shots))
    ]
    return _with_q(rows)


def _control_row(series: ControlSeries, m: int, s: int, seed: int) -> Row:
    cell = np.s_[:, s, m]
    scores = series.target[cell]
    return {
        "axis": series.axis, "layer": series.layer, "mode": series.modes[m], "n": int(series.shots[s]),
        **effect(scores[..., 1], scores[..., 0], seed),
        "recorded": int(np.isfinite(series.empty[cell]).sum()),
        "missing": int(np.isnan(series.empty[cell]).sum()),
        "empty": int(np.nansum(series.empty[cell])), "cut": int(np.nansum(series.cut[cell])),
        "copy_rate": _mean(series.copy_rate[cell]),
    }  # fmt: skip


def effect(high: np.ndarray, low: np.ndarray, seed: int = 0, n_boot: int = 2000) -> Row:
    """Return the effect of wanting high over low as a row; NaN where there are too few pairs.

    Args:
        high: (E, F) scores when a high score was wanted; NaN where missing.
        low: (E, F) the matched trials in which a low score was wanted.
    """
    found = stats_fn.control_effect(high, low, seed=seed, n_boot=n_boot)
    names = ("d", "d_low", "d_high", "dz", "dz_low", "dz_high", "p")
    values = {name: float(getattr(found, name)) for name in names}
    return {**values, "experiments": found.n_experiments, "trials": found.n_trials}


def layer_effects(series: ControlSeries, mode: str, seed: int = 0) -> list[Row]:
    """Return the effect at the largest N on the axis of the same name at every layer.

    Returns:
        L rows as of :func:`effect`, with ``layer`` the layer that was read.
    """
    values = series.by_layer[:, -1, series.modes.index(mode)]
    return [
        {"layer": int(layer), **effect(values[..., 1, slot], values[..., 0, slot], seed, n_boot=500)}
        for slot, layer in enumerate(series.layers_read)
    ]


def affected_effects(
    data: ControlData, layer: int, mode: str
) -> tuple[list[str], list[str], np.ndarray, int]:
    """Return d at the largest N on every axis that was scored, for every targeted axis of ``layer``.

    Returns:
        T targeted names, K affected names, (T, K) d (NaN where an axis was not scored), the largest N.
    """
    chosen = [s for s in data.series if s.layer == layer and mode in s.modes]
    names = sorted({name for s in chosen for name in s.affected}, key=axis_order)
    table = np.full((len(chosen), len(names)), np.nan)
    for row, series in enumerate(chosen):
        values = series.scores[:, -1, series.modes.index(mode)]
        for k, name in enumerate(series.affected):
            table[row, names.index(name)] = _pair_d(values[..., k])
    return [s.axis for s in chosen], names, table, max(int(s.shots[-1]) for s in chosen)


def _pair_d(values: np.ndarray) -> float:
    """Return d of (E, F, W) scores over complete pairs, as control_effect does without its intervals."""
    whole = values[np.isfinite(values).all(axis=-1)]
    return stats_fn.cohens_d(whole[:, 1], whole[:, 0])


# ---------------------------------------------------------------- report


def predictions(series: ReportSeries) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each prediction is right (0.5 for a tie) and its cross-entropy in nats.

    Returns:
        Two (E, P) arrays, the mean over the label assignments; NaN where missing.
    """
    parts = [
        stats_fn.report_samples(expit(logit.astype(float)), np.ones(logit.shape))
        for logit in series.logit_true.swapaxes(0, 1)
    ]
    right, nats = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    return _nanmean(right, 1), _nanmean(nats, 1)


def majority(series: ReportSeries) -> np.ndarray:
    """Return (E, P): accuracy of guessing the label that was shown more often so far, 0.5 for a tie."""
    found = np.full(series.labels.shape, np.nan)
    for e, labels in enumerate(series.labels):
        n = int(np.isfinite(labels).sum())
        found[e, :n] = stats_fn.majority_baseline(labels[None, :n].astype(int))
    return found


def position_bins(n: int) -> list[tuple[int, int]]:
    """Return ranges [start, stop) of positions; starts grow by half powers of two: 0, 1, 2, 3, 4, 6, 8 ..."""
    starts = sorted({0, 1, *(round(2 ** (k / 2)) for k in range(2, 2 * max(n, 2).bit_length() + 2))})
    edges = [start for start in starts if start < n] + [n]
    return list(zip(edges, edges[1:], strict=False))


def report_curves(series: ReportSeries) -> dict[str, np.ndarray]:
    """Return curves over the number of examples shown, each point the mean over a range of positions.

    Returns:
        ``shown`` (Q,) mean number of examples before the position; ``accuracy``, ``cross_entropy`` and
        ``majority``, each (3, Q): mean and 95 % bootstrap CI over experiments (both label assignments of
        an experiment are averaged first).
    """
    bins = position_bins(series.labels.shape[1])
    right, nats = predictions(series)
    values = {"accuracy": right, "cross_entropy": nats, "majority": majority(series)}
    curves = {"shown": np.array([(a + b - 1) / 2 for a, b in bins])}
    for name, value in values.items():
        binned = np.stack([_nanmean(value[:, a:b], 1) for a, b in bins], axis=1)
        curves[name] = np.stack(stats_fn.mean_ci(binned)[:3])
    return curves


def report_table(data: ReportData, seed: int = 0) -> list[Row]:
    """Return one row per axis and layer over the later half of the sequence, where most was shown.

    Keys: axis, layer, n_from, n_to (examples shown before the predictions that count), accuracy,
    accuracy_low, accuracy_high, majority, gain (accuracy over the majority baseline), gain_low, gain_high,
    p (sign flips over experiments), q (Benjamini-Hochberg over the rows), cross_entropy, _low, _high,
    balanced_accuracy, experiments, predictions.
    """
    return _with_q([_report_row(series, seed) for series in data.series])


def _report_row(series: ReportSeries, seed: int) -> Row:
    n = series.labels.shape[1]
    late = np.s_[:, n // 2 :]
    right, nats = (part[late] for part in predictions(series))
    baseline = _nanmean(majority(series)[late], 1)
    accuracy = _nanmean(right, 1)
    gain = accuracy - baseline
    ends = {"accuracy": accuracy, "gain": gain, "cross_entropy": _nanmean(nats, 1)}
    row: Row = {"axis": series.axis, "layer": series.layer, "n_from": n // 2, "n_to": n - 1}
    for name, value in ends.items():
        middle, low, high = (float(part) for part in stats_fn.mean_ci(value)[:3])
        row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return row | {
        "majority": _mean(baseline), "balanced_accuracy": _balanced(right, series.labels[late]),
        "p": stats_fn.sign_flip_p(gain, seed=seed), "experiments": int(np.isfinite(gain).sum()),
        "predictions": int(np.isfinite(series.logit_true[..., n // 2 :]).sum()),
    }  # fmt: skip


def _balanced(right: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over the two labels of the accuracy (E, P) at that label's positions."""
    return float(np.mean([_mean(right[labels == label]) for label in (0, 1)]))


# ---------------------------------------------------------------- small parts


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _with_q(rows: Sequence[Row]) -> list[Row]:
    """Add q after p; a row without p keeps q NaN and does not count as a test."""
    q = stats_fn.benjamini_hochberg(np.array([row["p"] for row in rows], dtype=float))
    return [{**row, "q": float(value)} for row, value in zip(rows, q, strict=True)]
