"""Axes from elsewhere: given a direction per layer, they are scored and targeted like those fitted here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.axes.names import IMPORTED, examples, split_name
from analysis.axes.read import load_axes
from analysis.base.errors import UserError
from analysis.base.seeds import fingerprint
from analysis.classifiers import AxisSet
from analysis.results.store import Store, read, write

_NAME = re.compile(r"[a-z][a-z_]*\d*")


def add_axis(store: Store, name: str, vectors: Mapping[int, np.ndarray]) -> None:
    """Add an axis to the axes files of a prepared study; the other axes stay as they are.

    Scale, threshold and scores come from the sentences of the preparation, as for every other axis; the
    length of a vector is not used. An axis of that name that was added before is replaced.

    Args:
        store: of the model and dataset.
        name: small letters and underscores, then digits if any, such as ``truth`` or ``truth2``.
        vectors: layer -> (D,), any length above 0.

    Raises:
        UserError: no preparation, a name that does not fit or is taken by a fitted axis, a layer or hidden
            size that the model does not have, or a vector along which sentences do not vary.
    """
    if not _NAME.fullmatch(name) or split_name(name)[0] != IMPORTED:
        raise UserError(
            f"axis name {name!r}: give small letters and underscores, then digits if any, and no name of a "
            f"fitted axis ({', '.join(examples())})"
        )
    known = store.layers()
    wrong = sorted(set(vectors) - set(known))
    if wrong or not vectors:
        raise UserError(
            f"the axis has layers {sorted(vectors)}, {store.folder} has axes of layers {known}: prepare the "
            "model that the axis belongs to with main_prep.py, and name it with --model"
        )
    ready = {layer: _extended(store, layer, name, vector) for layer, vector in vectors.items()}
    for layer, (record, meta) in ready.items():  # nothing is written unless every layer fits
        about = {key: value for key, value in meta.items() if key != "identity"}
        write(store.axes(layer), record, meta["identity"], **about)


def _extended(
    store: Store, layer: int, name: str, vector: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    axes, record = load_axes(store, layer)
    meta = record.pop("meta")
    hidden = read(store.hidden(layer), meta["identity"])["hidden"]
    split = read(store.split, meta["identity"])
    vector = np.asarray(vector, dtype=np.float64)
    if vector.shape != axes.mean.shape or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0:
        raise UserError(
            f"axis {name!r} of layer {layer} has shape {vector.shape} and length "
            f"{np.linalg.norm(vector):g}: give {axes.mean.shape} finite numbers, not all 0"
        )
    kept = [k for k, other in enumerate(axes.names) if other != name]
    direction = (vector / np.linalg.norm(vector)).astype(np.float32)
    others = (hidden[split["trial_rows"]].astype(np.float64) - axes.mean) @ direction.astype(np.float64)
    scale = np.float32(others.std())
    if not scale > 0:
        raise UserError(
            f"axis {name!r} of layer {layer} is constant over the trial sentences: check the file"
        )
    threshold = np.median(others / scale) if meta["identity"]["threshold"] == "median" else 0.0
    new = AxisSet(
        (*(axes.names[k] for k in kept), name),
        np.vstack([axes.directions[kept], direction]),
        axes.mean,
        np.append(axes.scales[kept], scale),
        np.append(axes.thresholds[kept], np.float32(threshold)),
        axes.variance_ratio,
        {},
    )
    rows, labels = (split["axis_rows"], split["trial_rows"]), split["labels"]
    accuracy = tuple(new.accuracy_on(hidden[half], labels[half])[name] for half in rows)
    made_of = {**record.get("imported", {}), name: fingerprint(direction)}
    return {
        **record,
        **{key: value for key, value in new.as_record().items() if key != "accuracy"},
        "accuracy": {**record["accuracy"], name: accuracy},
        "scores": new.scores(hidden),
        "imported": made_of,
    }, meta
