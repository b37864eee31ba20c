"""The command lines that make results, and the errors for results that are not there, which hold them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.axes.names import LR, pc_number
from analysis.base.errors import UserError
from analysis.results.schema import REPORT, UNIT_KINDS, Kind, Parts, kind_of
from analysis.results.store import Store, UnitKey, read_meta, unit_key


def command(store: Store, kind: str | None = None, axis: str = LR, layer: int | None = None) -> str:
    """Return the command line that makes runs of ``kind``, or without it the axes."""
    reader, _, source = store.model.partition("_from_")
    crossed = kind == REPORT and bool(source)  # one model reads the scores of another
    model = ["--config_s", source, "--config_e", reader] if crossed else ["--model", store.model]
    words = ["python", UNIT_KINDS[kind].script if kind else "main_prep.py", *model, *_place(store)]
    if kind:
        k = pc_number(axis)
        words += ["--clf", axis] if k is None else ["--pc", str(k)]
        words += ["--layer", "middle" if layer is None else str(layer), UNIT_KINDS[kind].count, "-1"]
    return shlex.join(words) + store.flags


def study_command(
    store: Store, kind: Kind, parts: Parts, identity: Mapping[str, Any], end: int | None = None
) -> str:
    """Return the command line that makes the files of a study.

    Args:
        store: of the model and dataset.
        kind: of the study.
        parts: what the name of a file says.
        identity: of a file of the same study, which tells its sizes; empty if there is none.
        end: one past the last experiment; None: as many as the study has by default.
    """
    words = ["python", *kind.script.split(), "--model", store.model, *_place(store)]
    for name, flag in kind.flags.items():
        value = parts.get(name, identity.get(name))
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, (list, tuple)):
            texts = [str(item) for item in value]
            words += [flag, ",".join(texts)] if name in _BY_COMMA else [flag, *texts]
        elif value is not None and (name, value) != ("levels", 2):
            words += [flag, str(value)]
    words += [] if end is None else [kind.count, str(end)]
    return shlex.join(words) + store.flags


_BY_COMMA = ("layers",)
"""Settings that are one word on the command line, such as 7,15."""


def _place(store: Store) -> list[str]:
    folder = [] if str(store.root) == "results" else ["--results", str(store.root)]
    return ["--dataset", store.dataset, *folder]


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
        f"there are no {UNIT_KINDS[kind].name} runs{what}{where} in {store.folder} (there: {have}): "
        f"run `{command(store, kind, axis or LR, layer)}`"
    )


def first_meta(folder: Path, but: Path | None = None) -> Mapping[str, Any]:
    """Return the meta data of the smallest readable result in ``folder``, empty if there is none.

    Files that say with which flags they were made come first.
    """
    found: Mapping[str, Any] = {}
    for path in sorted(folder.glob("*.pkl"), key=lambda p: (p.lstat().st_size, p.name)):
        if path != but and path.is_file():
            try:
                meta = read_meta(path)
            except UserError:
                continue
            if "flags" in meta:
                return meta
            found = found or meta
    return found


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
    """Return further flags, quoted anew: what a file says becomes a part of a command that users paste."""
    try:
        words = shlex.split(str(meta.get("flags") or ""))
    except ValueError:  # quotes without end
        return ""
    return f" {shlex.join(words)}" if words else ""


def repair_command(path: Path) -> str:
    """Return the command line that makes the result file ``path`` again."""
    store, unit, kind = store_of(path.parent, but=path), unit_key(path.name), kind_of(path.name)
    if unit is not None:
        return command(store, unit.kind, unit.axis, unit.layer) + levels_flag(unit.levels)
    parts = (kind.parts(path.name) if kind is not None else None) or {}
    if kind is not None and kind.is_study:
        return study_command(store, kind, parts, _sizes_of(path, kind, parts), experiments_for(kind, parts))
    return command(store) + method_flag(parts.get("method"))


def experiments_for(kind: Kind, parts: Parts) -> int | None:
    """Return how many experiments a study must have for the file of these ``parts``; None if unknown."""
    return parts["exp"] + kind.from_first if "exp" in parts else None


def same_study(kind: Kind, parts: Parts, name: str) -> bool:
    """Return whether ``name`` is a file of the study that makes those of ``kind`` with these ``parts``."""
    other = kind_of(name)
    if other is None or other.name != (kind.beside or kind.name):
        return False
    return {**(other.parts(name) or {}), "exp": 0} == {"levels": 2, **parts, "exp": 0}


def _sizes_of(path: Path, kind: Kind, parts: Parts) -> Mapping[str, Any]:
    """Return the identity of another file of the same study, or what ``path`` itself still tells."""
    others = sorted(path.parent.glob("study_*.pkl"))
    for other in [*(one for one in others if one != path), path]:
        if same_study(kind, parts, other.name):
            try:
                identity: Mapping[str, Any] = read_meta(other)["identity"]
            except (UserError, FileNotFoundError):
                continue
            return identity
    return {}


def levels_flag(levels: int) -> str:
    """Return the flag for runs of this many labels."""
    return "" if levels == 2 else f" --levels {levels}"


def method_flag(method: str | None) -> str:
    """Return the flag for hidden states that are pooled in another way than for the axes."""
    return f" --process_hidden_method {method}" if method else ""
