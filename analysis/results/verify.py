"""Check result files; see tasks/verify.py for the command.

Every file is read with the restricted reader and its checksum. What counts as missing is measured against
the largest grid seen: all combinations of the axes, layers, levels and experiments (first to last) that the
units on disk span. Lock files and temporary files of dead processes are removed; nothing else is changed.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.axes.names import axis_order
from analysis.base.errors import UserError
from analysis.base.files import DamagedFile
from analysis.results.claims import claim, describe, is_dead
from analysis.results.commands import NOUNS, command, levels_flag, store_of
from analysis.results.schema import check_unit
from analysis.results.store import KINDS, Store, UnitKey, read, unit_key
from analysis.tables.read import PER_UNIT

_PREPARED = re.compile(r"(hidden|axes|hidden_(mean|last|each))_layer(\d+)\.pkl")
SHOWN = 5
"""Names listed of a kind; the rest is counted."""


@dataclass
class Findings:
    """What one dataset folder holds."""

    folder: Path
    store: Store
    whole: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """File name -> meta data of every readable result."""
    corrupt: dict[str, str] = field(default_factory=dict)
    """File name -> why it is not readable, or not what its name says."""
    missing: dict[str, str] = field(default_factory=dict)
    """File name -> the command that makes it."""
    grids: dict[str, str] = field(default_factory=dict)
    """Kind -> the grid it was measured against, in words."""
    mixed: list[str] = field(default_factory=list)
    """Settings in which units of one kind differ."""
    aside: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Leftovers of dead processes."""
    parts: list[str] = field(default_factory=list)
    """Temporary files of living processes, or of other machines."""

    @property
    def well(self) -> bool:
        """Whether nothing is missing, corrupt or mixed."""
        return not (self.corrupt or self.missing or self.mixed)


