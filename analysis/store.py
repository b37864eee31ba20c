"""The one place that spells file names under results/ and decides whether a finished file may be reused.

    results/<model>/<dataset>/split.pkl                       sentences, labels, groups, the two halves
                              hidden_layer<l>.pkl             pooled hidden states of every sentence
                              hidden_embedding.pkl            mean input embedding of every sentence
                              axes_layer<l>.pkl               axes of one layer and all sentences' scores
                              imit_<axis>_layer<l>_exp<e>.pkl control, one unit of work
                              pred_<axis>_layer<l>_exp<e>.pkl report, one unit of work
                              (..._layer<l>_levels<n>_exp<e>.pkl with more than two labels)
                              study_<name>_<axis>_layer<l>.pkl a study of tasks/
                              figures/*.png  report.html

Every file is a dict of builtins and numpy arrays with ``meta``; ``meta["identity"]`` holds the settings
that the content depends on, so that different settings are never mixed.
"""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import ROOT, UserError, load_pickle, model_name, save_pickle

SCHEMA = 2
KINDS = ("imit", "pred")
_UNIT = re.compile(r"(imit|pred)_([a-z_]+\d*)_layer(\d+)(?:_levels(\d+))?_exp(\d+)\.pkl")
_PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True, order=True)
class UnitKey:
    """One unit of work: an experiment on one axis of one layer."""

    kind: str
    """``imit`` (control) or ``pred`` (report)."""
    axis: str
    layer: int
    exp: int
    levels: int = 2
    """Labels shown: 2, or an even number of quantile levels."""


def folder_name(name: str) -> str:
    """Return a model or dataset name as one folder name."""
    plain = re.sub(r"[/\\ ]", "_", name.strip("/"))
    return f"_{plain}" if plain in ("", ".", "..") else plain


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
        levels = "" if key.levels == 2 else f"_levels{key.levels}"
        return self.folder / f"{key.kind}_{key.axis}_layer{key.layer}{levels}_exp{key.exp}.pkl"

    def study(self, name: str, axis: str, layer: int) -> Path:
        """The file of a study in tasks/, such as ``causal``, on one axis of one layer."""
        return self.folder / f"study_{name}_{axis}_layer{layer}.pkl"

    def units(self, kind: str, axis: str | None = None, layer: int | None = None) -> list[UnitKey]:
        """Return the units on disk, sorted; ``axis`` and ``layer`` narrow the list."""
        found = []
        for path in self.folder.glob(f"{kind}_*.pkl"):
            match = _UNIT.fullmatch(path.name)
            if match:
                key = UnitKey(match[1], match[2], int(match[3]), int(match[5]), int(match[4] or 2))
                if axis in (None, key.axis) and layer in (None, key.layer):
                    found.append(key)
        return sorted(found)

    def layers(self) -> list[int]:
        """Return the layers that have axes on disk, sorted."""
        names = (re.fullmatch(r"axes_layer(\d+)\.pkl", p.name) for p in self.folder.glob("axes_*.pkl"))
        return sorted(int(match[1]) for match in names if match)


def write(path: Path, record: Mapping[str, Any], identity: Mapping[str, Any], **about: Any) -> None:
    """Save ``record`` with ``meta``: what the content depends on, and where it came from."""
    save_pickle({"meta": {"identity": dict(identity), **provenance(), **about}, **record}, path)


def read(path: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load a result; with ``identity``, refuse one that was made with other settings.

    Raises:
        UserError: unreadable, another schema, or other settings (the message names the fields).
    """
    record = load_pickle(path)
    meta = record.get("meta")
    if not isinstance(meta, dict) or not isinstance(meta.get("identity"), dict):
        raise UserError(f"{path} has no meta data, so it is not a result of this program: move it away")
    if meta.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {meta.get('schema')!r}, this version reads {SCHEMA}: use the version that "
            "wrote it, or another --results folder"
        )
    if identity is not None:
        _compare(path, meta["identity"], identity)
    return record


def finished(path: Path, identity: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Return whether ``path`` holds this very work already; other settings are an error."""
    if overwrite or not path.exists():
        return False
    read(path, identity)
    return True


def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    keys = [k for k in sorted({*old, *new}) if old.get(k, None) != new.get(k, None)]
    if keys:
        shown = "; ".join(f"{k}: {_short(old.get(k))} there, {_short(new.get(k))} now" for k in keys)
        raise UserError(
            f"{path} was made with other settings ({shown}): give the same settings, choose another "
            "--results folder, or add --overwrite to redo it"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 48 else text[:45] + "..."


_STATIC: dict[str, Any] = {}


def provenance() -> dict[str, Any]:
    """Return where a result comes from: versions, commit, machine, time."""
    if not _STATIC:
        commit = _git("rev-parse", "HEAD")
        _STATIC.update(
            schema=SCHEMA,
            packages={name: _version(name) for name in _PACKAGES},
            python=platform.python_version(),
            machine=f"{platform.system()} {platform.machine()}",
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
