"""Designs: which places and sizes a statistic is taken over."""

from __future__ import annotations


def fit_sizes(n: int) -> list[int]:
    """Return the numbers of examples below n that an observer is fitted on: 0, 1, 2, 3, 4, 6, 8, 11, 16 ...

    Half powers of two, the first positions of ``tables.report.position_bins``: one fit predicts a bin.
    """
    growing = {round(2 ** (k / 2)) for k in range(2, 2 * max(n, 2).bit_length() + 2)}
    return sorted(size for size in {0, 1, *growing} if size < n)
