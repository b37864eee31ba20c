"""Axes files, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.base.errors import UserError
from analysis.classifiers import AxisSet
from analysis.results.commands import command
from analysis.results.store import Store, read


def load_axes(
    store: Store, layer: int, identity: Mapping[str, Any] | None = None
) -> tuple[AxisSet, dict[str, Any]]:
    """Return the axes of one layer and the whole record, or say which command makes them.

    Args:
        store: of the model and dataset.
        layer: from 0.
        identity: of the preparation that the axes must belong to.

    Raises:
        UserError: no such file, a damaged one, or one of another preparation.
    """
    path = store.axes(layer)
    if not path.exists():
        raise UserError(f"no axes for layer {layer} ({path}): run `{command(store)}`")
    record = read(path, identity)
    return AxisSet.from_record(record), record
