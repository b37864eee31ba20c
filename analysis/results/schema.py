"""What files on disk must hold; checked on reading, so that figures only ever see well-formed arrays.

Shape letters: T trials   K axes   L layers read   D hidden size   P positions   A levels   B sentences
F label assignments (2)   R principal components   N rows of a half
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.base.files import DamagedFile
from configs.settings import LEVELS, MODES

CONTROL = {  # key: kinds of dtype, letters of the shape
    "n": ("iu", "T"), "flip": ("b", "T"), "target": ("iu", "T"), "want": ("iu", "T"), "cut": ("b", "T"),
    "empty": ("b", "T"), "copy_rate": ("f", "T"), "scores": ("f", "TK"), "layers": ("iu", "L"),
    "by_layer": ("f", "TL"), "projection": ("f", "TL"),
}  # fmt: skip
CONTROL_TEXTS = {"mode": "T", "text": "T", "test_sentence": "T", "affected": "K"}
REPORT = {
    "rows": ("iu", "P"), "scores": ("f", "P"), "labels": ("iu", "P"), "flip": ("b", "F"),
    "logits": ("f", "FPA"),
}  # fmt: skip
AXES = {
    "directions": ("f", "KD"), "mean": ("f", "D"), "scales": ("f", "K"), "thresholds": ("f", "K"),
    "variance_ratio": ("f", "R"), "scores": ("f", "BK"),
}  # fmt: skip
META_PARTS = 10_000
"""Most values in the meta data, lists inside each other all together."""


class _Checks:
    """Collects sizes by letter while the fields of one record are checked."""

    def __init__(self, path: Path, record: Mapping[str, Any], **sizes: int) -> None:
        self.path, self.record, self.sizes = path, record, sizes

    def need(self, ok: object, what: str) -> None:
        if not ok:
            raise DamagedFile(self.path, what)

    def meta(self) -> None:
        plain = _parts(self.record["meta"], META_PARTS) > 0
        self.need(plain, "its meta data are too deep, too many, or no plain data")

    def array(self, name: str, value: Any, kinds: str, letters: str) -> np.ndarray:
        known = isinstance(value, np.ndarray) and value.dtype.kind in kinds
        self.need(known, f"{name} is no array of kind {kinds}")
        shape = "x".join(map(str, value.shape)) or "()"
        self.need(value.ndim == len(letters), f"{name} has shape {shape}")
        for letter, size in zip(letters, value.shape, strict=True):
            fits = self.sizes.setdefault(letter, size) == size
            self.need(fits, f"{name} has shape {shape}, which does not fit")
        return value

    def arrays(self, fields: Mapping[str, tuple[str, str]]) -> None:
        for name, (kinds, letters) in fields.items():
            self.array(name, self.record.get(name), kinds, letters)

    def texts(self, fields: Mapping[str, str]) -> None:
        for name, letter in fields.items():
            value = self.record.get(name)
            known = isinstance(value, list) and all(type(v) is str for v in value)
            self.need(known, f"{name} is no list of text")
            self.need(
                self.sizes.setdefault(letter, len(value)) == len(value), f"{name} has {len(value)} items"
            )

    def named(self, name: str, kinds: str, letters: str) -> Mapping[str, np.ndarray]:
        value = self.record.get(name)
        known = isinstance(value, dict) and all(type(k) is str for k in value)
        self.need(known, f"{name} is no mapping of names")
        for key, part in value.items():
            self.array(f"{name} {key[:20]!r}", part, kinds, letters)
        return value


def check_unit(path: Path, key: Any, record: Mapping[str, Any]) -> None:
    """Raise DamagedFile (naming the field) unless ``record`` is a whole unit of ``key``.

    Also bounds the meta data: ``identity`` must be plain data of a bounded size, because it is compared,
    printed and shown on the index page.
    """
    checks = _Checks(path, record, F=2, A=key.levels)
    checks.need(key.levels in LEVELS, f"{key.levels} levels")
    checks.meta()
    (_control if key.kind == "imit" else _report)(checks, key)


def check_axes(path: Path, record: Mapping[str, Any]) -> None:
    """Raise DamagedFile (naming the field) unless ``record`` is a whole axes file."""
    checks = _Checks(path, record)
    checks.meta()
    checks.arrays(AXES)
    checks.texts({"names": "K"})
    checks.need(len(set(record["names"])) == checks.sizes["K"], "names has an axis twice")
    checks.need(checks.sizes["K"] > 0 and checks.sizes["R"] > 0, "it has no axes, or no variances")
    for name in ("directions", "mean", "scores", "variance_ratio"):
        checks.need(np.isfinite(record[name]).all(), f"{name} is not finite")
    checks.need(
        (record["scales"] > 0).all() and np.isfinite(record["scales"]).all(), "a scale is not above 0"
    )
    found = record.get("accuracy")
    whole = isinstance(found, dict) and all(
        type(name) is str and isinstance(pair, (list, tuple)) and len(pair) == 2
        and all(isinstance(share, float) for share in pair)
        for name, pair in found.items()
    )  # fmt: skip
    checks.need(whole, "accuracy is no mapping of names to two shares")


def check_split(path: Path, record: Mapping[str, Any]) -> None:
    """Raise DamagedFile (naming the field) unless ``record`` is a whole split."""
    checks = _Checks(path, record)
    checks.meta()
    checks.texts({"sentences": "B"})
    checks.array("labels", record.get("labels"), "iu", "B")
    for name in ("axis_rows", "trial_rows"):
        rows = checks.array(name, record.get(name), "iu", name[0])
        checks.need(
            len(rows) and (rows >= 0).all() and (rows < checks.sizes["B"]).all(), f"{name} is out of range"
        )


def _control(checks: _Checks, key: Any) -> None:
    record = checks.record
    checks.arrays(CONTROL)
    checks.texts(CONTROL_TEXTS)
    checks.need(checks.sizes["T"] > 0 and checks.sizes["L"] > 0, "it has no trials or no layers")
    checks.need(set(record["mode"]) <= set(MODES), f"mode is not {' or '.join(MODES)}")
    checks.need(
        np.isin(record["want"], (0, 1)).all() and (record["n"] >= 0).all(), "want or n is out of range"
    )
    checks.need(key.axis in record["affected"], f"axis {key.axis} is not among the affected")
    checks.need(len(set(record["affected"])) == checks.sizes["K"], "affected names an axis twice")
    layers = record["layers"].astype(np.int64)
    checks.need((np.diff(layers) > 0).all() and layers[0] >= 0, "layers do not rise")
    checks.need((record["n"] < 2**31).all() and layers[-1] < 2**31, "n or layers are out of range")
    columns = (record[name].tolist() for name in ("n", "flip", "want"))
    cells = list(zip(*columns, record["mode"], strict=True))
    checks.need(len(set(cells)) == len(cells), "it has the same trial twice")
    moved = checks.named("difference", "f", "D")
    checks.need(set(moved) >= set(record["mode"]), "difference lacks a mode")
    for name in ("scores", "by_layer", "projection", "copy_rate"):
        checks.need(not np.isinf(record[name]).any(), f"{name} holds infinity")


def _report(checks: _Checks, key: Any) -> None:
    record = checks.record
    checks.arrays(REPORT)
    checks.named("observers", "f", "P")
    checks.need(checks.sizes["P"] >= 2, "it has fewer than two positions")
    checks.need(record["flip"].tolist() == [False, True], "flip is not False, True")
    labels = record["labels"]
    checks.need(((labels >= 0) & (labels < key.levels)).all(), "labels are out of range")
    for name in ("logits", "scores"):
        checks.need(np.isfinite(record[name]).all(), f"{name} is not finite")
    for name, part in record["observers"].items():
        checks.need(((part >= 0) & (part <= 1)).all(), f"observer {name[:20]!r} is no probability")


def _parts(value: Any, left: int, depth: int = 20) -> int:
    """Return ``left`` less the parts of plain data, 0 or less if they are too many, too deep or not plain."""
    if isinstance(value, (str, bytes)):
        return left - 1 - len(value) // 100
    if value is None or type(value) in (bool, int, float):
        return left - 1
    if type(value) not in (list, tuple, dict) or depth == 0:
        return 0
    items = [part for pair in value.items() for part in pair] if type(value) is dict else value
    for item in items:
        if left <= 0:
            return 0
        left = _parts(item, left - 1, depth - 1)
    return left
