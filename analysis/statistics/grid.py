"""Effects of a whole grid of cells at once: the numbers of ``stats_fn.control_effect``, 100 times as fast.

Shape letters: E experiments, F matched pairs of an experiment (label flips), C cells (any grid, flattened),
S resamples. NaN stands for a missing trial, and a result is NaN where the data do not define it.

A resampled d needs only three sums of each experiment (pairs, scores, squared scores) and how often the
experiment was drawn, so that the resampled sums of many cells are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

from analysis.base.errors import UserError
from analysis.statistics.resampling import _MIN_DEFINED
from analysis.stats_fn import _ratio

_CHUNK = 200_000
"""Most resampled values held at once (1.6 MB); about 20 such arrays live together."""
_ROUNDING = 1e-12
"""What is smaller than this share of the numbers that it is a difference of counts as 0."""
_TAILS = np.array([0.025, 0.975])
_N_PERM = 10_000


@dataclass(frozen=True)
class EffectGrid:
    """The effect of "imitate high" against "imitate low" in each cell; every field is (C,)."""

    d: np.ndarray
    """Unpaired Cohen's d, as in the paper."""
    d_se: np.ndarray
    """Its large-sample standard error, all trials taken as independent."""
    d_low: np.ndarray
    d_high: np.ndarray
    """95 % BCa bootstrap interval of d over experiments."""
    dz: np.ndarray
    """Effect of the matched pairs."""
    dz_low: np.ndarray
    dz_high: np.ndarray
    """95 % BCa bootstrap interval of d_z over experiments."""
    p: np.ndarray
    """Two-sided sign-flip test, the signs of whole experiments flipped."""
    n_experiments: np.ndarray
    """int64, experiments with at least one complete pair."""
    n_trials: np.ndarray
    """int64, trials that count, two in a pair."""
    n_dropped: np.ndarray
    """int64, trials left out because one of their pair is NaN, two in a pair."""


def effect_grid(
    high: np.ndarray, low: np.ndarray, seed: int = 0, n_boot: int = 2000, intervals: bool = True
) -> EffectGrid:
    """Return how far true scores follow the wanted ones, in every cell.

    Each cell equals ``stats_fn.control_effect`` of its (E, F) scores up to rounding: the draws and the signs
    are the same, and an experiment without a complete pair in a cell is left out of that cell.

    Args:
        high, low: (E, F, C) scores when high / low was wanted, NaN where missing.
        intervals: False leaves the four ends of the intervals NaN, which saves most of the time.

    Raises:
        UserError: the shapes differ or are not (E, F, C), or n_boot < 1.
    """
    high, low = _checked(high, low, n_boot)
    complete = np.isfinite(high) & np.isfinite(low)
    n_experiments, n_pairs = complete.any(axis=1).sum(axis=0), complete.sum(axis=(0, 1))
    found = {field.name: np.full(high.shape[2], np.nan) for field in fields(EffectGrid)}
    for n, cells in _chunks(n_experiments, n_boot if intervals else 1):
        sums = _Sums(high[..., cells], low[..., cells], n)
        effects = sums.effects(np.ones((n, 1)))[..., 0]
        found["d"][cells], found["dz"][cells] = effects
        if n < 2:
            continue
        found["p"][cells] = _sign_flip_p(sums.change, seed)
        if intervals:
            drawn, left = sums.effects(times_drawn(n, n_boot, seed)), sums.effects(1 - np.eye(n))
            for name, *parts in zip(("d", "dz"), drawn, left, effects, strict=True):
                found[f"{name}_low"][cells], found[f"{name}_high"][cells] = bca_interval(*parts)
    found["d_se"] = np.sqrt(
        _ratio(2.0, np.where(n_pairs > 1, n_pairs, 0)) + _ratio(found["d"] ** 2, 4 * n_pairs)
    )
    n_dropped = 2 * (~complete).sum(axis=(0, 1))
    return EffectGrid(**found | dict(n_experiments=n_experiments, n_trials=2 * n_pairs, n_dropped=n_dropped))


