"""``lr_ensemble``: the mean of all layers' logistic-regression scores, one number for a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ensemble:
    """The ensemble's scores of all sentences; the axis is the same whichever layer is targeted."""

    scores: np.ndarray
    """(B,) float32, in standard deviations of held-out sentences."""
    threshold: float
    """A score above it counts as label 1."""
    center: float
    """Mean of the held-out sentences' means over layers."""
    scale: float
    """Their standard deviation."""

    def score(self, by_layer: np.ndarray) -> np.ndarray:
        """Return (N,) float32 from the scores (N, L) on the ``lr`` axis of every layer; NaN stays NaN."""
        return ((by_layer.mean(axis=1, dtype=np.float64) - self.center) / self.scale).astype(np.float32)


def fit_ensemble(by_layer: np.ndarray, rows: np.ndarray, threshold: str) -> Ensemble:
    """Return the ensemble of all layers.

    Args:
        by_layer: (B, L) scores of all sentences on the ``lr`` axis of every layer.
        rows: of the held-out sentences, which set center, scale and threshold.
        threshold: ``median`` of their scores, or ``zero``.
    """
    held_out = by_layer[rows].mean(axis=1, dtype=np.float64)
    raw = Ensemble(np.empty(0), 0.0, float(held_out.mean()), float(held_out.std()))
    scores = raw.score(by_layer)
    middle = float(np.median(scores[rows])) if threshold == "median" else 0.0
    return Ensemble(scores, middle, raw.center, raw.scale)
