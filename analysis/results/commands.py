"""Errors for results that are not there: each holds the command line that makes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.axes.names import LR, pc_number
from analysis.base.errors import UserError
from analysis.results.store import Store, UnitKey, read, unit_key

SCRIPTS = {"imit": "main_imitexp.py", "pred": "main_predexp.py"}
NOUNS = {"imit": "control", "pred": "report"}


def command(store: Store, kind: str | None = None, axis: str = LR, layer: int | None = None) -> str:
    """Return the command line that makes runs of ``kind``, or without it the axes."""
    words = ["python", SCRIPTS[kind] if kind else "main_prep.py"]
    reader, _, source = store.model.partition("_from_")
    crossed = kind == "pred" and bool(source)  # one model reads the scores of another
    words += ["--config_s", source, "--config_e", reader] if crossed else ["--model", store.model]
    words += ["--dataset", store.dataset]
    if str(store.root) != "results":
        words += ["--results", str(store.root)]
    if kind:
        k = pc_number(axis)
        words += ["--clf", axis] if k is None else ["--pc", str(k)]
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
        f"run `{command(store, kind, axis or LR, layer)}`"
    )


def first_meta(folder: Path, but: Path | None = None) -> Mapping[str, Any]:
    """Return the meta data of the smallest readable result in ``folder``, empty if there is none."""
    for path in sorted(folder.glob("*.pkl"), key=lambda p: (p.lstat().st_size, p.name)):
        if path != but and path.is_file():
            try:
                return read(path)["meta"]
            except UserError:
                continue
    return {}


def store_of(folder: Path, but: Path | None = None) -> Store:
    """Return the store of a dataset folder, with the names and flags that its runs were started with.

    Args:
        folder: results/<model>/<dataset>.
        but: a file that is not to be read.
    """
    meta, root = first_meta(folder, but), folder.parent.parent
    names = {meta.get("model_name"), meta.get("source_model")} - {None}
    models = [f"{meta.get('model_name')}_from_{meta.get('source_model')}", *map(str, names)]
    for model in models:
        store = Store(root, model, str(meta.get("dataset_key")), _flags(meta))
        if store.folder == folder:
            return store
    dataset = folder.name
    for space in ("custom", "published"):  # the key's slash became a _ in the folder's name
        if dataset.startswith(f"{space}_"):
            dataset = f"{space}/{dataset.removeprefix(f'{space}_')}"
    return Store(root, folder.parent.name, dataset, _flags(meta))


def _flags(meta: Mapping[str, Any]) -> str:
    return f" {meta['flags']}" if meta.get("flags") else ""


def repair_command(path: Path) -> str:
    """Return the command line that makes the result file ``path`` again."""
    store, key = store_of(path.parent, but=path), unit_key(path.name)
    if key is None:
        return command(store)
    return command(store, key.kind, key.axis, key.layer) + levels_flag(key.levels)


def levels_flag(levels: int) -> str:
    """Return the flag for runs of this many labels."""
    return "" if levels == 2 else f" --levels {levels}"
