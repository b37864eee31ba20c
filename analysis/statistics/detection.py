"""Detection rates at a false positive rate of 1 %, whose threshold comes from a few hundred negatives.

Shape letters: N negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import betainc

FPR = 0.01
_TAIL = 0.1
"""Share of the negatives whose mean excess continues the scores beyond the largest one."""

Ends = tuple[float, float, float]
"""A value and the ends of its interval."""


def smallest_fpr(n: int, wanted: float = FPR) -> float:
    """Return the false positive rate that n negatives resolve: ``wanted``, but at least 1 / (n + 1)."""
    return max(wanted, 1 / (n + 1))


def threshold_at(negative: Float[np.ndarray, "*C N"], fpr: float) -> Float[np.ndarray, "*C"]:
    """Return the score whose false positive rate is ``fpr`` on average over samples of N negatives.

    A new negative exceeds the r-th largest of N with chance r / (N + 1), so that r = fpr (N + 1), between two
    of them where that is no whole number (Weibull's plotting position). The fourth of 300, the largest score
    with at most 1 % above it, would be exceeded by 1.33 %.

    Raises:
        ValueError: N is too small for ``fpr``, see ``smallest_fpr``.
    """
    rank = fpr * (negative.shape[-1] + 1)
    if rank < 1 - 1e-9:
        raise ValueError(f"{negative.shape[-1]} negatives do not resolve a false positive rate of {fpr:g}")
    return ranked(negative, max(rank, 1.0))


def threshold_limits(
    negative: Float[np.ndarray, "*C N"], fpr: float, level: float = 0.95
) -> tuple[Float[np.ndarray, "*C"], Float[np.ndarray, "*C"]]:
    """Return the scores between which the true threshold of ``fpr`` lies with probability ``level``.

    The chance that the r-th largest of N lies above it is that of a Beta(r, N + 1 - r) below ``fpr``,
    whatever the distribution; ranks between whole numbers as in Hutson (1999). With 300 negatives and 1 % the
    upper limit lies a little beyond the largest one, where an exponential tail is assumed; with 100 and a
    tail as heavy as a lognormal's they hold it 89 % of the time.
    """
    n, out = negative.shape[-1], (1 - level) / 2
    return ranked(negative, _rank(n, fpr, out)), ranked(negative, _rank(n, fpr, 1 - out))


def ranked(negative: Float[np.ndarray, "*C N"], rank: float) -> Float[np.ndarray, "*C"]:
    """Return the score of a rank from the top, which need not be whole: 1 is the largest.

    Below rank 1 the scores go on as an exponential tail with the mean excess of their largest tenth.
    """
    values, n = np.sort(negative, axis=-1)[..., ::-1], negative.shape[-1]
    rank = min(rank, float(n))
    if rank >= 1:
        place = int(rank) - 1
        after = min(place + 1, n - 1)
        step = values[..., after] - values[..., place]
        return np.asarray(values[..., place] + (rank - 1 - place) * step)
    tail = max(1, int(_TAIL * n))
    excess = values[..., :tail].mean(axis=-1) - values[..., min(tail, n - 1)]
    return np.asarray(values[..., 0] - np.log(rank) * excess)


@lru_cache(maxsize=64)
def _rank(n: int, fpr: float, chance: float) -> float:
    """Return the rank r whose score lies above the threshold of ``fpr`` with this chance, of n negatives."""
    reached = lambda rank: float(betainc(rank, n + 1 - rank, fpr)) - chance  # noqa: E731
    top = float(n)
    return top if reached(top) > 0 else float(brentq(reached, 1e-6, top))


def at_threshold(
    statistic: Callable[[float], Ends], negative: Float[np.ndarray, " N"], fpr: float = FPR
) -> Ends:
    """Return a statistic at the threshold of ``fpr``, its interval widened by what the threshold may be.

    Args:
        statistic: takes a threshold and returns a value with the ends of its interval at that threshold, such
            as the share of scores above it.
        negative: scores that the threshold comes from, none of them among the scores of the statistic.

    Returns:
        The value at ``threshold_at``. Its distances to the interval's ends, and to its values at the limits
        of the threshold, add up as the sides of a right triangle (Zou & Donner 2008).
    """
    value, low, high = statistic(float(threshold_at(negative, fpr)))
    others = [statistic(float(limit))[0] for limit in threshold_limits(negative, fpr)]
    down, up = max(0.0, value - min(others)), max(0.0, max(others) - value)
    return value, value - float(np.hypot(value - low, down)), value + float(np.hypot(high - value, up))