def dataset_folders(folder: Path) -> list[Path]:
    """Return the folders below ``folder``, itself included, that hold result files."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give results, results/<model> or results/<model>/<dataset>")
    patterns = ("*.pkl", "*.pkl.*", "preparation.lock")
    found = sorted({path.parent for pattern in patterns for path in folder.rglob(pattern)})
    if not found:
        raise UserError(f"{folder} holds no result files")
    return found


def check(folder: Path) -> Findings:
    """Read every file of one dataset folder."""
    found = Findings(folder, store_of(folder))
    for path in sorted(folder.glob("*.pkl")):
        try:
            meta = _checked(path)
        except DamagedFile as error:
            found.corrupt[path.name] = f"{error.why}; a run keeps it as .corrupt and makes it again"
            continue
        except UserError as error:
            found.corrupt[path.name] = str(error)
            continue
        except FileNotFoundError:  # a run set it aside just now
            continue
        wrong = _misnamed(path.name, meta["identity"])
        if wrong:
            found.corrupt[path.name] = wrong
        else:
            found.whole[path.name] = meta
    _look_for_preparation(found)
    for kind in KINDS:
        _look_for_units(found, kind)
    found.aside = sorted(path.name for path in folder.glob("*.corrupt*"))
    _clear_locks(found)
    _clear_parts(found)
    return found


def _checked(path: Path) -> Mapping[str, Any]:
    """Return the meta data of a file that is whole, units with all that they must hold."""
    record, key = read(path), unit_key(path.name)
    if key:
        check_unit(path, key, record)
    return record["meta"]


def _misnamed(name: str, identity: Mapping[str, Any]) -> str:
    key = unit_key(name)
    for part in ("axis", "layer", "exp", "levels"):
        if key and identity.get(part) != getattr(key, part):
            return f"its settings say {part} {identity.get(part)!r}"
    return ""


# ---------------------------------------------------------------- what is missing


def _look_for_preparation(found: Findings) -> None:
    store, names = found.store, {*found.whole, *found.corrupt}
    matches = [match for match in map(_PREPARED.fullmatch, names) if match]
    if not matches and ("_from_" in found.folder.parent.name or not names):
        return  # one model reads the scores of another: prepared in the other's folder
    metas = found.whole.values()
    last = max((int(match[3]) for match in matches), default=-1)
    n_layers = next((meta["n_layers"] for meta in metas if isinstance(meta.get("n_layers"), int)), last + 1)
    methods = {match[2] or "pcascore" for match in matches} or {"pcascore"}
    for method in sorted(methods):
        expected = [store.split, *(store.hidden(layer, method) for layer in range(n_layers))]
        if method == "pcascore":
            expected += [store.embedding, *map(store.axes, range(n_layers))]
        how = "" if method == "pcascore" else f" --process_hidden_method {method}"
        lacking = [path.name for path in expected if path.name not in found.whole]
        _lack(found, lacking, command(store) + how)


def _look_for_units(found: Findings, kind: str) -> None:
    keys = [key for key in map(unit_key, [*found.whole, *found.corrupt]) if key and key.kind == kind]
    if not keys:
        return
    parts = [sorted({getattr(key, part) for key in keys}) for part in ("levels", "layer", "axis", "exp")]
    levels, layers, axes, exps = parts
    exps = range(exps[0], exps[-1] + 1)
    axes.sort(key=axis_order)
    found.grids[kind] = (
        f"axes {' '.join(axes)} x layers {' '.join(map(str, layers))} x levels {' '.join(map(str, levels))} "
        f"x experiments {exps[0]}..{exps[-1]}"
    )
    for n, axis in itertools.product(levels, axes):
        grid = [UnitKey(kind, axis, layer, exp, n) for layer in layers for exp in exps]
        lacking = [key for key in grid if found.store.unit(key).name not in found.whole]
        if lacking:
            lines = _unit_command(found, lacking, exps)
            _lack(found, [found.store.unit(key).name for key in lacking], lines)
    _compare_settings(found, kind)


def _lack(found: Findings, names: Iterable[str], line: str) -> None:
    found.missing |= dict.fromkeys(names, line)


def _unit_command(found: Findings, lacking: Sequence[UnitKey], exps: range) -> str:
    """Return one command for units of one axis and number of levels, at all their layers."""
    first = lacking[0]
    words = shlex.split(command(found.store, first.kind, first.axis, first.layer))
    layers = sorted({key.layer for key in lacking})
    words[words.index("--layer") + 1] = ",".join(map(str, layers))
    words[words.index(f"--{first.kind}_exp_end") + 1] = str(exps[-1] + 1)
    if exps[0]:
        words += [f"--{first.kind}_exp_start", str(exps[0])]
    same = (meta for name, meta in found.whole.items() if name.startswith(f"{first.kind}_"))
    identity = next(same, {"identity": {}})["identity"]
    sizes = identity.get("shots" if first.kind == "imit" else "report_examples")
    if sizes is not None:
        words += ["--n_train", *map(str, sizes if isinstance(sizes, list) else [sizes])]
    return shlex.join(words) + levels_flag(first.levels)


def _compare_settings(found: Findings, kind: str) -> None:
    units = [meta["identity"] for name, meta in found.whole.items() if name.startswith(f"{kind}_")]
    for name in sorted({name for identity in units for name in identity} - set(PER_UNIT)):
        if len({repr(identity.get(name)) for identity in units}) > 1:
            found.mixed.append(f"{NOUNS[kind]}: {name}")


# ---------------------------------------------------------------- leftovers


def _clear_locks(found: Findings) -> None:
    for lock in sorted(found.folder.glob("*.lock")):
        with claim(lock.with_name(lock.name.removesuffix(".lock"))) as free:  # ends by removing the file
            if free:
                found.removed.append(lock.name)
            else:
                found.locked.append(describe(lock))


def _clear_parts(found: Findings) -> None:
    for part in sorted(found.folder.rglob("*.part")):
        words = part.name.rsplit(".", 3)
        if len(words) == 4 and words[2].isdigit() and is_dead(words[1], int(words[2])):
            part.unlink(missing_ok=True)
            found.removed.append(part.name)
        else:
            found.parts.append(part.name)


# ---------------------------------------------------------------- words


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _counts(found: Findings, kind: str | None) -> str:
    def of(names: Iterable[str]) -> int:
        return sum(name.startswith(f"{kind}_") if kind else _is_prepared(name) for name in names)

    lacking = [name for name in found.missing if name not in found.corrupt]
    return f"{of(found.whole)} complete, {of(lacking)} missing, {of(found.corrupt)} corrupt"


def _is_prepared(name: str) -> bool:
    return name in ("split.pkl", "hidden_embedding.pkl") or bool(_PREPARED.fullmatch(name))


def describe_findings(found: Findings) -> str:
    """Return the lines that are printed for one dataset folder."""
    lines = [str(found.folder)]

    def line(label: str, text: str) -> None:
        lines.append(f"  {label:<12} {text}")

    line("preparation", _counts(found, None))
    for kind, grid in found.grids.items():
        line(NOUNS[kind], f"{_counts(found, kind)} of the largest grid seen: {grid}")
    others = [name for name in found.whole if not unit_key(name) and not _is_prepared(name)]
    if others:
        line("other", f"{len(others)} complete: {_some(others)}")
    for name, why in found.corrupt.items():
        line("corrupt", f"{name}: {why}")
    lacking = [name for name in found.missing if name not in found.corrupt]
    if lacking:
        line("missing", _some(lacking))
    if found.mixed:
        line("mixed", f"units were made with different settings: {_some(found.mixed)}; a run refuses them")
    for label, names in (("set aside", found.aside), ("leftovers", found.parts), ("removed", found.removed)):
        if names:
            line(label, f"{len(names)}: {_some(names)}")
    for text in found.locked:
        line("locked", text)
    for text in dict.fromkeys(found.missing.values()):
        line("run", text)
    return "\n".join(lines)
