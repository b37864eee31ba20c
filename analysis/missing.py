"""Errors for results that are not there: each holds the command line that makes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from analysis.store import Store, UnitKey
from utils import UserError

SCRIPTS = {"imit": "main_imitexp.py", "pred": "main_predexp.py"}
NOUNS = {"imit": "control", "pred": "report"}


def command(store: Store, kind: str | None = None, axis: str = "lr", layer: int | None = None) -> str:
    """Return the command line that makes runs of ``kind``, or without it the axes."""
    words = ["python", SCRIPTS[kind] if kind else "main_prep.py"]
    reader, _, source = store.model.partition("_from_")
    crossed = kind == "pred" and bool(source)  # one model reads the scores of another
    words += ["--config_s", source, "--config_e", reader] if crossed else ["--model", store.model]
    words += ["--dataset", store.dataset]
    if str(store.root) != "results":
        words += ["--results", str(store.root)]
    if kind:
        is_pc = axis.startswith("pc") and axis[2:].isdigit()
        words += ["--pc", axis[2:]] if is_pc else ["--clf", axis]
        words += ["--layer", "middle" if layer is None else str(layer), f"--{kind}_exp_end", "-1"]
    return shlex.join(words) + store.flags


def no_axes(store: Store) -> UserError:
    """Return the error for a model and dataset that were not even prepared."""
    return UserError(
        f"there are no axes in {store.folder}: run `{command(store)}` first, then the experiments"
    )


def no_runs(
    store: Store, kind: str, axis: str | None, layers: Sequence[int] | None, units: Iterable[UnitKey] = ()
) -> UserError:
    """Return the error for an axis (None: any) without runs at ``layers``; ``units`` are those there are."""
    layer = layers[0] if layers else None
    have = ", ".join(sorted({f"{unit.axis} at layer {unit.layer}" for unit in units})) or "none"
    what = f" for axis {axis}" if axis else ""
    where = "" if layer is None else f" at layer {layer}"
    return UserError(
        f"there are no {NOUNS[kind]} runs{what}{where} in {store.folder} (there: {have}): "
        f"run `{command(store, kind, axis or 'lr', layer)}`"
    )
