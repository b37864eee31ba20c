"""Scores to labels: low and high, or quantile levels cut separately below and above the threshold."""

from __future__ import annotations

import numpy as np

from analysis.base.errors import UserError


def level_cuts(scores: np.ndarray, threshold: float, levels: int) -> np.ndarray:
    """Return the scores at which one label ends and the next begins.

    The threshold always is the middle cut, so that the upper half of the levels means the same as label 1 of
    two; each half is cut at the quantiles of the scores on its own side.

    Args:
        scores: (N,) of sentences that did not fit the axis.
        threshold: of the axis.
        levels: an even number >= 2.

    Returns:
        (levels - 1,) float64, rising.

    Raises:
        UserError: the scores of one side are too few or too equal for that many levels.
    """
    scores = np.asarray(scores, dtype=np.float64)
    inner = np.arange(1, levels // 2) / (levels // 2)
    sides = (scores[scores <= threshold], scores[scores > threshold])
    if levels > 2 and min(map(len, sides)) < levels // 2:
        raise UserError(
            f"{levels} levels need {levels // 2} sentences on each side of the threshold, there are "
            f"{len(sides[0])} below and {len(sides[1])} above: use fewer --levels or a larger n_trial"
        )
    below, above = (np.quantile(side, inner) if levels > 2 else inner for side in sides)
    cuts = np.concatenate([below, [threshold], above])
    if not (np.diff(cuts) > 0).all():
        raise UserError(
            f"the scores hold too many equal values for {levels} levels (cuts "
            f"{np.round(cuts, 3).tolist()}): use fewer --levels or a larger n_trial"
        )
    return cuts


def to_levels(scores: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return int64 labels from 0: how many of the ``cuts`` a score lies above. Same shape as ``scores``."""
    return np.searchsorted(cuts, np.asarray(scores, dtype=np.float64), side="left").astype(np.int64)
