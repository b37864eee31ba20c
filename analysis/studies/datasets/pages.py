"""From prepared datasets to one table and one figure: how well is each read from the hidden states?"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from analysis.axes.names import LR
from analysis.base.files import save_bytes
from analysis.experiments.preparation import Preparation
from analysis.figures.style import OKABE_ITO
from analysis.results.store import Store, read


def show(stage: Preparation) -> str:
    """Write datasets.csv and datasets.png beside the datasets' folders; return a table as text."""
    settings, by_key = stage.settings, {key: accuracies(store) for key, store in stage.stores.items()}
    folder = next(iter(stage.stores.values())).folder.parent
    save_bytes(table(by_key).encode(), folder / "datasets.csv")
    image = io.BytesIO()
    draw(by_key, stage.model, settings.n_axis, settings.n_trial).savefig(image, format="png", dpi=150)
    save_bytes(image.getvalue(), folder / "datasets.png")
    lines = [f"{'dataset':26s} best layer  accuracy  middle layer  last layer"]
    for key, values in by_key.items():
        best, middle = int(values.argmax()), values[len(values) // 2]
        lines.append(f"{key:26s} {best:10d}  {values[best]:8.3f}  {middle:12.3f}  {values[-1]:10.3f}")
    return "\n".join([*lines, str(folder / "datasets.csv"), str(folder / "datasets.png")])


def accuracies(store: Store) -> np.ndarray:
    """Return (L,) held-out accuracy of the logistic regression at every layer."""
    return np.array([read(store.axes(layer))["accuracy"][LR][1] for layer in store.layers()])


def draw(by_key: Mapping[str, np.ndarray], model: str, n_axis: int, n_trial: int) -> Figure:
    """Return the figure: one line per dataset over layers, shipped solid, published dashed."""

    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(key.removeprefix("published/").removesuffix("_test") for key in by_key))
    for key, values in by_key.items():
        name = key.removeprefix("published/").removesuffix("_test")
        style = "--" if key.startswith("published/") else "-"
        color = OKABE_ITO[names.index(name) % len(OKABE_ITO)]
        axes.plot(range(len(values)), values, style, color=color, label=key, marker="o", markersize=2.5)
    axes.axhline(0.5, color="0.5", linewidth=0.8)
    axes.set(xlabel="layer", ylabel="held-out accuracy", ylim=(0.4, 1.02))
    axes.set_title(
        f"Logistic regression on sentence means, {model}\n{n_axis} sentences to fit, {n_trial} held out"
    )
    figure.legend(loc="outside right center", frameon=False)
    return figure


def table(by_key: Mapping[str, np.ndarray]) -> str:
    """Return the accuracies as CSV text, one row per layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", *by_key])
    for layer, row in enumerate(zip(*by_key.values(), strict=True)):
        writer.writerow([layer, *(f"{value:.4f}" for value in row)])
    return text.getvalue()
