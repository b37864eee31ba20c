"""What a design can see: the smallest effect it finds, and how many experiments would decide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import nctdtrinc, ndtr, stdtrit

from analysis.statistics.family import ALPHA
from analysis.statistics.intervals import MIN_EXPERIMENTS

POWER = 0.8
MOST_EXPERIMENTS = 100_000
"""A design that needs more is not called one."""


def critical_t(ratio: float, units: ArrayLike) -> np.ndarray:
    """Return the t that belongs to the critical |sum| / root of ``family.max_t`` for these many units.

    With s = sum / root of the sum of squares, t = s sqrt((U - 1) / (U - s^2)). NaN where no data reach it.
    """
    n = np.asarray(units, dtype=np.float64)
    room = n - ratio**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 1e-9 * n, ratio * np.sqrt((n - 1) / room), np.nan)


def critical_t_of_normal(deviate: float, df: ArrayLike) -> np.ndarray:
    """Return the t whose p is that of the critical deviate of ``family.joint_normals``."""
    return np.asarray(stdtrit(np.asarray(df, dtype=np.float64), ndtr(deviate)))


def detectable(error: ArrayLike, df: ArrayLike, critical: ArrayLike) -> np.ndarray:
    """Return the smallest true value that is found in 80 % of studies like this one.

    The noncentrality at which Student's noncentral t exceeds ``critical`` with that probability, in standard
    errors. It is a property of the design and its noise, not of the value that was found.

    Args:
        error: standard error of the value; of d where there is none, that is of the mean change over the
            deviation of a score.
        df: of the error.
        critical: t that is needed for p < .05, alone or in the family.

    Returns:
        NaN where the critical t is not known or is out of reach.
    """
    error, df, critical = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (error, df, critical)))
    known = np.isfinite(error) & (df > 0) & (critical > 0)
    found = np.full(error.shape, np.nan)
    found[known] = nctdtrinc(df[known], 1 - POWER, critical[known]) * error[known]
    return found


def experiments_needed(
    value: float, between: float, shared: float, n: int, bound: float, alpha: float = ALPHA
) -> int | None:
    """Return with how many experiments a row like this one would be decided, in 80 % of studies.

    Either way of deciding counts, whichever is sooner: the value, if it stays what it is, differs from 0; or
    its 95 % interval lies within +- ``bound``.

    Args:
        between, shared: parts of the squared standard error that fall with the experiments, and that stay
            (0 where experiments share no sentences).
        n: experiments that the parts were measured with.
        alpha: what p must be below for a row alone, so that it is below .05 in its family.

    Returns:
        More than n; None if no number up to 100,000 would do: more sentences are needed then.
    """
    if not math.isfinite(value + between + shared) or n < 2:
        return None
    found = []
    for distance, level in ((abs(value), alpha), (bound - abs(value), ALPHA)):
        if distance > 0:
            found.append(_needed(distance, between * n, shared, level))
    best = min(found, default=math.inf)
    return None if best > MOST_EXPERIMENTS else max(n + 1, MIN_EXPERIMENTS, math.ceil(best))


def _needed(distance: float, variance: float, shared: float, alpha: float) -> float:
    """Return the experiments at which ``distance`` is as many errors as test and power need."""
    experiments = 30.0
    for _ in range(20):  # t instead of the normal: a few experiments more
        df = max(experiments - 1, 2.0)
        reach = stdtrit(df, 1 - alpha / 2) + stdtrit(df, POWER)
        room = (distance / reach) ** 2 - shared
        if room <= 0:
            return math.inf
        experiments = float(variance / room)
    return experiments
