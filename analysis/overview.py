"""What the axes files say about every layer: how well the classifiers do, how much the PCs explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis import store as results
from analysis.store import Store
from analysis.tables import axis_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AxesData:
    """The axes of all layers, without their directions."""

    layers: list[int]
    """L numbers."""
    accuracy: dict[str, np.ndarray]
    """axis -> (L,) share of right labels on the trial half, NaN where not fitted."""
    variance: np.ndarray
    """(L, R) explained variance ratio, NaN past the last PC of a layer."""
    n_trial: int | None
    """Sentences of the trial half, None if the split is not on disk."""


def load_axes(store: Store) -> AxesData:
    """Read every axes file; a layer without one is left out."""
    layers = store.layers()
    records = [results.read(store.axes(layer)) for layer in layers]
    names = sorted({name for record in records for name in record["accuracy"]}, key=axis_order)
    missing = (np.nan, np.nan)
    accuracy = {
        name: np.array([record["accuracy"].get(name, missing)[1] for record in records]) for name in names
    }
    ratios = [record["variance_ratio"] for record in records]
    variance = np.full((len(layers), max(map(len, ratios))), np.nan)
    for row, ratio in zip(variance, ratios, strict=True):
        row[: len(ratio)] = ratio
    n_trial = len(results.read(store.split)["trial_rows"]) if store.split.exists() else None
    return AxesData(layers, accuracy, variance, n_trial)


def axes_overview(store: Store) -> Figure:
    """Draw the overview of all layers that have axes."""
    from analysis.figures_report import plot_axes_overview

    data = load_axes(store)
    sentences = f"{data.n_trial} held-out sentences" if data.n_trial else "the held-out sentences"
    note = f"Left: n = {sentences}; bars: Wilson's 95 % interval; line: chance. Right: the fitting half."
    title = f"Axes of every layer ({store.model}, {store.dataset})"
    return plot_axes_overview(data.layers, data.accuracy, data.n_trial, data.variance, title, note)
