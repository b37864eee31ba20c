"""The one place that spells file names under results/ and decides whether a finished file may be reused.

    results/<model>/<dataset>/split.pkl                       sentences, labels, groups, the two halves
                              hidden_layer<l>.pkl             pooled hidden states of every sentence
                              hidden_embedding.pkl            mean input embedding of every sentence
                              axes_layer<l>.pkl               axes of one layer and all sentences' scores
                              imit_<axis>_layer<l>_exp<e>.pkl control, one unit of work
                              pred_<axis>_layer<l>_exp<e>.pkl report, one unit of work
                              (..._layer<l>_levels<n>_exp<e>.pkl with more than two labels)
                              study_<name>_exp<e>_<axis>_layer<l>.pkl   an experiment of a study
                              <file>.corrupt                  a damaged file that was redone
                              <file>.lock                     being done, see analysis/results/claims.py
                              figures/*.png  report.html

Every file is a dict of builtins and numpy arrays with ``meta``; ``meta["identity"]`` holds the settings
that the content depends on, so that different settings are never mixed.
"""

from __future__ import annotations

import itertools
import logging
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from analysis.base.errors import UserError
from analysis.base.files import ROOT, DamagedFile, disk_errors, load_meta, load_pickle, one_line, save_pickle
from analysis.results.fields import Sizes
from analysis.results.schema import UNIT_KINDS, Record, check, check_record, kind_of
from utils import model_name

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
SCHEMA = 2
PER_UNIT = ("axis", "layer", "exp", "levels")
"""Identity fields that name a unit; two units of one figure may differ in nothing else."""
_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True, order=True)
class UnitKey:
    """One unit of work: an experiment on one axis of one layer."""

    kind: str
    """CONTROL or REPORT of analysis/results/schema.py, or the name of a study."""
    axis: str
    layer: int
    exp: int
    levels: int = 2
    """Labels shown: 2, or an even number of quantile levels."""


def folder_name(name: str) -> str:
    """Return a model or dataset name as one folder name."""
    plain = re.sub(r"[/\\ ]", "_", name.strip("/"))
    return f"_{plain}" if plain in ("", ".", "..") else plain


def levels_in_name(levels: int) -> str:
    """Return the part of a file's name that says how many labels were shown."""
    return "" if levels == 2 else f"_levels{levels}"


def unit_key(name: str) -> UnitKey | None:
    """Return the unit whose file has this name, None if it is another file."""
    kind, prefix = kind_of(name), name.partition("_")[0]
    if kind is None or prefix not in UNIT_KINDS:
        return None
    return UnitKey(prefix, **(kind.parts(name) or {}))


@dataclass(frozen=True)
class Store:
    """The results of one model on one dataset."""

    root: Path
    model: str
    dataset: str
    flags: str = ""
    """Further flags of this run, for the commands in error messages."""

    @property
    def folder(self) -> Path:
        """results/<model>/<dataset>."""
        return self.root / folder_name(model_name(self.model)) / folder_name(self.dataset)

    @property
    def figures(self) -> Path:
        """Where figures are written."""
        return self.folder / "figures"

    @property
    def split(self) -> Path:
        """The sentences and the two halves."""
        return self.folder / "split.pkl"

    def hidden(self, layer: int, method: str = "pcascore") -> Path:
        """Pooled hidden states of one layer."""
        name = "hidden" if method == "pcascore" else f"hidden_{method}"
        return self.folder / f"{name}_layer{layer}.pkl"

    @property
    def embedding(self) -> Path:
        """Mean input embedding of every sentence, before the first block."""
        return self.folder / "hidden_embedding.pkl"

    def axes(self, layer: int) -> Path:
        """Axes of one layer, with the scores of all sentences."""
        return self.folder / f"axes_layer{layer}.pkl"

    def unit(self, key: UnitKey) -> Path:
        """The file of one unit of work."""
        name = f"{key.kind}_{key.axis}_layer{key.layer}{levels_in_name(key.levels)}_exp{key.exp}.pkl"
        return self.folder / name

    def study(self, name: str, axis: str, layer: int) -> Path:
        """The file of a study in tasks/, such as ``causal``, on one axis of one layer."""
        return self.folder / f"study_{name}_{axis}_layer{layer}.pkl"

    def units(self, kind: str, axis: str | None = None, layer: int | None = None) -> list[UnitKey]:
        """Return the units on disk, sorted; ``axis`` and ``layer`` narrow the list."""
        found = []
        for path in self.folder.glob(f"{kind}_*.pkl"):
            key = unit_key(path.name)
            if key and axis in (None, key.axis) and layer in (None, key.layer):
                found.append(key)
        return sorted(found)

    def layers(self) -> list[int]:
        """Return the layers that have axes on disk, sorted."""
        names = (re.fullmatch(r"axes_layer(\d+)\.pkl", p.name) for p in self.folder.glob("axes_*.pkl"))
        return sorted(int(match[1]) for match in names if match)


