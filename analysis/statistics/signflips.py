"""The sign-flip test: is each difference as likely to have the opposite sign?

Shape letters: C cells, E experiments, n of them that are not missing in a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from analysis.statistics.moments import ROUNDING

N_PERM = 10_000
"""Random patterns where there are too many to count all."""
_CHUNK = 200_000
"""Most sums held at once (1.6 MB)."""


def sign_flip_p(diff: np.ndarray, n_perm: int = N_PERM, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean under random signs (Fisher 1935; Phipson & Smyth 2010).

    The null: every difference is as likely to have the opposite sign. All 2^n sign patterns are counted
    if they are at most ``n_perm``; otherwise ``n_perm`` random ones plus the observed one, so that p is
    never 0. The smallest possible p is therefore 2 / 2^n, or 1 / (n_perm + 1).

    Args:
        diff: (n,) one difference an experiment; NaN is left out.

    Returns:
        p in (0, 1]; NaN with fewer than 2 differences.

    Raises:
        ValueError: ``diff`` is not (n,), or n_perm < 1.
    """
    diff = np.asarray(diff, dtype=np.float64)
    if diff.ndim != 1:
        raise ValueError(f"diff has shape {diff.shape}: give (n,)")
    return float(sign_flip_ps(diff[None], n_perm, seed)[0])


def sign_flip_ps(
    diff: Float[np.ndarray, "C E"], n_perm: int = N_PERM, seed: int = 0
) -> Float[np.ndarray, " C"]:
    """Return the p-value of each cell, as ``sign_flip_p`` does; cells with equally many share their signs.

    Raises:
        ValueError: ``diff`` is not (C, E), or n_perm < 1.
    """
    diff = np.asarray(diff, dtype=np.float64)
    if diff.ndim != 2 or n_perm < 1:
        raise ValueError(f"diff has shape {diff.shape}, n_perm is {n_perm}: give (C, E) and n_perm >= 1")
    known, found = np.isfinite(diff), np.full(len(diff), np.nan)
    counts = known.sum(axis=1)
    for n in np.unique(counts[counts >= 2]).tolist():
        cells = np.flatnonzero(counts == n)
        step = max(1, _CHUNK // n)
        for some in (cells[start : start + step] for start in range(0, len(cells), step)):
            found[some] = _p_of(diff[some][known[some]].reshape(-1, n), n_perm, seed)
    return found


def _p_of(diff: Float[np.ndarray, "C n"], n_perm: int, seed: int) -> Float[np.ndarray, " C"]:
    """Return the p-values of cells without a missing difference."""
    cells, n = diff.shape
    # equal sums must count as equal despite rounding
    reach = np.abs(diff.sum(axis=1)) - ROUNDING * np.abs(diff).sum(axis=1)
    exact = 2**n <= n_perm
    hits = np.zeros(cells)
    for signs in [all_signs(n)] if exact else random_signs(n, n_perm, seed, _CHUNK // max(n, cells)):
        hits += (np.abs(diff @ signs.T) >= reach[:, None]).sum(axis=1)
    return hits / 2**n if exact else (1 + hits) / (1 + n_perm)


def all_signs(n: int) -> Float[np.ndarray, "S n"]:
    """Return every pattern once, S = 2^n; the first has no sign flipped."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def random_signs(n: int, n_perm: int, seed: int, at_once: int) -> Iterator[Float[np.ndarray, "S n"]]:
    """Yield ``n_perm`` patterns, ``at_once`` of them (at least 1) at a time; they do not depend on it."""
    bits, step = _bits(n, n_perm, seed), max(1, at_once)
    for start in range(0, n_perm, step):
        yield 1.0 - 2.0 * bits[start : start + step]


@lru_cache(maxsize=8)
def _bits(n: int, n_perm: int, seed: int) -> np.ndarray:
    """Return (n_perm, n) int8, 0 or 1."""
    bits = np.random.default_rng(seed).integers(2, size=(n_perm, n)).astype(np.int8)
    bits.flags.writeable = False  # shared by all calls
    return bits
