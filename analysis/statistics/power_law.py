"""How an effect grows with the size of models: a power law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import linregress, t


@dataclass(frozen=True)
class PowerFit:
    """effect = prefactor * size ** exponent, fitted by least squares to the logarithms."""

    exponent: float
    low: float
    """Lower end of the 95 % interval of the exponent (t distribution, n - 2 degrees of freedom)."""
    high: float
    """Upper end."""
    prefactor: float
    n: int
    """Models fitted."""
    left_out: int
    """Models whose effect is known and not > 0: they have no logarithm. The fit describes the others only."""


def power_fit(size: Float[np.ndarray, " Q"], effect: Float[np.ndarray, " Q"]) -> PowerFit | None:
    """Fit a power law to the models whose effect is > 0.

    Args:
        size: numbers of parameters, > 0.
        effect: NaN is missing.

    Returns:
        The fit, None for fewer than 3 effects > 0 or where these have one size only.

    Raises:
        ValueError: a size is not a number > 0.
    """
    size, effect = np.asarray(size, dtype=float), np.asarray(effect, dtype=float)
    if not (np.isfinite(size) & (size > 0)).all():
        raise ValueError(f"numbers of parameters {size.tolist()}: each must be > 0")
    kept = effect > 0
    if kept.sum() < 3 or len(set(size[kept])) < 2:
        return None
    line = linregress(np.log(size[kept]), np.log(effect[kept]))
    reach = float(t.ppf(0.975, kept.sum() - 2) * line.stderr)
    return PowerFit(
        float(line.slope), float(line.slope) - reach, float(line.slope) + reach,
        float(np.exp(line.intercept)), int(kept.sum()), int((effect <= 0).sum()),
    )  # fmt: skip
