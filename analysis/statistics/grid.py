"""Effects of wanting high over low in a whole grid of cells at once.

Shape letters: E experiments, F matched pairs of an experiment (label flips), C cells (any grid, flattened),
S resamples. NaN stands for a missing trial, and a result is NaN where the data do not define it.

A resampled d needs only three sums of each experiment (pairs, scores, squared scores) and how often the
experiment was drawn, so that the resampled sums of many cells are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from analysis.statistics.moments import d_of, dz_of, experiment_sums, ratio
from analysis.statistics.resampling import bca_interval, times_drawn
from analysis.statistics.signflips import sign_flip_ps

_CHUNK = 200_000
"""Most resampled values held at once (1.6 MB); about 20 such arrays live together."""


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
    high: Float[np.ndarray, "E F C"],
    low: Float[np.ndarray, "E F C"],
    seed: int = 0,
    n_boot: int = 2000,
    intervals: bool = True,
) -> EffectGrid:
    """Return how far true scores follow the wanted ones, in every cell.

    One trial is one sample of d and one pair one sample of d_z. The F pairs of an experiment share their
    examples, so the intervals draw whole experiments and the test flips whole experiments; one without a
    complete pair in a cell is left out of that cell.

    Args:
        high, low: scores when high / low was wanted, NaN where missing.
        intervals: False leaves the four ends of the intervals NaN, which saves most of the time.

    Raises:
        ValueError: the shapes differ or are not (E, F, C), or n_boot < 1.
    """
    high, low = _checked(high, low, n_boot)
    complete = np.isfinite(high) & np.isfinite(low)
    n_experiments, n_pairs = complete.any(axis=1).sum(axis=0), complete.sum(axis=(0, 1))
    found = {field.name: np.full(high.shape[2], np.nan) for field in fields(EffectGrid)}
    for n, cells in _chunks(n_experiments, n_boot if intervals else 1):
        pairs = _Pairs(high[..., cells], low[..., cells], n)
        effects = pairs.effects(np.ones((n, 1)))[..., 0]
        found["d"][cells], found["dz"][cells] = effects
        found["p"][cells] = sign_flip_ps(pairs.change, seed=seed)
        if intervals and n >= 2:
            drawn, left = pairs.effects(times_drawn(n, n_boot, seed)), pairs.effects(1 - np.eye(n))
            for name, *parts in zip(("d", "dz"), drawn, left, effects, strict=True):
                found[f"{name}_low"][cells], found[f"{name}_high"][cells] = bca_interval(*parts)
    found["d_se"] = d_standard_error(found["d"], n_pairs, n_pairs)
    n_dropped = 2 * (~complete).sum(axis=(0, 1))
    return EffectGrid(**found | dict(n_experiments=n_experiments, n_trials=2 * n_pairs, n_dropped=n_dropped))


def d_standard_error(d: ArrayLike, n1: ArrayLike, n2: ArrayLike) -> np.ndarray:
    """Return the large-sample standard error of d: SE^2 = (n1 + n2) / (n1 n2) + d^2 / (2 (n1 + n2)).

    Source: Hedges & Olkin 1985, p. 86. It takes all samples as independent. NaN if d is, or n1 or n2 < 2.
    """
    product = np.where(np.minimum(n1, n2) > 1, np.multiply(n1, n2), 0)
    return np.asarray(np.sqrt(ratio(np.add(n1, n2), product) + ratio(np.square(d), 2 * np.add(n1, n2))))


def combined_ci(
    high: Float[np.ndarray, "E F C"],
    low: Float[np.ndarray, "E F C"],
    combine: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    n_boot: int = 2000,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a function of the d of several cells with its 95 % BCa bootstrap interval.

    The cells share their experiments, and a resample draws the same experiments in all of them; their d move
    together in it, as they do in the data.

    Args:
        high, low: scores when high / low was wanted, NaN where missing. Experiments without a complete pair
            in any cell are left out.
        combine: takes d (S, C) of S resamples, NaN where undefined, and returns (S, ...), such as
            ``lambda d: np.abs(d).mean(axis=1)``. It treats every resample on its own.

    Returns:
        The value, and the low and high end of its interval, each of the shape of ``combine`` without S;
        the interval is NaN as that of ``resampling.bootstrap_ci`` is.

    Raises:
        ValueError: the shapes differ or are not (E, F, C), or n_boot < 1.
    """
    high, low = _checked(high, low, n_boot)
    kept = (np.isfinite(high) & np.isfinite(low)).any(axis=(1, 2))
    high, low, n = high[kept], low[kept], int(kept.sum())
    pairs, step = _Pairs(high, low), max(1, _CHUNK // max(1, high.shape[2]))

    def combined(times: np.ndarray) -> np.ndarray:
        starts = range(0, times.shape[1], step)
        return np.concatenate(
            [combine(pairs.effects(times[:, start : start + step])[0].T) for start in starts]
        )

    value = np.asarray(combined(np.ones((n, 1)))[0])  # a number if ``combine`` gives one
    if n < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    drawn, left = combined(times_drawn(n, n_boot, seed)), combined(1 - np.eye(n))
    ends = bca_interval(drawn.reshape(n_boot, -1).T, left.reshape(n, -1).T, value.reshape(-1))
    return value, ends[0].reshape(value.shape), ends[1].reshape(value.shape)


class _Pairs:
    """The complete pairs of each cell as sums over experiments, from which every resampled effect follows."""

    def __init__(self, high: np.ndarray, low: np.ndarray, n: int | None = None) -> None:
        """Take (E, F, C) scores; with ``n``, keep the n experiments with a complete pair of each cell.

        The experiments that are kept move up, so that cells with different ones fit into one array: how
        often the i-th of them is drawn depends on n alone.
        """
        high, low = (part.astype(np.float64).transpose(2, 0, 1) for part in (high, low))  # (C, E, F)
        if n is not None:
            empty = ~(np.isfinite(high) & np.isfinite(low)).any(axis=2)
            kept = np.argsort(empty, axis=1, kind="stable")[:, :n, None]
            high, low = (np.take_along_axis(part, kept, axis=1) for part in (high, low))
        complete = np.isfinite(high) & np.isfinite(low)
        high, low = (np.where(complete, part, 0.0) for part in (high, low))
        self.change = (high - low).sum(axis=2)
        """(C, E) sum of high minus low."""
        self.sums = [experiment_sums(part, complete) for part in (high, low, high - low)]

    def effects(self, times: Float[np.ndarray, "E S"]) -> Float[np.ndarray, "2 C S"]:
        """Return d and d_z with each experiment counted ``times``."""
        high, low, change = (sums.moments(times) for sums in self.sums)
        return np.stack([d_of(high, low), dz_of(change)])


def _chunks(n_experiments: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield n and the indices of cells with n experiments, few enough for ``width`` values of each."""
    for n in np.unique(n_experiments).tolist():
        cells = np.flatnonzero(n_experiments == n)
        step = max(1, _CHUNK // max(width, n))
        for start in range(0, len(cells), step):
            yield n, cells[start : start + step]


def _checked(high: np.ndarray, low: np.ndarray, n_boot: int) -> tuple[np.ndarray, np.ndarray]:
    high, low = np.asarray(high), np.asarray(low)
    if high.shape != low.shape or high.ndim != 3:
        raise ValueError(f"scores have shapes {high.shape} and {low.shape}: give (E, F, C) and (E, F, C)")
    if n_boot < 1:
        raise ValueError(f"n_boot is {n_boot}: give at least 1 resample")
    return high, low
