"""What the axes files say about every layer: accuracy, variance, and how LR lies among the PCs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.axes.names import LR, MEANDIFF, RANDOM, SHOWN_PCS, axis_order, numbered, pc
from analysis.figures import axes as charts
from analysis.pages.control import ControlView
from analysis.pages.drawn import Drawn
from analysis.results.schema import Axes
from analysis.results.store import Store
from analysis.tables.read import read_axes, read_split
from configs.layers import selected_layers

GROUP = "axes"
MARKED = (LR, MEANDIFF, numbered(RANDOM, 0))
"""Axes whose share of the variance is marked among the PCs."""


@dataclass(frozen=True)
class AxesData:
    """The axes of all layers, without their directions."""

    layers: list[int]
    """L numbers."""
    accuracy: dict[str, np.ndarray]
    """axis -> (L,) share of right labels on the trial half, NaN where not fitted."""
    variance: np.ndarray
    """(L, R) explained variance ratio, NaN past the last PC of a layer."""
    shares: list[dict[str, float]]
    """Per layer: axis -> share of the total variance along it."""
    cosines: np.ndarray
    """(L, R) cosine between LR and every PC that is an axis, NaN past the last one."""
    hidden_size: int
    n_trial: int | None
    """Sentences of the trial half, None if the split is not on disk."""


def load_axes(store: Store) -> AxesData:
    """Read every axes file; a layer without one is left out."""
    layers = store.layers()
    found = [_geometry(read_axes(store, layer)) for layer in layers]
    names = sorted({name for part in found for name in part["accuracy"]}, key=axis_order)
    accuracy = {name: np.array([part["accuracy"].get(name, np.nan) for part in found]) for name in names}
    n_trial = len(read_split(store).trial_rows) if store.split.exists() else None
    variance, cosines = (_stack([part[key] for part in found]) for key in ("variance", "cosines"))
    shares = [part["shares"] for part in found]
    return AxesData(layers, accuracy, variance, shares, cosines, found[0]["hidden_size"], n_trial)


def _geometry(axes: Axes) -> dict[str, Any]:
    names, scales = axes.names, axes.scales.astype(float)
    pcs = [names.index(pc(k)) for k in range(1, len(names) + 1) if pc(k) in names]
    total = scales[pcs[0]] ** 2 / axes.variance_ratio[0] if pcs else np.nan
    directions = axes.directions.astype(float)
    return {
        "accuracy": {name: pair[1] for name, pair in axes.accuracy.items()},
        "variance": axes.variance_ratio,
        "shares": {name: scales[names.index(name)] ** 2 / total for name in MARKED if name in names},
        "cosines": directions[pcs] @ directions[names.index(LR)] if LR in names else np.empty(0),
        "hidden_size": directions.shape[1],
    }


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def axes_figures(view: ControlView) -> Iterator[Drawn]:
    """Yield the figures about the axes themselves; none where no axes are on disk."""
    store = view.store
    if not store.layers():
        return
    data, where = load_axes(store), f"{store.model}, {store.dataset}"
    sentences = f"{data.n_trial} held-out sentences" if data.n_trial else "the held-out sentences"
    note = f"Left: n = {sentences}; bars: Wilson's 95 % interval; line: chance. Right: the fitting half."
    figure = charts.plot_axes_overview(
        data.layers, data.accuracy, data.n_trial, data.variance, f"Axes of every layer ({where})", note
    )
    caption = (
        "How well the classifiers tell the classes apart on held-out sentences, and how much variance the "
        "principal components explain."
    )
    accuracy = [
        {"metric": "held_out_accuracy", "axis": name, "layer": layer, "value": float(value)}
        for name, values in data.accuracy.items()
        for layer, value in zip(data.layers, values, strict=True)
    ]
    yield Drawn("axes_overview", GROUP, caption, figure, accuracy)
    yield _variance(store, data, where)
    if data.cosines.shape[1]:
        yield _cosines(data, where)


def _variance(store: Store, data: AxesData, where: str) -> Drawn:
    chosen = [layer for layer in selected_layers(store.model, len(data.layers)) if layer in data.layers]
    slots = {layer: data.layers.index(layer) for layer in chosen or data.layers[:1]}
    variance = {layer: data.variance[slot] for layer, slot in slots.items()}
    marked = {layer: data.shares[slot] for layer, slot in slots.items()}
    note = (
        "One fit per layer, so no interval. On the sentences that fitted the axes. Lines: variance along "
        "other axes; the point is the PC with as much variance as LR."
    )
    figure = charts.plot_variance(variance, marked, f"Variance explained ({where})", note)
    rows = [
        {"metric": "variance_share", "axis": name, "layer": layer, "value": float(share)}
        for layer, shares in marked.items()
        for name, share in {**_shown(variance[layer]), **shares}.items()
    ]
    caption = "Variance explained by every principal component, and by the other axes."
    return Drawn("axes_variance", GROUP, caption, figure, rows, order=1)


def _shown(ratios: np.ndarray) -> dict[str, float]:
    return {pc(k): float(ratios[k - 1]) for k in SHOWN_PCS if k <= len(ratios)}


def _cosines(data: AxesData, where: str) -> Drawn:
    shown = [k for k in SHOWN_PCS if k <= data.cosines.shape[1]]
    cosines = {pc(k): np.abs(data.cosines[:, k - 1]) for k in shown}
    captured = {k: (data.cosines[:, :k] ** 2).sum(axis=1) for k in shown}
    chance = float(np.sqrt(2 / (np.pi * data.hidden_size)))
    note = "One fit per layer, so no interval. Dashed: expected of a random direction. Right: R^2 of LR."
    title = f"Where LR lies among the principal components ({where})"
    figure = charts.plot_cosines(data.layers, cosines, captured, chance, title, note)
    rows = [
        {"metric": metric, "axis": LR, "affected": name, "layer": layer, "value": float(value)}
        for metric, lines in (
            ("abs_cosine", cosines),
            ("captured", {pc(k): v for k, v in captured.items()}),
        )
        for name, values in lines.items()
        for layer, value in zip(data.layers, values, strict=True)
    ]
    caption = "Cosine between LR and principal components, and the share of LR within the first of them."
    return Drawn("axes_cosines", GROUP, caption, figure, rows, order=2)