def write(path: Path, record: Mapping[str, Any], identity: Mapping[str, Any], **about: Any) -> None:
    """Save ``record`` with ``meta``: what the content depends on, and where it came from.

    A damaged file of that name is kept under another one, see set_aside.

    Raises:
        Wrong: ``record`` is not what the schema says of a file of this name.
    """
    whole = {"meta": {"identity": dict(identity), **provenance(), **about}, **record}
    check_record(path.name, kind_of(path.name), whole)
    if path.exists() and is_damaged(path):
        set_aside(path)
    save_pickle(whole, path)


def read(path: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load and check a result; with ``identity``, refuse one that was made with other settings.

    Raises:
        DamagedFile: not a whole result of this program, or not what the schema says of a file of this name.
        UserError: another schema, or other settings (the message names the fields).
    """
    record, _ = inspect(path)
    if identity is not None:
        _compare(path, record["meta"]["identity"], identity)
    return record


def inspect(path: Path) -> tuple[dict[str, Any], Sizes]:
    """Return a result and its sizes by the letters of the schema; errors as for :func:`read`."""
    record = load_pickle(path)
    _check_version(path, record.get("meta"))
    return record, check(path, kind_of(path.name), record)


def read_as(kind: type[R], path: Path, identity: Mapping[str, Any] | None = None) -> R:
    """Return a result as an object of its class in analysis/results/schema.py; errors as for :func:`read`."""
    return kind.of(read(path, identity))


def read_meta(path: Path) -> dict[str, Any]:
    """Return the meta data of a whole file, without its content and in little memory; errors as for read.

    The checksum covers the whole file, so that it is read once; what it holds is not checked.
    """
    meta = _check_version(path, load_meta(path))
    check(path, None, {"meta": meta})
    return meta


def _check_version(path: Path, meta: object) -> dict[str, Any]:
    """Return meta data; DamagedFile for what is none, UserError for those of another version."""
    if not isinstance(meta, dict) or not isinstance(meta.get("identity"), dict):
        raise DamagedFile(path, "it has no meta data")
    schema = meta.get("schema")
    if type(schema) is not int:
        raise DamagedFile(path, "its meta data have no schema")
    if schema != SCHEMA:
        raise UserError(
            f"{path} has schema {_short(schema)}, this version reads {SCHEMA}: use the version that "
            "wrote it, or another --results folder"
        )
    return meta


def finished(path: Path, identity: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Return whether ``path`` holds this very work already; other settings are an error.

    A damaged file, and one that is not what the schema says, is not finished; a warning names it, and
    :func:`write` sets it aside. One file is read, and nothing of it is kept.
    """
    if overwrite or not path.exists():
        return False
    try:
        read(path, identity)
    except DamagedFile as error:
        log.warning("%s", error.redone)
        return False
    except FileNotFoundError:  # another process set it aside just now
        return False
    return True


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Return what changes when a file is written anew, None if there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def still_needed(path: Path, identity: Mapping[str, Any], before: Stamp | None) -> bool:
    """Return whether work that was to be done when ``path`` had the stamp ``before`` is still to be done."""
    return stamp(path) == before or not finished(path, identity)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``<name>.corrupt``, ``.corrupt1``, ...: whichever is free; return that."""
    names = (path.with_name(f"{path.name}.corrupt{number or ''}") for number in itertools.count())
    with disk_errors(path, "rename"):
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(path, aside)
    log.warning("%s was damaged: kept as %s and made again", path, aside.name)
    return aside


def is_damaged(path: Path) -> bool:
    """Return whether a file is there that is not whole, or not what the schema says."""
    try:
        read(path)
    except DamagedFile:
        return True
    except (UserError, FileNotFoundError):  # whole, but of another version; or set aside just now
        return False
    return False


def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    keys = [k for k in sorted({*old, *new}, key=str) if repr(old.get(k)) != repr(new.get(k))]
    if keys:
        shown = "; ".join(f"{k}: {_short(old.get(k))} there, {_short(new.get(k))} now" for k in keys)
        raise UserError(
            f"{path} was made with other settings ({shown}): give the same settings, choose another "
            "--results folder, or add --overwrite to redo it"
        )


def _short(value: object) -> str:
    return one_line(repr(value), 48)


_STATIC: dict[str, Any] = {}


def provenance() -> dict[str, Any]:
    """Return where a result comes from: versions, commit, machine, time."""
    if not _STATIC:
        commit = _git("rev-parse", "HEAD")
        _STATIC.update(
            schema=SCHEMA,
            packages={name: _version(name) for name in _PACKAGES},
            python=platform.python_version(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            git_commit=commit,
            git_dirty=bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        )
    return {**_STATIC, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
