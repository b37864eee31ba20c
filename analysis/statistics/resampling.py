"""Bootstrap intervals. Axis 0 of an input counts experiments, the independent samples.

Shape letters: E experiments, M statistics, S resamples. NaN stands for a missing value. A result is NaN where
the data do not define it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from analysis.statistics.moments import ROUNDING, ratio

_CHUNK = 4_000_000
"""Most numbers drawn or gathered at once (32 MB), so that memory does not grow with the input."""
_MIN_DEFINED = 0.9
"""Share of the resamples on which a statistic must be defined for its interval to mean anything."""
LEVEL = 0.95


class MeanCI(NamedTuple):
    """A mean over experiments with its confidence interval; all fields have the shape of one experiment."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    """Experiments that are not NaN."""


# ---------------------------------------------------------------- any statistic


def bootstrap_ci(
    statistic: Callable[..., np.ndarray],
    *arrays: np.ndarray,
    level: float = LEVEL,
    n_boot: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of a statistic, see ``bca_interval``.

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
        ValueError: arrays of different lengths, or a level or n_boot out of range.
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
    low, high = bca_interval(values[None], jackknife[None], whole, level)[:, 0].tolist()
    return low, high


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


@lru_cache(maxsize=8)
def times_drawn(n: int, n_boot: int, seed: int) -> Float[np.ndarray, "E S"]:
    """Return (n, n_boot): how often each resample of ``bootstrap_ci`` draws each experiment."""
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    place = drawn + n * np.arange(n_boot)[:, None]
    times = np.bincount(place.ravel(), minlength=n_boot * n).reshape(n_boot, n).T.astype(np.float64)
    times.flags.writeable = False  # shared by all calls
    return times


def bca_interval(
    values: Float[np.ndarray, "M S"],
    jackknife: Float[np.ndarray, "M E"],
    whole: Float[np.ndarray, " M"],
    level: float = LEVEL,
) -> Float[np.ndarray, "2 M"]:
    """Return the ends of BCa bootstrap intervals (Efron 1987; DiCiccio & Efron 1996, eq. 2.3).

    BCa corrects the percentile interval for bias and skew, which matters for ratios such as d and d_z with
    tens of experiments. Where it is undefined (2 experiments, a statistic that never varies), the plain
    percentile interval is returned, and NaN where a statistic is undefined on over 10 % of its resamples.

    Args:
        values: of the resamples, NaN where undefined.
        jackknife: with each experiment left out.
        whole: of the data.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    defined, away = np.isfinite(values).sum(axis=1), values - whole[:, None]
    pull = jackknife.mean(axis=1, keepdims=True) - jackknife
    power = (pull**2).sum(axis=1)
    # a resample that is the data in another order counts as equal despite rounding
    same = np.abs(away) <= ROUNDING * (np.abs(whole) + np.sqrt(np.nan_to_num(power)))[:, None]
    below = ((away < 0) & ~same).sum(axis=1) + same.sum(axis=1) / 2
    skew = ratio((pull**3).sum(axis=1), 6 * power**1.5)
    bias = ndtri(ratio(below, defined))
    plain = np.array([(1 - level) / 2, (1 + level) / 2])[:, None]
    z = bias + ndtri(plain)  # (2, M)
    exists = (below > 0) & (below < defined) & (power > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        tails = np.where(exists, ndtr(bias + z / (1 - skew * z)), plain)
    enough = (defined > 0) & (defined / values.shape[1] >= _MIN_DEFINED)
    return np.where(enough, _quantiles(values, defined, tails), np.nan)


def _quantiles(
    values: Float[np.ndarray, "M S"], defined: np.ndarray, tails: Float[np.ndarray, "Q M"]
) -> Float[np.ndarray, "Q M"]:
    """Return the quantiles ``tails``, different in each row, of the ``defined`` (M,) values of a row."""
    values = np.sort(values, axis=1)  # NaN comes last
    place = tails * np.maximum(defined - 1, 0)
    first = np.floor(place).astype(np.int64)
    second = np.minimum(first + 1, np.maximum(defined - 1, 0))
    lower, upper = (np.take_along_axis(values, index.T, axis=1).T for index in (first, second))
    return lower + (upper - lower) * (place - first)


# ---------------------------------------------------------------- means


def mean_ci(values: np.ndarray, level: float = LEVEL, n_boot: int = 2000, seed: int = 0) -> MeanCI:
    """Return the mean over experiments and its percentile bootstrap interval, NaN left out.

    Args:
        values: (E, ...), one row an experiment; average over what is not independent beforehand.

    Returns:
        Arrays of shape (...). The mean is NaN without a value; the interval is NaN with fewer than 2, and
        has no width where all values are equal.

    Raises:
        ValueError: a level or n_boot out of range, or no axis 0.
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
        times = _multinomial(len(flat), n_boot, seed)
        with np.errstate(invalid="ignore"):
            centred = np.where(present, flat - mean, 0.0)  # equal values give a width of exactly 0
            low, high = _interval(mean + (times @ centred) / (times @ present), tails)
    low, high = (np.where(n >= 2, edge, np.nan) for edge in (low, high))
    return MeanCI(*(part.reshape(shape) for part in (mean, low, high, n)))


@lru_cache(maxsize=8)
def _multinomial(n: int, n_boot: int, seed: int) -> np.ndarray:
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_boot).astype(np.float64)
    times.flags.writeable = False  # shared by all calls
    return times


def _interval(values: np.ndarray, tails: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return two quantiles of the defined values of each column of (S, M), NaN where there is none."""
    defined = np.isfinite(values)
    some = defined.any(axis=0)
    edges = np.full((2, values.shape[1]), np.nan)
    edges[:, some] = np.nanquantile(np.where(defined, values, np.nan)[:, some], tails, axis=0)
    return edges[0], edges[1]


# ---------------------------------------------------------------- checks


def _check_bootstrap(data: list[np.ndarray], level: float, n_boot: int) -> None:
    shapes = [array.shape for array in data]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"arrays have shapes {shapes}: give arrays (n, ...) with the same n")
    if not 0 < level < 1 or n_boot < 1:
        raise ValueError(f"level {level} and n_boot {n_boot}: need 0 < level < 1 and n_boot >= 1")


def _cluster_rows(clusters: np.ndarray, n: int) -> np.ndarray:
    """Return (C, M): the rows of each cluster, filled up with -1."""
    if clusters.shape != (n,):
        raise ValueError(f"clusters have shape {clusters.shape}: give one label for each of the {n} rows")
    _, member, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    rows = np.full((len(sizes), sizes.max(initial=0)), -1)
    order = np.argsort(member, kind="stable")
    place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows[member[order], place] = order
    return rows
