"""Effect sizes and accuracies. Axis 0 of every input counts experiments, the independent samples.

NaN stands for a missing trial, such as an empty reply: it is left out, and the number that remains is
reported. A result is NaN where the data do not define it (too few samples, no variance), never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.base.errors import UserError
from analysis.statistics.resampling import MeanCI, bootstrap_ci, mean_ci, sign_flip_p

__all__ = [
    "Effect", "MeanCI", "balanced_accuracy", "benjamini_hochberg", "bootstrap_ci", "cohens_d",
    "cohens_d_se", "control_effect", "control_precision", "majority_baseline", "mean_ci",
    "neural_difference_cosine", "paired_dz", "report_metrics", "report_samples", "sign_flip_p",
]  # fmt: skip

_SMALLEST_P = 1e-12
"""Probabilities are cut here before the logarithm: certain but wrong costs 27.6 nats, not infinity."""


# ---------------------------------------------------------------- effect sizes


def cohens_d(high: np.ndarray, low: np.ndarray) -> float:
    """Return Cohen's d of two unpaired samples, the difference in pooled standard deviations (Cohen 1988).

    Args:
        high, low: (n1,) and (n2,); NaN is left out of each.

    Returns:
        d > 0 if ``high`` is higher; NaN with fewer than 2 values in a sample or no variance within them.

    Raises:
        UserError: not one-dimensional.
    """
    high, low = _vector(high, "high"), _vector(low, "low")
    return float(_d(high[None], low[None])[0])


def cohens_d_se(d: float, n1: int, n2: int) -> float:
    """Return the large-sample standard error of d: SE^2 = (n1 + n2) / (n1 n2) + d^2 / (2 (n1 + n2)).

    Source: Hedges & Olkin 1985, p. 86. It takes all samples as independent. NaN if d is, or n1 or n2 < 2.
    """
    if min(n1, n2) < 2:
        return np.nan
    return float(np.sqrt((n1 + n2) / (n1 * n2) + d**2 / (2 * (n1 + n2))))


def paired_dz(diff: np.ndarray) -> float:
    """Return d_z, the mean difference of matched pairs in its own standard deviations (t = d_z sqrt(n)).

    Args:
        diff: (n,), NaN is left out.

    Returns:
        NaN with fewer than 2 pairs, or if all differences are equal.

    Raises:
        UserError: not one-dimensional.
    """
    return float(_dz(_vector(diff, "diff")[None])[0])


@dataclass(frozen=True)
class Effect:
    """The effect of "imitate high" against "imitate low" at one number of examples."""

    d: float
    """Unpaired Cohen's d, as in the paper."""
    d_se: float
    """Its large-sample standard error, all trials taken as independent."""
    d_low: float
    d_high: float
    """95 % bootstrap interval of d over experiments."""
    dz: float
    """Effect of the matched pairs."""
    dz_low: float
    dz_high: float
    """95 % bootstrap interval of d_z over experiments."""
    p: float
    """Two-sided sign-flip test, the signs of whole experiments flipped."""
    n_experiments: int
    """Experiments with at least one complete pair."""
    n_trials: int
    """Trials that count, two in a pair."""
    n_dropped: int
    """Trials left out because one of their pair is NaN, two in a pair."""


def control_effect(high: np.ndarray, low: np.ndarray, seed: int = 0, n_boot: int = 2000) -> Effect:
    """Return how far true scores follow the wanted ones.

    One trial is one sample of d and one pair one sample of d_z; the F pairs of an experiment share their
    examples, so the intervals draw whole experiments and the test flips whole experiments.

    Args:
        high, low: (E, F) scores when high / low was wanted, E experiments, F matched pairs in each
            (shown labels as they are and flipped); (E,) is taken as F = 1.

    Raises:
        UserError: the shapes differ, or are not (E,) or (E, F).
    """
    high, low = (np.asarray(part, dtype=np.float64) for part in (high, low))
    if high.shape != low.shape or high.ndim not in (1, 2):
        raise UserError(f"scores have shapes {high.shape} and {low.shape}: give (E, F) and (E, F)")
    if high.ndim == 1:
        high, low = high[:, None], low[:, None]
    complete = np.isfinite(high) & np.isfinite(low)
    kept = complete.any(axis=1)
    high, low = (np.where(complete, part, np.nan)[kept] for part in (high, low))
    diff, n_pairs = high - low, int(complete.sum())
    d_low, d_high = bootstrap_ci(_d, high, low, seed=seed, n_boot=n_boot)
    dz_low, dz_high = bootstrap_ci(_dz, diff, seed=seed, n_boot=n_boot)
    d = float(_d(high[None], low[None])[0])
    return Effect(
        d, cohens_d_se(d, n_pairs, n_pairs), d_low, d_high,
        float(_dz(diff[None])[0]), dz_low, dz_high,
        p=sign_flip_p(np.nansum(diff, axis=1), seed=seed),
        n_experiments=int(kept.sum()), n_trials=2 * n_pairs, n_dropped=2 * int((~complete).sum()),
    )  # fmt: skip


def control_precision(d_target: float, d_others: np.ndarray) -> float:
    """Return |d of the target axis| / mean |d of the other axes|; 1 is no precision.

    NaN among the others is left out; the result is NaN if none remains, their mean is 0, or d_target is NaN.
    """
    others = np.abs(_vector(d_others, "d_others"))
    others = others[np.isfinite(others)]
    if not others.sum() > 0:
        return np.nan
    return float(abs(d_target) / others.mean())


