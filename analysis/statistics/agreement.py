"""Agreement of two kinds of predictions beyond chance."""

from __future__ import annotations

import numpy as np


def cohens_kappa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of two 0/1 predictions, agreement beyond chance (Cohen 1960).

    Args:
        a, b: (..., N) 0 or 1; a position where either is NaN is left out.

    Returns:
        (...) float64, 1 for equal and 0 for unrelated predictions; NaN without a position, or if both
        are constant and equal, so that chance alone agrees always.

    Raises:
        ValueError: the shapes differ, there is no axis, or a value is not 0, 1 or NaN.
    """
    a, b = (np.asarray(part, dtype=np.float64) for part in (a, b))
    if a.shape != b.shape or a.ndim == 0:
        raise ValueError(f"predictions have shapes {a.shape} and {b.shape}: give (..., N) twice")
    if not all(np.isin(part[~np.isnan(part)], (0, 1)).all() for part in (a, b)):
        raise ValueError("predictions must be 0, 1 or NaN: compare probabilities with 0.5 first")
    known = ~(np.isnan(a) | np.isnan(b))
    n = known.sum(axis=-1)
    ones_a, ones_b = (np.where(known, part, 0.0).sum(axis=-1) for part in (a, b))
    equal = (known & (a == b)).sum(axis=-1)
    # times n^2: whole numbers, so that 0 is exact
    chance = ones_a * ones_b + (n - ones_a) * (n - ones_b)
    beyond = np.asarray(n * n - chance, dtype=np.float64)
    return np.divide(n * equal - chance, beyond, out=np.full(beyond.shape, np.nan), where=beyond > 0)
