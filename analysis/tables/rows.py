"""What every table is made of: rows, a mean over what is known, and q values over the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis import stats_fn

Row = dict[str, Any]
"""A table is a list of these, so that it becomes CSV, HTML or text without more knowledge."""


def mean_known(values: Float[np.ndarray, ...]) -> float:
    """Return the mean of what is not NaN, NaN without anything."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def with_q(rows: Sequence[Row]) -> list[Row]:
    """Add q after p; a row without p keeps q NaN and does not count as a test."""
    q = stats_fn.benjamini_hochberg(np.array([row["p"] for row in rows], dtype=float))
    return [{**row, "q": float(value)} for row, value in zip(rows, q, strict=True)]
