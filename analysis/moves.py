"""How the hidden state itself moves: along the target axis at every layer, and in which direction.

Shape letters as in ``analysis.series``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.effect_grid import bca_interval, times_drawn
from analysis.effects import mean_over
from analysis.resampling import mean_ci
from analysis.series import ControlSeries

Row = dict[str, Any]


def accumulation_rows(series: ControlSeries, mode: str) -> list[Row]:
    """Return the mean position on the target layer's axis at every layer, high and low wanted apart.

    The direction and its scale are those of the targeted layer at every layer that is read; each layer's own
    training mean is removed. At the largest N; both label assignments of an experiment are averaged first.

    Returns:
        Rows with layer_read, want (``high``, ``low``, ``difference``), value, low, high, experiments. Values
        are in standard deviations of the target layer's scores.
    """
    last = series.projection[:, -1, series.modes.index(mode)]  # (E, F, W, L)
    complete = np.isfinite(last).all(axis=2, keepdims=True)
    last = mean_over(np.where(complete, last, np.nan), 1)  # (E, W, L)
    parts = {"high": last[:, 1], "low": last[:, 0], "difference": last[:, 1] - last[:, 0]}
    rows = []
    for want, values in parts.items():
        mean, low, high, n = mean_ci(values)
        rows += [
            {
                "layer_read": int(layer), "want": want, "value": float(mean[i]), "low": float(low[i]),
                "high": float(high[i]), "experiments": int(n[i]),
            }
            for i, layer in enumerate(series.layers_read)
        ]  # fmt: skip
    return rows


def cosine_row(
    series: ControlSeries, mode: str, direction: np.ndarray, seed: int = 0, n_boot: int = 2000
) -> Row:
    """Return the neural-difference cosine: between the mean change of the hidden state and the axis.

    Args:
        series: with ``differences`` (E, D) at the largest N.
        mode: ``active`` or ``inactive``.
        direction: (D,) unit length, the targeted axis.

    Returns:
        axis, n, value, low, high (95 % BCa bootstrap over experiments), experiments.
    """
    moved = series.differences[mode].astype(np.float64)
    moved = moved[np.isfinite(moved).all(axis=1)]
    along, gram, n = moved @ direction, moved @ moved.T, len(moved)

    def cosine(times: np.ndarray) -> np.ndarray:
        """(1, S) of resamples ``times`` (E, S): the mean's length follows from the inner products."""
        length = np.sqrt(np.maximum((times * (gram @ times)).sum(axis=0), 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((along @ times) / length)[None]

    whole = cosine(np.ones((n, 1)))[:, 0] if n else np.array([np.nan])
    low = high = np.array([np.nan])
    if n >= 2:
        low, high = bca_interval(cosine(times_drawn(n, n_boot, seed)), cosine(1 - np.eye(n)), whole)
    about = {"axis": series.axis, "n": int(series.shots[-1]), "experiments": n}
    return {**about, "value": float(whole[0]), "low": float(low[0]), "high": float(high[0])}
