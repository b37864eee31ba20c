"""Several tests at once: p-values that hold for a declared family of rows, and what a design can reach.

The chance that any row of a family without effects gets an adjusted p below .05 is 5 %: the largest statistic
of the family is compared with its own distribution, so that rows which move together cost nothing.

Shape letters: R rows of the family, E experiments, U units, G sentence groups, S sign patterns or draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from analysis.statistics.moments import ROUNDING, ratio
from analysis.statistics.signflips import all_signs, random_signs

N_PATTERNS = 20_000
"""Patterns or draws; all 2^U patterns are counted where they are not more."""
ALPHA = 0.05
_CHUNK = 4_000_000


def max_t(
    changes: Float[np.ndarray, "R U"], seed: int = 0, n_patterns: int = N_PATTERNS
) -> tuple[Float[np.ndarray, " R"], float]:
    """Return family-wise p-values by joint sign flips (Westfall & Young 1993, step-down max-T).

    The null of a row: its changes are as likely with the opposite sign. A pattern flips whole units in all
    rows at once, so that what rows share stays shared. Rows are compared by |sum| / root of the sum of
    squares, which rises with |t|, so that a row with large scores does not hide the others. All 2^U patterns
    are counted if they are at most ``n_patterns``; otherwise that many random ones plus the observed one.

    Args:
        changes: high minus low of each unit, NaN where missing; the same units in every row.

    Returns:
        p of each row, NaN for one with fewer than 2 changes or none that is not 0, which is no test; and the
        critical |sum| / root that a row alone must reach for p < .05, NaN where no pattern is rare enough.

    Raises:
        ValueError: not (R, U).
    """
    changes = np.asarray(changes, dtype=np.float64)
    if changes.ndim != 2:
        raise ValueError(f"changes have shape {changes.shape}: give (R, U)")
    filled = np.where(np.isfinite(changes), changes, 0.0)
    size = np.sqrt((filled**2).sum(axis=1))
    tested = (size > 0) & (np.isfinite(changes).sum(axis=1) >= 2)
    unit = np.where(tested[:, None], ratio(1.0, size)[:, None] * filled, 0.0)[tested]
    exact = 2 ** changes.shape[1] <= n_patterns
    found, critical = _step_down(
        np.abs(unit.sum(axis=1)),
        (np.abs(unit @ signs.T) for signs in _patterns(unit, n_patterns, seed)),
        exact,
    )
    p = np.full(len(changes), np.nan)
    p[tested] = found
    return p, critical


def joint_normals(
    p: Float[np.ndarray, " R"],
    by_experiment: Float[np.ndarray, "R E"],
    by_group: Float[np.ndarray, "R G"],
    seed: int = 0,
    n_draws: int = N_PATTERNS,
) -> tuple[Float[np.ndarray, " R"], float]:
    """Return family-wise p-values of crossed estimates, whose experiments share their sentences.

    Flipping experiments would keep the sentences, and so hold for these sentences only. Each row's own p is
    taken as that of a normal deviate; the deviates of the rows are drawn together with the correlations of
    what experiments and sentence groups add to the estimates (single-step max-t of Hothorn, Bretz & Westfall
    2008, stepped down).

    Args:
        p: of each row alone, NaN where it is no test.
        by_experiment, by_group: of ``crossed.Estimates``, the same experiments and groups in every row.

    Returns:
        Adjusted p, and the critical deviate that a row alone must reach for p < .05.
    """
    tested = np.isfinite(p)
    parts = np.concatenate([by_experiment, by_group], axis=1)[tested]
    size = np.sqrt((parts**2).sum(axis=1))
    loadings = np.where(size[:, None] > 0, ratio(1.0, size)[:, None] * parts, 0.0)
    found, critical = _step_down(
        -ndtri(np.maximum(p[tested], 1e-300) / 2), _deviates(loadings, n_draws, seed), exact=False
    )
    adjusted = np.full(p.shape, np.nan)
    adjusted[tested] = np.maximum(found, p[tested])
    return adjusted, critical


def _step_down(
    observed: Float[np.ndarray, " R"], drawn: Iterator[Float[np.ndarray, "R s"]], exact: bool
) -> tuple[Float[np.ndarray, " R"], float]:
    """Return adjusted p of the statistics, and the critical value of the largest, from draws of them all."""
    order = np.argsort(-observed, kind="stable")
    reach = observed[order] * (1 - ROUNDING) - ROUNDING  # equal sums count as equal despite rounding
    hits, largest, n = np.zeros(len(order)), [], 0
    for some in drawn:
        # row i in this order is compared with the largest of the rows from i on
        most = np.maximum.accumulate(some[order][::-1], axis=0)[::-1]
        hits += (most >= reach[:, None]).sum(axis=1)
        n += some.shape[1]
        largest.append(most[0] if len(order) else np.zeros(some.shape[1]))
    p = np.empty(len(order))
    p[order] = np.maximum.accumulate(hits / n if exact else (1 + hits) / (1 + n))
    return p, _critical(np.concatenate(largest), exact)


def _critical(largest: Float[np.ndarray, " S"], exact: bool) -> float:
    """Return the smallest value that fewer than ALPHA of the draws reach; NaN if there is none."""
    values = np.sort(largest)[::-1]
    allowed = int(np.ceil(ALPHA * len(values) if exact else ALPHA * (len(values) + 1) - 1)) - 1
    if allowed < 1:
        return np.nan
    top = values[:allowed]
    if allowed < len(values):  # values that tie with the next one are reached too often
        top = top[top > values[allowed] * (1 + ROUNDING)]
    return float(top[-1]) if len(top) else np.nan


def _patterns(unit: np.ndarray, n_patterns: int, seed: int) -> Iterator[Float[np.ndarray, "s U"]]:
    rows, n = unit.shape
    if 2**n <= n_patterns:
        return iter([all_signs(n)])
    return random_signs(n, n_patterns, seed, _CHUNK // max(rows, n))


def _deviates(loadings: Float[np.ndarray, "R F"], n_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield |normal deviates| (R, s) with variance 1 and the correlations of the rows of ``loadings``."""
    values, vectors = np.linalg.eigh(loadings @ loadings.T)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // max(1, len(root)))
    for start in range(0, n_draws, step):
        yield np.abs(root @ rng.standard_normal((len(root), min(step, n_draws - start))))


def smallest_p(units: int, n_patterns: int = N_PATTERNS) -> float:
    """Return the smallest p that sign flips of ``units`` can give, whatever the data: 2 / 2^units."""
    return 2.0 ** (1 - units) if 2**units <= n_patterns else 1 / (n_patterns + 1)
