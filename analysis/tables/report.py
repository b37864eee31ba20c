"""Report accuracy and its baselines, from the arrays of ``analysis.tables.read``.

Shape letters as in ``analysis.tables.series``. With more than two levels, accuracy and cross-entropy are
about the side of the threshold (digits of a side together), so that they mean the same for any number of
levels; ``level_curves`` has what is particular to levels. The independent sample is the experiment
everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit, log_softmax
from scipy.stats import rankdata

from analysis import stats_fn
from analysis.statistics.agreement import cohens_kappa
from analysis.statistics.designs import fit_sizes
from analysis.statistics.moments import nanmean
from analysis.tables.read import ReportData
from analysis.tables.rows import Row, mean_known, with_q
from analysis.tables.series import ReportSeries

OBSERVERS = {"own": "activations", "embedding": "embeddings", "words": "words"}
"""Observer as stored in a unit -> its name in figures."""
PerPosition = Float[np.ndarray, "E P"]
"""The mean over both label assignments; NaN where missing."""
Curves = dict[str, np.ndarray]
"""``shown`` (Q,), the mean number of examples before a range of positions; every other one (3, Q): mean, low
and high end of the 95 % bootstrap interval over experiments."""
_FEW = 8
"""Positions that a rank correlation within an experiment needs."""


def predictions(series: ReportSeries) -> tuple[PerPosition, PerPosition]:
    """Return whether each prediction is right (0.5 for a tie) and its cross-entropy in nats."""
    return _judged(expit(series.logit_true))


def observed(series: ReportSeries, name: str) -> tuple[PerPosition, PerPosition]:
    """Return the same two arrays for the observer ``name``."""
    upper = series.observers[name].astype(np.float64)
    return _judged(np.where(series.sides == 1, upper, 1 - upper)[:, None])


def _judged(right_side: Float[np.ndarray, "E F P"]) -> tuple[PerPosition, PerPosition]:
    """Judge probabilities of the true side."""
    parts = [stats_fn.report_samples(part, np.ones(part.shape)) for part in right_side.swapaxes(0, 1)]
    right, nats = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    return nanmean(right, 1), nanmean(nats, 1)


def majority(series: ReportSeries) -> PerPosition:
    """Return the accuracy of guessing the side that was shown more often so far, 0.5 for a tie."""
    found = np.full(series.labels.shape, np.nan)
    for e, sides in enumerate(series.sides):
        n = int(np.isfinite(sides).sum())
        found[e, :n] = stats_fn.majority_baseline(sides[None, :n].astype(int))
    return found


# ---------------------------------------------------------------- curves


def position_bins(n: int) -> list[tuple[int, int]]:
    """Return ranges [start, stop) of positions; starts grow by half powers of two: 0, 1, 2, 3, 4, 6, 8 ..."""
    edges = [*fit_sizes(n), n]
    return list(zip(edges, edges[1:], strict=False))


def report_curves(series: ReportSeries) -> Curves:
    """Return curves over the number of examples shown, each point the mean over a range of positions.

    Returns:
        ``shown``, ``accuracy``, ``cross_entropy``, ``majority``, and of each observer ``accuracy_<name>`` and
        ``cross_entropy_<name>``.
    """
    return binned_curves(report_values(series))


def report_values(series: ReportSeries) -> dict[str, PerPosition]:
    """Return the values behind ``report_curves``."""
    right, nats = predictions(series)
    values = {"accuracy": right, "cross_entropy": nats, "majority": majority(series)}
    for name in series.observers:
        values[f"accuracy_{name}"], values[f"cross_entropy_{name}"] = observed(series, name)
    return values


def binned_curves(values: Mapping[str, PerPosition]) -> Curves:
    """Return curves of the values over ``position_bins``."""
    bins = position_bins(next(iter(values.values())).shape[1])
    curves = {"shown": np.array([(a + b - 1) / 2 for a, b in bins])}
    for name, value in values.items():
        binned = np.stack([nanmean(value[:, a:b], 1) for a, b in bins], axis=1)
        curves[name] = np.stack(stats_fn.mean_ci(binned)[:3])
    return curves


def mean_over_layers(chosen: Sequence[ReportSeries]) -> Curves:
    """Return ``report_curves`` of one axis averaged over its layers, within each experiment first.

    Only experiments and positions that all layers have are used.
    """
    shared = sorted(set.intersection(*(set(s.exps.tolist()) for s in chosen)))
    length = min(s.labels.shape[1] for s in chosen)
    parts = [
        {name: value[np.searchsorted(s.exps, shared), :length] for name, value in report_values(s).items()}
        for s in chosen
    ]
    names = set.intersection(*(set(part) for part in parts))
    return binned_curves(
        {name: nanmean(np.stack([part[name] for part in parts]), 0) for name in sorted(names)}
    )


def level_curves(series: ReportSeries) -> Curves:
    """Return what more than two levels add, as ``report_curves`` does.

    Returns:
        ``shown``; ``exact`` the share of exactly right levels (the likeliest digit), ``cross_entropy`` over
        all digits in nats, ``correlation`` Spearman's between the expected digit and the true score within an
        experiment over a range of positions, NaN for ranges of fewer than 8.
    """
    logs = log_softmax(series.logits.astype(np.float64), axis=-1)  # (E, F, P, A)
    known = np.isfinite(series.labels)
    true = np.where(known, series.labels, 0).astype(int)[:, None, :, None]
    at_true = np.where(known[:, None], np.take_along_axis(logs, true, axis=-1)[..., 0], np.nan)
    hit = np.where(known[:, None], logs.argmax(axis=-1) == true[..., 0], np.nan)
    curves = binned_curves({"exact": nanmean(hit, 1), "cross_entropy": nanmean(-at_true, 1)})
    expected = (np.exp(logs) * np.arange(series.levels)).sum(axis=-1)
    values = []
    for a, b in position_bins(series.labels.shape[1]):
        part, scores = (
            expected[..., a:b],
            np.broadcast_to(series.scores[:, None, a:b], expected[..., a:b].shape),
        )
        values.append(nanmean(_spearman(part, scores), 1))
    curves["correlation"] = np.stack(stats_fn.mean_ci(np.stack(values, axis=1))[:3])
    return curves


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis, NaN with few, missing or constant values."""
    if a.shape[-1] < _FEW:
        return np.full(a.shape[:-1], np.nan)
    ranks = [rankdata(part, axis=-1, nan_policy="propagate") for part in (a, b)]
    x, y = (part - part.mean(axis=-1, keepdims=True) for part in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))


