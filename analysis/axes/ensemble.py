"""``lr_ensemble``: the mean of all layers' logistic-regression scores, one number for a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ensemble:
    """The ensemble's scores of all sentences; the axis is the same whichever layer is targeted."""

    scores: np.ndarray
    """(B,) float32, in standard deviations of the fitting sentences."""
    threshold: float
    """A score above it counts as label 1."""
    center: float
    """Mean of the fitting sentences' means over layers."""
    scale: float
    """Their standard deviation."""

    def score(self, by_layer: np.ndarray) -> np.ndarray:
        """Return (N,) float32 from the scores (N, L) on the ``lr`` axis of every layer; NaN stays NaN."""
        return ((by_layer.mean(axis=1, dtype=np.float64) - self.center) / self.scale).astype(np.float32)


def fit_ensemble(by_layer: np.ndarray, axis_rows: np.ndarray, threshold: str) -> Ensemble:
    """Return the ensemble of all layers.

    Args:
        by_layer: (B, L) scores of all sentences on the ``lr`` axis of every layer.
        axis_rows: rows of the sentences that fitted the axes.
        threshold: ``median`` of the fitting scores, or ``zero``.
    """
    fitting = by_layer[axis_rows].mean(axis=1, dtype=np.float64)
    raw = Ensemble(np.empty(0), 0.0, float(fitting.mean()), float(fitting.std()))
    scores = raw.score(by_layer)
    middle = float(np.median(scores[axis_rows])) if threshold == "median" else 0.0
    return Ensemble(scores, middle, raw.center, raw.scale)
