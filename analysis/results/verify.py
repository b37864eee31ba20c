"""Check result files; see tasks/verify.py for the command.

Every file is read with the restricted reader, its checksum and the schema, as plots and runs read it. What
counts as missing is measured against the largest grid seen: of control and report all combinations of the
axes, layers, levels and experiments (first to last) that the units on disk span; of a study the experiments
before the last one there. Lock files and temporary files of dead processes are removed; nothing else changes.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from analysis.axes.names import axis_order
from analysis.base.errors import UserError
from analysis.base.files import DamagedFile
from analysis.base.seeds import fingerprint
from analysis.results.claims import claim, describe, is_dead
from analysis.results.commands import (
    command,
    experiments_for,
    levels_flag,
    method_flag,
    same_study,
    store_of,
    study_command,
)
from analysis.results.fields import Sizes
from analysis.results.schema import KINDS, UNIT_KINDS, Kind, Parts, kind_of
from analysis.results.store import PER_UNIT, Store, UnitKey, inspect, read_meta, unit_key

PREPARED = ("split", "embedding", "hidden", "tokens", "axes")
"""Kinds of files that the preparation writes."""
SHARED = {"B": "number of sentences", "D": "hidden size"}
"""Sizes that the files of a folder have in common."""
SHOWN = 5
"""Names listed of a kind; the rest is counted."""


@dataclass
class Findings:
    """What one dataset folder holds."""

    folder: Path
    store: Store
    whole: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """File name -> meta data of every result that is what its name says."""
    corrupt: dict[str, str] = field(default_factory=dict)
    """File name -> why it is not readable, or not what its name says."""
    missing: dict[str, str] = field(default_factory=dict)
    """File name -> the command that makes it."""
    grids: dict[str, str] = field(default_factory=dict)
    """Kind -> the grid it was measured against, in words."""
    mixed: list[str] = field(default_factory=list)
    """Settings in which files of one kind differ, or do not fit to the preparation."""
    aside: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Leftovers of dead processes."""
    parts: list[str] = field(default_factory=list)
    """Temporary files of living processes, or of other machines."""
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a corrupt file -> the identity that it still tells, for the command that makes it again."""
    sizes: dict[str, Sizes] = field(default_factory=dict)
    """File name -> sizes by the letters of the schema."""
    imported: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """Layer -> fingerprints of its imported axes."""

    @property
    def well(self) -> bool:
        """Whether nothing is missing, corrupt or mixed."""
        return not (self.corrupt or self.missing or self.mixed)

    def like(self, alike: Callable[[str], bool]) -> Mapping[str, Any]:
        """Return the identity of a file whose name is ``alike``, of a whole one if there is one."""
        known = {**self.told, **{name: meta["identity"] for name, meta in self.whole.items()}}
        return next((known[name] for name in [*self.whole, *self.told] if alike(name) and known[name]), {})

    def names(self, kind: Kind) -> list[str]:
        """Return the files of ``kind``, whole or not, sorted."""
        return sorted(name for name in {*self.whole, *self.corrupt} if kind_of(name) is kind)


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
    """Read every file of one dataset folder, one after the other."""
    found = Findings(folder, store_of(folder))
    for path in sorted(folder.glob("*.pkl")):
        try:
            record, sizes = inspect(path)
        except DamagedFile as error:
            found.corrupt[path.name] = f"{error.why}; a run keeps it as .corrupt and makes it again"
            found.told[path.name] = _told(path)
        except UserError as error:
            found.corrupt[path.name] = str(error)
        except FileNotFoundError:  # a run set it aside just now
            pass
        else:
            found.whole[path.name], found.sizes[path.name] = record["meta"], sizes
            _note_imported(found, path.name, record)
    _compare_sizes(found)
    _look_for_preparation(found)
    _compare_preparation(found)
    for prefix in UNIT_KINDS:
        _look_for_units(found, prefix)
    for kind in KINDS:
        if kind.is_study:
            _look_for_study(found, kind)
    found.aside = sorted(path.name for path in folder.glob("*.corrupt*"))
    _clear_locks(found)
    _clear_parts(found)
    return found


def _told(path: Path) -> Mapping[str, Any]:
    """Return the identity that a damaged file still tells, empty if it does not."""
    try:
        identity: Mapping[str, Any] = read_meta(path)["identity"]
    except (UserError, FileNotFoundError):
        return {}
    return identity


def _note_imported(found: Findings, name: str, record: Mapping[str, Any]) -> None:
    if _kind_name(name) == "axes":
        found.imported[_parts(name)["layer"]] = record.get("imported") or {}


# ---------------------------------------------------------------- what does not fit together


def _compare_sizes(found: Findings) -> None:
    """Count as corrupt what has another size than most files of the folder; newer ones tell it themselves."""
    for letter, what in SHARED.items():
        here = {name: sizes[letter] for name, sizes in found.sizes.items() if letter in sizes}
        usual = Counter(here.values()).most_common(1)
        for name, size in here.items():
            if size != usual[0][0]:
                why = f"its {what} is {size}, that of the others {usual[0][0]}"
                found.corrupt[name] = f"{why}; move it away, and a run makes it again"
                del found.whole[name]


def _compare_preparation(found: Findings) -> None:
    """Note settings in which prepared files differ, and units of another preparation or imported axis."""
    prepared = {name: meta["identity"] for name, meta in found.whole.items() if _is_prepared(name)}
    plain = [{k: v for k, v in identity.items() if k != "method"} for identity in prepared.values()]
    found.mixed += [f"preparation: {name}" for name in _differing(plain)]
    if not plain:
        return  # one model reads the scores of another: prepared in the other's folder
    made_of = fingerprint(plain[0])
    for name, meta in found.whole.items():
        kind, identity = kind_of(name), meta["identity"]
        if kind is None or "preparation" not in identity:
            continue
        if identity["preparation"] != made_of:
            found.mixed.append(f"{kind.name}: preparation")
        axes = found.imported.get(identity.get("layer"))
        if axes is not None and identity.get("imported") != axes.get(identity.get("axis")):
            found.mixed.append(f"{kind.name}: imported")
    found.mixed = list(dict.fromkeys(found.mixed))


def _differing(identities: Sequence[Mapping[str, Any]], but: Iterable[str] = ()) -> list[str]:
    """Return the settings that are not the same in all ``identities``."""
    names = {name for identity in identities for name in identity} - set(but)
    return sorted(name for name in names if len({repr(one.get(name)) for one in identities}) > 1)


# ---------------------------------------------------------------- what is missing


def _look_for_preparation(found: Findings) -> None:
    store, names = found.store, {*found.whole, *found.corrupt}
    parts = [_parts(name) for name in names if _is_prepared(name) and "layer" in _parts(name)]
    if not parts and ("_from_" in found.folder.parent.name or not names):
        return  # one model reads the scores of another: prepared in the other's folder
    told = Counter(meta["n_layers"] for meta in found.whole.values() if meta.get("n_layers"))
    last = max((part["layer"] for part in parts), default=-1)
    n_layers = told.most_common(1)[0][0] if told else last + 1
    for method in sorted({part.get("method", "pcascore") for part in parts} or {"pcascore"}):
        expected = [store.split, *(store.hidden(layer, method) for layer in range(n_layers))]
        if method == "pcascore":
            expected += [store.embedding, *map(store.axes, range(n_layers))]
        lacking = [path.name for path in expected if path.name not in found.whole]
        _lack(found, lacking, command(store) + method_flag(None if method == "pcascore" else method))


def _look_for_units(found: Findings, prefix: str) -> None:
    keys = [key for key in map(unit_key, [*found.whole, *found.corrupt]) if key and key.kind == prefix]
    if not keys:
        return
    levels, layers = (sorted({getattr(key, part) for key in keys}) for part in ("levels", "layer"))
    axes = sorted({key.axis for key in keys}, key=axis_order)
    exps = range(min(key.exp for key in keys), max(key.exp for key in keys) + 1)
    found.grids[UNIT_KINDS[prefix].name] = (
        f"axes {' '.join(axes)} x layers {' '.join(map(str, layers))} x levels {' '.join(map(str, levels))} "
        f"x experiments {exps[0]}..{exps[-1]}"
    )
    for n, axis in itertools.product(levels, axes):
        grid = [UnitKey(prefix, axis, layer, exp, n) for layer in layers for exp in exps]
        lacking = [key for key in grid if found.store.unit(key).name not in found.whole]
        if lacking:
            lines = _unit_command(found, lacking, exps)
            _lack(found, [found.store.unit(key).name for key in lacking], lines)
    units = [meta["identity"] for name, meta in found.whole.items() if name.startswith(f"{prefix}_")]
    found.mixed += [
        f"{UNIT_KINDS[prefix].name}: {name}" for name in _differing(units, (*PER_UNIT, "imported"))
    ]


def _unit_command(found: Findings, lacking: Sequence[UnitKey], exps: range) -> str:
    """Return one command for units of one axis and number of levels, at all their layers."""
    first = lacking[0]
    words = shlex.split(command(found.store, first.kind, first.axis, first.layer))
    layers = sorted({key.layer for key in lacking})
    words[words.index("--layer") + 1] = ",".join(map(str, layers))
    words[words.index(UNIT_KINDS[first.kind].count) + 1] = str(exps[-1] + 1)
    if exps[0]:
        words += [f"--{first.kind}_exp_start", str(exps[0])]
    identity = found.like(lambda name: name.startswith(f"{first.kind}_"))
    sizes = identity.get(UNIT_KINDS[first.kind].size)
    if sizes is not None:
        words += ["--n_train", *map(str, sizes if isinstance(sizes, list) else [sizes])]
    return shlex.join(words) + levels_flag(first.levels)


def _look_for_study(found: Findings, kind: Kind) -> None:
    """Note what a study lacks: one (axis, layer, levels, mode) after the other, each a study of its own."""
    for names in _studies(found, kind):
        parts = [_parts(name) for name in names]
        identity = found.like(partial(same_study, kind, parts[0]))
        end = max(_ends(kind, names), default=None)
        end = end or max(_ends(kind, filter(partial(same_study, kind, parts[0]), found.whole)), default=None)
        line = study_command(found.store, kind, parts[0], identity, end)
        expected = names
        if kind.from_first and end is not None:
            expected = [kind.with_exp(names[0], exp) for exp in range(end)]
        _lack(found, [name for name in expected if name not in found.whole], line)
        whole = [found.whole[name]["identity"] for name in names if name in found.whole]
        found.mixed += [f"{kind.name}: {name}" for name in _differing(whole, ("exp",))]


def _ends(kind: Kind, names: Iterable[str]) -> list[int]:
    """Return how many experiments a study needs so that it has each of these files."""
    ends = ((kind_of(name), _parts(name)) for name in names)
    found = [experiments_for(one or kind, parts) for one, parts in ends]
    return [end for end in found if end is not None]


def _studies(found: Findings, kind: Kind) -> Iterator[list[str]]:
    """Yield the names of the files of each study of one kind."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in found.names(kind):
        groups.setdefault(tuple(v for part, v in _parts(name).items() if part != "exp"), []).append(name)
    yield from groups.values()


