"""The cosine between a mean change of the hidden state and an axis, unbiased by the noise of the mean.

The mean of E noisy changes is longer than the true change, by the noise of every one of its D coordinates, so
that its cosine with the axis is too small: a true 1 was measured as 0.11 to 0.74. Products of different
experiments' changes have no noise in common, so that their mean is the squared length without bias.

Shape letters: E experiments, D hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.intervals import MIN_EXPERIMENTS, MIN_UNITS, t_reach, tail_freedom

_TINY = 1e-300


class Cosine(NamedTuple):
    """A cosine with its 95 % interval."""

    value: float
    """NaN where the squared length is not above 0: no change was measured."""
    low: float
    high: float
    """-1 and 1 where the direction of the change is not known; NaN with fewer than 6 experiments."""
    n_experiments: int


class _Across(NamedTuple):
    """The squared length of the mean change across the axis, from products of different experiments."""

    square: float
    """Unbiased, so that it may be negative."""
    noise: float
    """Part of its variance that is there without any change across the axis."""
    slope: float
    """Part of its variance that grows with ``square``."""


def cosine_interval(
    changes: Float[np.ndarray, "E D"],
    direction: Float[np.ndarray, " D"],
    groups: Int[np.ndarray, " E"] | None = None,
) -> Cosine:
    """Return the cosine between the mean change and ``direction``.

    With a the mean change along the axis and b the squared length across it, the cosine is
    a / root(a^2 + b). Both have limits of their own: a those of Student's t, b those at which its unbiased
    estimate is as far away as its noise allows (for b = 0 that of sums of products of independent vectors).
    The limits of the cosine follow from them by Zou & Donner's recovery of variances (2008).

    Args:
        changes: high minus low wanted; rows with NaN are left out.
        direction: of any length.
        groups: of the test sentence of each experiment: the changes of one group are averaged first, since
            they have noise in common. None: all are different.

    Raises:
        ValueError: the shapes do not match.
    """
    changes, direction = (np.asarray(part, dtype=np.float64) for part in (changes, direction))
    if changes.ndim != 2 or direction.shape != changes.shape[1:]:
        raise ValueError(f"changes {changes.shape} and direction {direction.shape}: give (E, D) and (D,)")
    known = np.isfinite(changes).all(axis=1)
    changes, experiments = changes[known], int(known.sum())
    if groups is not None:
        changes = _group_means(changes, np.asarray(groups)[known])
    n, length = len(changes), float(np.linalg.norm(direction))
    if n < 2 or not length > 0:
        return Cosine(np.nan, np.nan, np.nan, experiments)
    along = changes @ direction / length
    gram = changes @ changes.T
    mean, error = float(along.mean()), float(along.std(ddof=1) / np.sqrt(n))
    square = (gram.sum() - np.trace(gram)) / (n * (n - 1))
    value = float(np.clip(mean / np.sqrt(square), -1, 1)) if square > 0 else np.nan
    if experiments < MIN_EXPERIMENTS or n < MIN_UNITS:
        return Cosine(value, np.nan, np.nan, experiments)
    reach = float(t_reach(tail_freedom(along - mean, n))) * error
    low, high = _limits(mean, reach, *_root_limits(_across(gram - np.outer(along, along)), n))
    return Cosine(value, low, high, experiments)


def _group_means(changes: np.ndarray, groups: np.ndarray) -> Float[np.ndarray, "U D"]:
    """Return the mean of the rows of each group."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), changes.shape[1]))
    np.add.at(sums, member, changes)
    return sums / sizes[:, None]


def _across(gram: Float[np.ndarray, "E E"]) -> _Across:
    """Return the squared length of the mean and the parts of its variance, from inner products.

    The variance of the mean product of different vectors is 4 m' S m / E + 2 tr(S^2) / (E (E - 1)), m the
    mean and S the covariance. The jackknife measures the first part once, and the second
    2 (E - 1) / (E - 2) times; the second follows from the products of the centred vectors.
    """
    n = len(gram)  # at least MIN_UNITS
    own, row, total = np.diag(gram), gram.sum(axis=1), gram.sum()
    square = (total - own.sum()) / (n * (n - 1))
    without = (total - 2 * row + own - (own.sum() - own)) / ((n - 1) * (n - 2))
    jackknife = (n - 1) / n * ((without - without.mean()) ** 2).sum()
    centre = np.eye(n) - 1 / n
    centred = centre @ gram @ centre
    apart = (centred**2).sum() - (np.diag(centred) ** 2).sum()
    trace = np.trace(centred) / (n - 1)
    squared = max((apart / (n * (n - 1)) - trace**2 / n**2) / (1 - 1 / n) ** 2, 0.0)
    noise = 2 * squared / (n * (n - 1))
    return _Across(square, noise, max(jackknife - 2 * (n - 1) / (n - 2) * noise, 0.0))


def _root_limits(across: _Across, n: int) -> tuple[float, float, float]:
    """Return the estimate and the 95 % limits of the length of the change across the axis.

    At a limit l the variance is noise + slope l / square, so that |square - l| = t root(variance) is a
    quadratic equation in l.
    """
    square, noise, slope = across
    pairs = n * (n - 1) / 2
    free = float(t_reach(pairs))
    variance = noise + slope
    if not variance > 0:
        root = np.sqrt(max(square, 0.0))
        return root, root, root
    t = float(t_reach(variance**2 / (slope**2 / (n - 1) + noise**2 / pairs)))
    if square <= 0:
        return 0.0, 0.0, np.sqrt(max(square + t * np.sqrt(variance), 0.0))
    middle = square + t**2 * slope / square / 2
    away = np.sqrt(max(middle**2 - square**2 + t**2 * noise, 0.0))
    low = 0.0 if square <= free * np.sqrt(noise) else max(middle - away, 0.0)
    return np.sqrt(square), np.sqrt(low), np.sqrt(middle + away)


def _limits(mean: float, reach: float, length: float, shortest: float, longest: float) -> tuple[float, float]:
    """Return the limits of the cosine of a change ``mean`` +- ``reach`` along the axis and ``length`` across.

    The cotangent r = mean / length is within its limits as long as (mean - r length)^2 is at most
    reach^2 + r^2 side^2, side the distance from the length to its limit on the side that would explain r.
    """
    sign = -1.0 if mean < 0 else 1.0
    a, far, near = abs(mean), longest - length, length - shortest
    sure = a**2 - reach**2
    if sure > 0:
        root = np.sqrt(max((a * length) ** 2 - (length**2 - far**2) * sure, 0.0))
        low = sure / max(a * length + root, _TINY)
    else:
        root = np.sqrt((a * length) ** 2 - (length**2 - near**2) * sure)
        low = sure / max(a * length + root, _TINY)
    open_up = length**2 - near**2
    root = np.sqrt(max((a * length) ** 2 - open_up * sure, 0.0))
    high = (a * length + root) / open_up if open_up > 0 else np.inf
    ends = sign * _cosine(low), sign * _cosine(high)
    return min(ends), max(ends)


def _cosine(cotangent: float) -> float:
    return float(cotangent / np.hypot(1.0, cotangent)) if np.isfinite(cotangent) else 1.0