def confusion(series: ReportSeries) -> Float[np.ndarray, "A A"]:
    """Return the mean probability of each digit (columns) per true level (rows), later half.

    The mean is over the predictions of an experiment first, then over experiments; NaN: no such level there.
    """
    n = series.labels.shape[1]
    chances = np.exp(log_softmax(series.logits[:, :, n // 2 :].astype(np.float64), axis=-1)).mean(axis=1)
    labels = series.labels[:, n // 2 :]
    rows = [nanmean(np.where((labels == a)[..., None], chances, np.nan), 1) for a in range(series.levels)]
    return nanmean(np.stack(rows, axis=1), 0)


# ---------------------------------------------------------------- table


def report_table(data: ReportData, seed: int = 0) -> list[Row]:
    """Return one row per axis, layer and levels over the later half of the sequence, where most was shown.

    Keys: axis, layer, levels, n_from, n_to (examples shown before the predictions that count); accuracy, gain
    (accuracy over the majority baseline), cross_entropy, each with _low, _high (95 % bootstrap CI); majority,
    balanced_accuracy; per observer accuracy_<name> with _low, _high and kappa_<name> (Cohen's kappa between
    the model's and the observer's predictions, mean over experiments and label assignments); p (sign flips of
    the gain over experiments), experiments, predictions, q (Benjamini-Hochberg over the rows).
    """
    return with_q([_report_row(series, seed) for series in data.series])


def _report_row(series: ReportSeries, seed: int) -> Row:
    n = series.labels.shape[1]
    late = np.s_[:, n // 2 :]
    values = report_values(series)
    means = {name: nanmean(value[late], 1) for name, value in values.items()}  # (E,)
    gain = means["accuracy"] - means["majority"]
    ends = {"accuracy": means["accuracy"], "gain": gain, "cross_entropy": means["cross_entropy"]}
    ends |= {f"accuracy_{name}": means[f"accuracy_{name}"] for name in series.observers}
    row: Row = {
        "axis": series.axis,
        "layer": series.layer,
        "levels": series.levels,
        "n_from": n // 2,
        "n_to": n - 1,
    }
    for name, value in ends.items():
        middle, low, high = (float(part) for part in stats_fn.mean_ci(value)[:3])
        row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return row | {
        "majority": mean_known(means["majority"]),
        "balanced_accuracy": _balanced(values["accuracy"][late], series.sides[late]),
        **{f"kappa_{name}": _kappa(series, name) for name in series.observers},
        "p": stats_fn.sign_flip_p(gain, seed=seed), "experiments": int(np.isfinite(gain).sum()),
        "predictions": int(np.isfinite(series.logit_true[..., n // 2 :]).sum()),
    }  # fmt: skip


def _kappa(series: ReportSeries, name: str) -> float:
    """Return the mean kappa of the model's and an observer's choices over the later half."""
    n = series.labels.shape[1]
    upper = series.logit_true * (2 * series.sides - 1)[:, None] > 0
    known = np.isfinite(series.logit_true)
    model = np.where(known, upper, np.nan)[..., n // 2 :]
    observer = np.where(np.isfinite(series.observers[name]), series.observers[name] > 0.5, np.nan)[
        :, None, n // 2 :
    ]
    return mean_known(cohens_kappa(model, np.broadcast_to(observer, model.shape)))


def _balanced(right: np.ndarray, sides: np.ndarray) -> float:
    """Return the mean over the two sides of the accuracy (E, P) at that side's positions."""
    return float(np.mean([mean_known(right[sides == side]) for side in (0, 1)]))
