"""Student intervals of a jackknife: how wide, and with how many degrees of freedom.

Every interval of the tables is one of these: an estimate, the spread of what each independent unit pulls it
by, and Student's t. docs/statistics.md says how they were chosen and what they cover in simulations.

Shape letters: C cells, U units (experiments, or sentence groups). NaN stands for what is not known.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.special import expit, logit, stdtr, stdtrit

from analysis.statistics.moments import ratio

LEVEL = 0.95
MIN_EXPERIMENTS = 6
"""With fewer experiments there is no interval: no method covers 93 % of the time without normal data."""
MIN_UNITS = 4
"""Fewest independent units of an interval: six experiments may share a sentence group or two."""
_FEWEST = 3.0
"""Degrees of freedom that a heavy tail may leave, however many units there are."""


def jackknife_error(
    left_out: Float[np.ndarray, "*C U"], present: Bool[np.ndarray, "*C U"]
) -> tuple[Float[np.ndarray, "*C"], Float[np.ndarray, "*C"]]:
    """Return the standard error of a statistic, and the degrees of freedom of that error.

    Source: Tukey 1958; Efron & Tibshirani 1993, ch. 11: (U - 1) / U times the squared pulls. For means it is
    the usual standard error.

    Args:
        left_out: the statistic without each unit.
        present: units that count; the others are ignored.

    Returns:
        Both NaN with fewer than 2 units, or where the statistic is not defined without one of them.
    """
    n = present.sum(axis=-1)
    values = np.where(present, left_out, 0.0)
    pulls = np.where(present, values - ratio(values.sum(axis=-1), n)[..., None], 0.0)
    variance = (n - 1) * ratio((pulls**2).sum(axis=-1), n)
    error = np.where(n >= 2, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    return error, np.where(np.isfinite(error), tail_freedom(pulls, n), np.nan)


def tail_freedom(pulls: Float[np.ndarray, "*C U"], n: ArrayLike) -> Float[np.ndarray, "*C"]:
    """Return the degrees of freedom of a variance estimated from n independent ``pulls`` of mean 0.

    n - 1 if they are normal. The variance of an estimated variance grows with the kurtosis k of the data, as
    if there were 2 (n - 1) / (k - 1) degrees (Satterthwaite 1946); k is the sample's, with the factor
    (n + 1) / (n - 1) that makes it 3 on average for normal data. It lies between 3 and n - 1.
    """
    n = np.asarray(n)
    square = ratio((pulls**2).sum(axis=-1), n)
    kurtosis = ratio((pulls**4).sum(axis=-1), n) * ratio(n + 1, (n - 1) * square**2)
    freedom = 2 * ratio(n - 1, np.maximum(kurtosis - 1, 1e-9))
    return np.asarray(np.clip(np.where(np.isnan(freedom), n - 1, freedom), np.minimum(_FEWEST, n - 1), n - 1))


def t_reach(df: ArrayLike, level: float = LEVEL) -> np.ndarray:
    """Return how many standard errors an interval reaches to either side; NaN where df is not positive."""
    df = np.asarray(df, dtype=np.float64)
    return np.where(df > 0, stdtrit(np.where(df > 0, df, 1.0), (1 + level) / 2), np.nan)


def t_p(distance: ArrayLike, error: ArrayLike, df: ArrayLike) -> np.ndarray:
    """Return the two-sided p-value of a distance from the null; 1 where there is no distance at all.

    NaN where the error is not known, or 0 with a distance that is not: see ``crossed.never_wrong``.
    """
    distance, error, df = np.broadcast_arrays(np.abs(distance), error, np.asarray(df, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        p = 2 * stdtr(np.where(df > 0, df, np.nan), -ratio(distance, error))
    return np.where((distance == 0) & (error == 0), 1.0, p)


def share_ends(share: ArrayLike, error: ArrayLike, reach: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of an interval of a share, symmetric in the logit: it stays between 0 and 1.

    The error of the logit is error / (share (1 - share)). NaN where the share is 0 or 1.
    """
    share = np.asarray(share, dtype=np.float64)
    inside = np.where((share > 0) & (share < 1), share, np.nan)
    away = np.asarray(reach) * np.asarray(error) / (inside * (1 - inside))
    return np.asarray(expit(logit(inside) - away)), np.asarray(expit(logit(inside) + away))