def neural_difference_cosine(diff: np.ndarray, direction: np.ndarray) -> float:
    """Return the cosine between the mean change of the hidden state and an axis.

    Args:
        diff: (n, D) hidden state when high was wanted minus when low was; rows with NaN are left out.
        direction: (D,) the axis, of any length.

    Returns:
        1 if the model moves along the axis only; NaN without a row, or if a vector has no length.

    Raises:
        UserError: the shapes do not match.
    """
    diff, direction = (np.asarray(part, dtype=np.float64) for part in (diff, direction))
    if diff.ndim != 2 or direction.shape != diff.shape[1:]:
        raise UserError(f"diff {diff.shape} and direction {direction.shape}: give (n, D) and (D,)")
    diff = diff[np.isfinite(diff).all(axis=1)]
    moved = diff.mean(axis=0) if len(diff) else np.zeros_like(direction)
    return float(_ratio(moved @ direction, np.linalg.norm(moved) * np.linalg.norm(direction)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return the p-values (m,) adjusted for the false discovery rate; NaN stays NaN and does not count.

    Raises:
        UserError: a value is not in [0, 1], or not one-dimensional.
    """
    from scipy.stats import false_discovery_control

    p = _vector(p, "p")
    known = ~np.isnan(p)
    if ((p[known] < 0) | (p[known] > 1)).any():
        raise UserError(f"p-values from {np.nanmin(p):g} to {np.nanmax(p):g}: they must be in [0, 1]")
    adjusted = np.full(p.shape, np.nan)
    if known.any():
        adjusted[known] = false_discovery_control(p[known], method="bh")
    return adjusted


# ---------------------------------------------------------------- report


def report_samples(p1: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every prediction, whether it is right (a tie is 0.5) and its cross-entropy in nats.

    Args:
        p1: (E, N) the model's probability of label 1 before label i is shown, NaN if missing.
        labels: (E, N) 0 or 1.

    Returns:
        Two (E, N) arrays, NaN where p1 is.

    Raises:
        UserError: the shapes differ, a label is not 0 or 1, or a probability is not in [0, 1].
    """
    p1, labels = np.asarray(p1, dtype=np.float64), _labels(labels)
    if p1.shape != labels.shape:
        raise UserError(f"p1 {p1.shape} and labels {labels.shape}: both must be (E, N)")
    if ((p1 < 0) | (p1 > 1)).any():
        raise UserError(
            f"p1 reaches from {np.nanmin(p1):g} to {np.nanmax(p1):g}: give probabilities, not logits"
        )
    chosen = np.where(labels == 1, p1, 1 - p1)
    right = np.where(np.isnan(chosen), np.nan, 0.5 + 0.5 * np.sign(chosen - 0.5))
    return right, -np.log(np.maximum(chosen, _SMALLEST_P))


def report_metrics(p1: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return (N,) figures per position, over experiments: the i-th prediction has seen i examples.

    Args, Raises: as for ``report_samples``, whose values ``mean_ci`` turns into intervals.

    Returns:
        ``accuracy``, ``cross_entropy`` in nats (ln 2 = 0.69 is a coin's), ``balanced_accuracy``,
        ``majority`` (the baseline), and ``n``, the experiments whose prediction is not NaN.
    """
    right, nats = report_samples(p1, labels)
    return {
        "accuracy": _nanmean(right),
        "cross_entropy": _nanmean(nats),
        "balanced_accuracy": balanced_accuracy(p1, labels),
        "majority": majority_baseline(labels),
        "n": np.isfinite(right).sum(axis=0),
    }


def balanced_accuracy(p1: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) the mean of the two labels' accuracies; NaN where a label does not occur.

    Args, Raises: as for ``report_samples``.
    """
    right, _ = report_samples(p1, labels)
    ones = np.asarray(labels) == 1
    return (_nanmean(np.where(ones, right, np.nan)) + _nanmean(np.where(ones, np.nan, right))) / 2


def majority_baseline(labels: np.ndarray) -> np.ndarray:
    """Return (N,) the accuracy of predicting the commonest label so far; a tie counts 0.5.

    Raises:
        UserError: labels are not (E, N), or not 0 and 1.
    """
    labels = _labels(labels)
    sides = 2 * labels - 1
    lead = np.cumsum(sides, axis=1) - sides  # ones minus zeros among the examples before this one
    return _nanmean(0.5 + 0.5 * np.sign(lead) * sides)


# ---------------------------------------------------------------- shared


def _d(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Cohen's d of each of (S, ...) and (S, ...), all their values as samples, NaN left out."""
    (n1, mean1, square1), (n2, mean2, square2) = _moments(high), _moments(low)
    pooled = np.sqrt(_ratio(square1 + square2, np.where((n1 > 1) & (n2 > 1), n1 + n2 - 2, 0)))
    return _ratio(mean1 - mean2, pooled)


def _dz(diff: np.ndarray) -> np.ndarray:
    """d_z of each of (S, ...), NaN left out."""
    n, mean, square = _moments(diff)
    return _ratio(mean, np.sqrt(_ratio(square, n - 1)))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and sum of squared deviations of each of (S, ...); rounding alone counts as 0."""
    values = values.reshape(len(values), int(np.prod(values.shape[1:])))
    present = np.isfinite(values)
    n = present.sum(axis=1)
    mean = _ratio(np.where(present, values, 0.0).sum(axis=1), n)
    square = (np.where(present, values - mean[:, None], 0.0) ** 2).sum(axis=1)
    return n, mean, np.where(square > n * (1e-12 * mean) ** 2, square, 0.0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where bottom is not positive."""
    bottom = np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over experiments (axis 0), NaN without one."""
    return _ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def _vector(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise UserError(f"{name} has shape {values.shape}: give one dimension")
    return values


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise UserError(f"labels of shape {labels.shape}: give (E, N) with 0 and 1 only")
    return labels.astype(np.int64)
