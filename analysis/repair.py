"""Commands that make damaged or missing files again, found from what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.missing import command
from analysis.store import Store, read, unit_key
from utils import UserError


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
