"""Bootstrap intervals and the sign-flip test.

Axis 0 of every input counts experiments, the independent samples.
NaN stands for a missing value. A result is NaN where the data do not define it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from analysis.base.errors import UserError

_CHUNK = 4_000_000
"""Most numbers drawn or gathered at once (32 MB), so that memory does not grow with the input."""
_MIN_DEFINED = 0.9
"""Share of the resamples on which a statistic must be defined for its interval to mean anything."""


class MeanCI(NamedTuple):
    """A mean over experiments with its confidence interval; all fields have the shape of one experiment."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    """Experiments that are not NaN."""


def bootstrap_ci(
    statistic: Callable[..., np.ndarray],
    *arrays: np.ndarray,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of a statistic (Efron 1987; DiCiccio & Efron 1996, eq. 2.3).

    BCa corrects the percentile interval for bias and skew, which matters for ratios such as d and d_z with
    tens of experiments. Where it is undefined (2 rows, a statistic that never varies), the plain percentile
    interval is returned.

    Args:
        statistic: takes one resampled (S, n, ...) array for each of ``arrays``, S resamples at once, and
            returns (S,); it must skip NaN if the data or unequal clusters bring any.
        arrays: each (n, ...); the same rows of all of them are drawn together, so that pairs stay pairs.
        clusters: (n,) labels; whole clusters are drawn instead of rows. Smaller clusters are filled up
            with NaN rows.

    Returns:
        (low, high); (NaN, NaN) with fewer than 2 rows or clusters, or where the statistic is undefined
        (NaN, such as a standardised effect without variance) on more than 10 % of the resamples.

    Raises:
        UserError: arrays of different lengths, or a level or n_boot out of range.
    """
    data = [np.asarray(array, dtype=np.float64) for array in arrays]
    _check_bootstrap(data, level, n_boot)
    labels = np.arange(len(data[0])) if clusters is None else np.asarray(clusters)
    rows = _cluster_rows(labels, len(data[0]))
    n = len(rows)
    if n < 2:
        return np.nan, np.nan
    data = [np.concatenate([array, np.full_like(array[:1], np.nan)]) for array in data]  # row -1: the filling
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    left = np.arange(n - 1)
    left = left + (left >= np.arange(n)[:, None])  # (n, n - 1): every sample but one
    values, jackknife, whole = (
        _evaluate(statistic, data, rows, picks) for picks in (drawn, left, np.arange(n)[None])
    )
    low, high = _interval(values[:, None], _bca_tails(values, jackknife, whole[0], level), _MIN_DEFINED)
    return float(low[0]), float(high[0])


