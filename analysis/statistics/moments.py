"""Counts, means and squared deviations of many samples at once, and the effect sizes that follow from them.

Shape letters: C cells, E experiments, F values of an experiment in a cell, S resamples. NaN stands for a
missing value; a result is NaN where the data do not define it (too few values, no variance), never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

ROUNDING = 1e-12
"""What is smaller than this share of the numbers that it is a difference of counts as 0."""


class Moments(NamedTuple):
    """Of every sample; the three have one shape."""

    n: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    """Sum of squared deviations from the mean."""


@dataclass(frozen=True)
class Sums:
    """What each experiment adds to the moments of a cell, so that resamples of experiments are products.

    Deviations are taken from the cell's own mean, since squares of scores far from 0 would cancel. Example of
    one cell, E = 2 experiments with F = 2 values each, one of them missing:

        values  [[3, 5], [7, nan]]        mean of the cell 5
        away    [[-2, 0], [2, 0]]         a missing value counts as no deviation
        n       [2, 1]    total [-2, 2]    squares [4, 4]

    A resample that draws experiment 0 three times and experiment 1 not at all is ``times`` = [3, 0]: n = 6
    values, total -6 and squares 12, so that their mean is 5 - 6 / 6 = 4 and their squared deviations are
    12 - (-6)(-6) / 6 = 6, as those of 3, 5, 3, 5, 3, 5 are.
    """

    n: Float[np.ndarray, "C E"]
    """Values."""
    centre: Float[np.ndarray, "C 1"]
    """Mean of the cell."""
    total: Float[np.ndarray, "C E"]
    """Sum of the deviations from ``centre``."""
    squares: Float[np.ndarray, "C E"]
    """Sum of their squares."""

    def moments(self, times: Float[np.ndarray, "E S"]) -> Moments:
        """Return the moments, each (C, S), of resamples that draw each experiment ``times``."""
        return self.around_centre(self.n @ times, self.total @ times, self.squares @ times)

    def around_centre(self, n: np.ndarray, total: np.ndarray, squares: np.ndarray) -> Moments:
        """Return the moments of n values with these sums of deviations and of squares around ``centre``."""
        mean = ratio(total, n)
        square = squares - total * mean
        return Moments(n, self.centre + mean, np.where(square > ROUNDING * squares, square, 0.0))


def experiment_sums(values: Float[np.ndarray, "C E F"], present: Bool[np.ndarray, "C E F"]) -> Sums:
    """Return the sums of the values that are ``present``."""
    values = np.where(present, values, 0.0)
    centre = ratio(values.sum(axis=(1, 2)), present.sum(axis=(1, 2)))[:, None, None]
    away = np.where(present, values - centre, 0.0)
    away[np.abs(away) <= ROUNDING * np.abs(centre)] = 0.0
    n = present.sum(axis=2).astype(np.float64)
    return Sums(n, centre[..., 0], away.sum(axis=2), (away**2).sum(axis=2))


def moments(values: Float[np.ndarray, "*cells n"]) -> Moments:
    """Return the moments of each row, NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    rows = values.reshape(int(np.prod(values.shape[:-1])), 1, values.shape[-1])
    found = experiment_sums(rows, np.isfinite(rows)).moments(np.ones((1, 1)))
    return Moments(*(part.reshape(values.shape[:-1]) for part in found))


def d_of(high: Moments, low: Moments) -> np.ndarray:
    """Return Cohen's d of two unpaired samples; NaN with fewer than 2 values or without variance in them."""
    freedom = np.where((high.n > 1) & (low.n > 1), high.n + low.n - 2, 0)
    return ratio(high.mean - low.mean, np.sqrt(ratio(high.square + low.square, freedom)))


def dz_of(change: Moments) -> np.ndarray:
    """Return d_z, the mean change in its own standard deviations; NaN with fewer than 2 or equal changes."""
    return ratio(change.mean, np.sqrt(ratio(change.square, change.n - 1)))


def ratio(top: ArrayLike, bottom: ArrayLike) -> np.ndarray:
    """Return top / bottom, NaN where bottom is not positive."""
    bottom = np.asarray(bottom, dtype=np.float64)
    top, bottom = np.broadcast_arrays(top, bottom)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def nanmean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean along an axis, NaN without a value."""
    return ratio(np.nansum(values, axis=axis), np.isfinite(values).sum(axis=axis))