def _lack(found: Findings, names: Iterable[str], line: str) -> None:
    found.missing |= dict.fromkeys(names, line)


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


def _counts(found: Findings, kinds: Sequence[str]) -> str:
    def of(names: Iterable[str]) -> int:
        return sum(_kind_name(name) in kinds for name in names)

    lacking = [name for name in found.missing if name not in found.corrupt]
    return f"{of(found.whole)} complete, {of(lacking)} missing, {of(found.corrupt)} corrupt"


def _parts(name: str) -> Parts:
    kind = kind_of(name)
    return {} if kind is None else kind.parts(name) or {}


def _kind_name(name: str) -> str:
    kind = kind_of(name)
    return "" if kind is None else kind.name


def _is_prepared(name: str) -> bool:
    return _kind_name(name) in PREPARED


def describe_findings(found: Findings) -> str:
    """Return the lines that are printed for one dataset folder."""
    lines = [str(found.folder)]

    def line(label: str, text: str) -> None:
        lines.append(f"  {label:<12} {text}")

    line("preparation", _counts(found, PREPARED))
    for noun, grid in found.grids.items():
        line(noun, f"{_counts(found, [noun])} of the largest grid seen: {grid}")
    for kind in KINDS:
        if kind.is_study and found.names(kind):
            line(kind.name, _counts(found, [kind.name]))
    others = [name for name in found.whole if kind_of(name) is None]
    if others:
        line("other", f"{len(others)} complete: {_some(others)}")
    for name, why in found.corrupt.items():
        line("corrupt", f"{name}: {why}")
    lacking = [name for name in found.missing if name not in found.corrupt]
    if lacking:
        line("missing", _some(lacking))
    if found.mixed:
        line("mixed", f"files were made with different settings: {_some(found.mixed)}; a run refuses them")
    for label, names in (("set aside", found.aside), ("leftovers", found.parts), ("removed", found.removed)):
        if names:
            line(label, f"{len(names)}: {_some(names)}")
    for text in found.locked:
        line("locked", text)
    for text in dict.fromkeys(found.missing.values()):
        line("run", text)
    return "\n".join("".join(c if c.isprintable() else "?" for c in text) for text in lines)