def _evaluate(
    statistic: Callable[..., np.ndarray], data: list[np.ndarray], rows: np.ndarray, picks: np.ndarray
) -> np.ndarray:
    """Return the statistic (S,) of the clusters ``picks`` (S, C), each with its ``rows`` (M,) of the data."""
    width = picks.shape[1] * rows.shape[1] * max(array[0].size for array in data)
    step = max(1, _CHUNK // max(1, width))
    values = []
    for start in range(0, len(picks), step):
        part = rows[picks[start : start + step]]
        part = part.reshape(len(part), -1)
        values.append(statistic(*(array[part] for array in data)))
    return np.concatenate(values)


def _bca_tails(values: np.ndarray, jackknife: np.ndarray, whole: float, level: float) -> tuple[float, float]:
    """Return the two quantiles of the resampled values at which the BCa interval ends."""
    plain = np.array([(1 - level) / 2, (1 + level) / 2])
    defined = values[np.isfinite(values)]
    pull = jackknife.mean() - jackknife
    power = (pull**2).sum()
    away = defined - whole
    # a resample that is the data in another order counts as equal despite rounding
    same = np.abs(away) <= 1e-12 * (abs(whole) + np.sqrt(np.nan_to_num(power)))
    below = ((away < 0) & ~same).sum() + same.sum() / 2
    if not 0 < below < len(defined) or not power > 0:
        return tuple(plain)
    bias, skew = ndtri(below / len(defined)), (pull**3).sum() / (6 * power**1.5)
    z = bias + ndtri(plain)
    return tuple(ndtr(bias + z / (1 - skew * z)))


def mean_ci(values: np.ndarray, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> MeanCI:
    """Return the mean over experiments and its percentile bootstrap interval, NaN left out.

    Args:
        values: (E, ...), one row an experiment; average over what is not independent beforehand.

    Returns:
        Arrays of shape (...). The mean is NaN without a value; the interval is NaN with fewer than 2, and
        has no width where all values are equal.

    Raises:
        UserError: a level or n_boot out of range, or no axis 0.
    """
    values = np.asarray(values, dtype=np.float64)
    _check_bootstrap([values], level, n_boot)
    shape, flat = values.shape[1:], values.reshape(len(values), int(np.prod(values.shape[1:])))
    present = np.isfinite(flat)
    n = present.sum(axis=0)
    filled = np.where(present, flat, 0.0)
    with np.errstate(invalid="ignore"):
        mean = filled.sum(axis=0) / n
    low = high = np.full(mean.shape, np.nan)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if len(flat) >= 2:
        # how often each experiment is drawn: a resampled mean is then a matrix product
        times = _times_drawn(len(flat), n_boot, seed)
        with np.errstate(invalid="ignore"):
            centred = np.where(present, flat - mean, 0.0)  # equal values give a width of exactly 0
            low, high = _interval(mean + (times @ centred) / (times @ present), tails)
    low, high = (np.where(n >= 2, edge, np.nan) for edge in (low, high))
    return MeanCI(*(part.reshape(shape) for part in (mean, low, high, n)))


@lru_cache(maxsize=8)
def _times_drawn(n: int, n_boot: int, seed: int) -> np.ndarray:
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_boot).astype(np.float64)
    times.flags.writeable = False  # shared by all calls
    return times


def sign_flip_p(diff: np.ndarray, n_perm: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean under random signs (Fisher 1935; Phipson & Smyth 2010).

    The null: every difference is as likely to have the opposite sign. All 2^n sign patterns are counted
    if they are at most ``n_perm``; otherwise ``n_perm`` random ones plus the observed one, so that p is
    never 0. The smallest possible p is therefore 2 / 2^n, or 1 / (n_perm + 1).

    Args:
        diff: (n,) one difference an experiment; NaN is left out.

    Returns:
        p in (0, 1]; NaN with fewer than 2 differences.

    Raises:
        UserError: ``diff`` is not (n,), or n_perm < 1.
    """
    diff = np.asarray(diff, dtype=np.float64)
    if diff.ndim != 1 or n_perm < 1:
        raise UserError(f"diff has shape {diff.shape}, n_perm is {n_perm}: give (n,) and n_perm >= 1")
    diff = diff[np.isfinite(diff)]
    n = len(diff)
    if n < 2:
        return np.nan
    reach = abs(diff.sum()) - 1e-12 * np.abs(diff).sum()  # equal sums must count as equal despite rounding
    if 2**n <= n_perm:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ diff) >= reach).mean())
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, _CHUNK // n)
    for start in range(0, n_perm, step):
        signs = 1.0 - 2.0 * rng.integers(2, size=(min(step, n_perm - start), n))
        hits += int((np.abs(signs @ diff) >= reach).sum())
    return (1 + hits) / (1 + n_perm)


def _check_bootstrap(data: list[np.ndarray], level: float, n_boot: int) -> None:
    shapes = [array.shape for array in data]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise UserError(f"arrays have shapes {shapes}: give arrays (n, ...) with the same n")
    if not 0 < level < 1 or n_boot < 1:
        raise UserError(f"level {level} and n_boot {n_boot}: need 0 < level < 1 and n_boot >= 1")


def _cluster_rows(clusters: np.ndarray, n: int) -> np.ndarray:
    """Return (C, M): the rows of each cluster, filled up with -1."""
    if clusters.shape != (n,):
        raise UserError(f"clusters have shape {clusters.shape}: give one label for each of the {n} rows")
    _, member, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    rows = np.full((len(sizes), sizes.max(initial=0)), -1)
    order = np.argsort(member, kind="stable")
    place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows[member[order], place] = order
    return rows


def _interval(
    values: np.ndarray, tails: tuple[float, float], at_least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return two quantiles of each column of (S, M), NaN where a smaller share is defined."""
    defined = np.isfinite(values)
    enough = defined.any(axis=0) & (defined.mean(axis=0) >= at_least)
    edges = np.full((2, values.shape[1]), np.nan)
    edges[:, enough] = np.nanquantile(np.where(defined, values, np.nan)[:, enough], tails, axis=0)
    return edges[0], edges[1]
