"""Effect sizes and accuracies. Axis 0 of every input counts experiments, the independent samples.

NaN stands for a missing trial, such as an empty reply: it is left out, and the number that remains is
reported. A result is NaN where the data do not define it (too few samples, no variance), never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from analysis.statistics.grid import d_standard_error, effect_grid
from analysis.statistics.moments import d_of, dz_of, moments, nanmean, ratio
from analysis.statistics.resampling import MeanCI, bootstrap_ci, mean_ci
from analysis.statistics.signflips import sign_flip_p

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
        ValueError: not one-dimensional.
    """
    high, low = _vector(high, "high"), _vector(low, "low")
    return float(d_of(moments(high), moments(low)))


def cohens_d_se(d: float, n1: int, n2: int) -> float:
    """Return the large-sample standard error of d: SE^2 = (n1 + n2) / (n1 n2) + d^2 / (2 (n1 + n2)).

    Source: Hedges & Olkin 1985, p. 86. It takes all samples as independent. NaN if d is, or n1 or n2 < 2.
    """
    return float(d_standard_error(d, n1, n2))


def paired_dz(diff: np.ndarray) -> float:
    """Return d_z, the mean difference of matched pairs in its own standard deviations (t = d_z sqrt(n)).

    Args:
        diff: (n,), NaN is left out.

    Returns:
        NaN with fewer than 2 pairs, or if all differences are equal.

    Raises:
        ValueError: not one-dimensional.
    """
    return float(dz_of(moments(_vector(diff, "diff"))))


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
        ValueError: the shapes differ, or are not (E,) or (E, F).
    """
    high, low = (np.asarray(part, dtype=np.float64) for part in (high, low))
    if high.shape != low.shape or high.ndim not in (1, 2):
        raise ValueError(f"scores have shapes {high.shape} and {low.shape}: give (E, F) and (E, F)")
    if high.ndim == 1:
        high, low = high[:, None], low[:, None]
    found = effect_grid(high[..., None], low[..., None], seed, n_boot)
    return Effect(**{field.name: getattr(found, field.name)[0].item() for field in fields(Effect)})


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
        ValueError: the shapes do not match.
    """
    diff, direction = (np.asarray(part, dtype=np.float64) for part in (diff, direction))
    if diff.ndim != 2 or direction.shape != diff.shape[1:]:
        raise ValueError(f"diff {diff.shape} and direction {direction.shape}: give (n, D) and (D,)")
    diff = diff[np.isfinite(diff).all(axis=1)]
    moved = diff.mean(axis=0) if len(diff) else np.zeros_like(direction)
    return float(ratio(moved @ direction, np.linalg.norm(moved) * np.linalg.norm(direction)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return the p-values (m,) adjusted for the false discovery rate; NaN stays NaN and does not count.

    Raises:
        ValueError: a value is not in [0, 1], or not one-dimensional.
    """
    from scipy.stats import false_discovery_control

    p = _vector(p, "p")
    known = ~np.isnan(p)
    if ((p[known] < 0) | (p[known] > 1)).any():
        raise ValueError(f"p-values from {np.nanmin(p):g} to {np.nanmax(p):g}: they must be in [0, 1]")
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
        ValueError: the shapes differ, a label is not 0 or 1, or a probability is not in [0, 1].
    """
    p1, labels = np.asarray(p1, dtype=np.float64), _labels(labels)
    if p1.shape != labels.shape:
        raise ValueError(f"p1 {p1.shape} and labels {labels.shape}: both must be (E, N)")
    if ((p1 < 0) | (p1 > 1)).any():
        raise ValueError(
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
        "accuracy": nanmean(right),
        "cross_entropy": nanmean(nats),
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
    return (nanmean(np.where(ones, right, np.nan)) + nanmean(np.where(ones, np.nan, right))) / 2


def majority_baseline(labels: np.ndarray) -> np.ndarray:
    """Return (N,) the accuracy of predicting the commonest label so far; a tie counts 0.5.

    Raises:
        ValueError: labels are not (E, N), or not 0 and 1.
    """
    labels = _labels(labels)
    sides = 2 * labels - 1
    lead = np.cumsum(sides, axis=1) - sides  # ones minus zeros among the examples before this one
    return nanmean(0.5 + 0.5 * np.sign(lead) * sides)


# ---------------------------------------------------------------- shared


def _vector(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}: give one dimension")
    return values


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels of shape {labels.shape}: give (E, N) with 0 and 1 only")
    return labels.astype(np.int64)