def combined_ci(
    high: np.ndarray,
    low: np.ndarray,
    combine: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    n_boot: int = 2000,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a function of the d of several cells with its 95 % BCa bootstrap interval.

    The cells share their experiments, and a resample draws the same experiments in all of them; their d move
    together in it, as they do in the data.

    Args:
        high, low: (E, F, C) scores when high / low was wanted, NaN where missing. Experiments without a
            complete pair in any cell are left out.
        combine: takes d (S, C) of S resamples, NaN where undefined, and returns (S, ...), such as
            ``lambda d: np.abs(d).mean(axis=1)``. It treats every resample on its own.

    Returns:
        The value, and the low and high end of its interval, each of the shape of ``combine`` without S;
        the interval is NaN as that of ``resampling.bootstrap_ci`` is.

    Raises:
        UserError: the shapes differ or are not (E, F, C), or n_boot < 1.
    """
    high, low = _checked(high, low, n_boot)
    kept = (np.isfinite(high) & np.isfinite(low)).any(axis=(1, 2))
    high, low, n = high[kept], low[kept], int(kept.sum())
    sums, step = _Sums(high, low), max(1, _CHUNK // max(1, high.shape[2]))

    def combined(times: np.ndarray) -> np.ndarray:
        starts = range(0, times.shape[1], step)
        return np.concatenate(
            [combine(sums.effects(times[:, start : start + step])[0].T) for start in starts]
        )

    value = combined(np.ones((n, 1)))[0]
    if n < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    drawn, left = combined(times_drawn(n, n_boot, seed)), combined(1 - np.eye(n))
    ends = bca_interval(drawn.reshape(n_boot, -1).T, left.reshape(n, -1).T, value.reshape(-1))
    return value, *(end.reshape(value.shape) for end in ends)


# ---------------------------------------------------------------- sums of the experiments


class _Sums:
    """Sums over the pairs of each experiment, from which every resampled effect follows."""

    def __init__(self, high: np.ndarray, low: np.ndarray, n: int | None = None) -> None:
        """Take (E, F, C) scores; with ``n``, keep the n experiments with a complete pair of each cell.

        The experiments that are kept move up, so that cells with different ones fit into one array: how
        often the i-th of them is drawn depends on n alone.
        """
        high, low = (part.astype(np.float64).transpose(2, 0, 1) for part in (high, low))  # (C, E, F)
        complete = np.isfinite(high) & np.isfinite(low)
        if n is not None:
            kept = np.argsort(~complete.any(axis=2), axis=1, kind="stable")[:, :n, None]
            high, low, complete = (np.take_along_axis(part, kept, axis=1) for part in (high, low, complete))
        high, low = (np.where(complete, part, 0.0) for part in (high, low))
        self.change = (high - low).sum(axis=2)
        """(C, E) sum of high minus low."""
        self.pairs = complete.sum(axis=2).astype(np.float64)
        """(C, E)"""
        self.scores = [_centred(part, complete) for part in (high, low, high - low)]
        """Of high, low and high minus low: a centre (C, 1); sum and sum of squares around it, (C, E) each."""

    def effects(self, times: np.ndarray) -> np.ndarray:
        """Return (2, C, S), d and d_z, with each experiment counted ``times`` (E, S)."""
        n = self.pairs @ times
        (mean1, square1), (mean2, square2), (change, square) = (
            _moments(n, centre, total @ times, squares @ times) for centre, total, squares in self.scores
        )
        pooled = np.sqrt(_ratio(square1 + square2, 2 * n - 2))
        return np.stack([_ratio(mean1 - mean2, pooled), _ratio(change, np.sqrt(_ratio(square, n - 1)))])


def _centred(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean (C, 1) of (C, E, F), and the sums (C, E) of the deviations and of their squares.

    Squares of deviations do not cancel as squares of scores far from 0 do.
    """
    centre = _ratio(values.sum(axis=(1, 2)), present.sum(axis=(1, 2)))[:, None, None]
    away = np.where(present, values - centre, 0.0)
    away[np.abs(away) <= _ROUNDING * np.abs(centre)] = 0.0
    return centre[..., 0], away.sum(axis=2), (away**2).sum(axis=2)


def _moments(
    n: np.ndarray, centre: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the squared deviations from it, of n scores with these sums around ``centre``."""
    mean = _ratio(total, n)
    square = squares - total * mean
    return centre + mean, np.where(square > _ROUNDING * squares, square, 0.0)


# ---------------------------------------------------------------- resampling


@lru_cache(maxsize=8)
def times_drawn(n: int, n_boot: int, seed: int) -> np.ndarray:
    """Return (n, n_boot): how often each resample of ``resampling.bootstrap_ci`` draws each experiment."""
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    place = drawn + n * np.arange(n_boot)[:, None]
    times = np.bincount(place.ravel(), minlength=n_boot * n).reshape(n_boot, n).T.astype(np.float64)
    times.flags.writeable = False  # shared by all calls
    return times


def bca_interval(values: np.ndarray, jackknife: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return (2, M) ends of the 95 % intervals, as ``resampling.bootstrap_ci`` finds each of them.

    Args:
        values: (M, S) of the resamples.
        jackknife: (M, E) with each experiment left out.
        whole: (M,) of the data.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    defined, away = np.isfinite(values).sum(axis=1), values - whole[:, None]
    pull = jackknife.mean(axis=1, keepdims=True) - jackknife
    power = (pull**2).sum(axis=1)
    # the same experiments in another order: equal, but for rounding
    same = np.abs(away) <= _ROUNDING * (np.abs(whole) + np.sqrt(np.nan_to_num(power)))[:, None]
    below = ((away < 0) & ~same).sum(axis=1) + same.sum(axis=1) / 2
    skew = _ratio((pull**3).sum(axis=1), 6 * power**1.5)
    bias = ndtri(_ratio(below, defined))
    z = bias + ndtri(_TAILS)[:, None]  # (2, M)
    exists = (below > 0) & (below < defined) & (power > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        tails = np.where(exists, ndtr(bias + z / (1 - skew * z)), _TAILS[:, None])
    enough = (defined > 0) & (defined / values.shape[1] >= _MIN_DEFINED)
    return np.where(enough, _quantiles(values, defined, tails), np.nan)


def _quantiles(values: np.ndarray, defined: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Return (Q, M): quantiles ``tails`` (Q, M), different in each row, of the defined of (M, S)."""
    values = np.sort(values, axis=1)  # NaN comes last
    place = tails * np.maximum(defined - 1, 0)
    first = np.floor(place).astype(np.int64)
    second = np.minimum(first + 1, np.maximum(defined - 1, 0))
    lower, upper = (np.take_along_axis(values, index.T, axis=1).T for index in (first, second))
    return lower + (upper - lower) * (place - first)


def _sign_flip_p(diff: np.ndarray, seed: int) -> np.ndarray:
    """Return (C,) what ``resampling.sign_flip_p`` returns for each row of (C, n), n >= 2, without NaN."""
    reach = np.abs(diff.sum(axis=1)) - _ROUNDING * np.abs(diff).sum(axis=1)
    exact = 2 ** diff.shape[1] <= _N_PERM
    hits = np.zeros(len(diff))
    patterns = [_all_signs(diff.shape[1])] if exact else _random_signs(diff.shape[1], len(diff), seed)
    for signs in patterns:
        hits += (np.abs(diff @ signs.T) >= reach[:, None]).sum(axis=1)
    return hits / 2 ** diff.shape[1] if exact else (1 + hits) / (1 + _N_PERM)


def _all_signs(n: int) -> np.ndarray:
    """Return (2^n, n): every pattern once."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def _random_signs(n: int, cells: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the patterns that ``resampling.sign_flip_p`` draws, so many at once that ``cells`` sums fit."""
    step = max(1, _CHUNK // max(n, cells))
    for start in range(0, _N_PERM, step):
        yield 1.0 - 2.0 * _bits(n, seed)[start : start + step]


@lru_cache(maxsize=8)
def _bits(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=(_N_PERM, n)).astype(np.int8)


def _chunks(n_experiments: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield n and the indices of cells with n experiments, few enough for ``width`` values of each."""
    for n in np.unique(n_experiments):
        cells = np.flatnonzero(n_experiments == n)
        step = max(1, _CHUNK // max(width, int(n)))
        for start in range(0, len(cells), step):
            yield int(n), cells[start : start + step]


def _checked(high: np.ndarray, low: np.ndarray, n_boot: int) -> tuple[np.ndarray, np.ndarray]:
    high, low = np.asarray(high), np.asarray(low)
    if high.shape != low.shape or high.ndim != 3:
        raise UserError(f"scores have shapes {high.shape} and {low.shape}: give (E, F, C) and (E, F, C)")
    if n_boot < 1:
        raise UserError(f"n_boot is {n_boot}: give at least 1 resample")
    return high, low
