"""Datasets: labelled sentences in groups that must not straddle the split.

A dataset is a folder below data/ with ``sentences.csv`` (columns id, group, sentence, label; others are
kept out). Keys: ``commonsense`` (shipped), ``custom/<name>`` (yours, in data/custom/<name>/).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import UserError, fingerprint, generator, unknown

DATA_DIR = Path(__file__).resolve().parent
SHIPPED = ("commonsense",)
COLUMNS = ("id", "group", "sentence", "label")


@dataclass(frozen=True)
class Dataset:
    """Labelled sentences."""

    key: str
    ids: list[str]
    sentences: list[str]
    labels: np.ndarray
    """(B,) int64, 0 or 1."""
    groups: np.ndarray
    """(B,) int64; sentences of one group stay in one half of the split."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return fingerprint(self.ids, self.sentences, self.labels, self.groups)


@dataclass(frozen=True)
class Split:
    """Rows of the dataset that fit the axes, and rows that experiments draw from."""

    axis_rows: np.ndarray
    """(n_axis,) int64."""
    trial_rows: np.ndarray
    """(n_trial,) int64."""


def load_dataset(key: str) -> Dataset:
    """Load a dataset by its key.

    Raises:
        UserError: unknown key, or a file that is not as described (named with its line).
    """
    if key not in SHIPPED and not key.startswith("custom/"):
        raise unknown("dataset", key, (*SHIPPED, "custom/<name>"), "data/load.py")
    path = DATA_DIR / key / "sentences.csv"
    if not path.is_file():
        raise UserError(
            f"dataset {key!r} has no file {path}: make it, with the columns {', '.join(COLUMNS)} "
            f"(see {DATA_DIR / SHIPPED[0]} for an example)"
        )
    return read_sentences(path, key)


def read_sentences(path: Path, key: str) -> Dataset:
    """Parse a sentences.csv completely, or raise UserError with the line; nothing is half-loaded."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}:1: missing columns {', '.join(missing)}; needed: {', '.join(COLUMNS)}"
                )
            rows = [_row(path, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a UTF-8 CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} holds no sentences")
    ids, groups, sentences, labels = (list(column) for column in zip(*rows, strict=True))
    for name, values in (("id", ids), ("sentence", sentences)):
        if len(set(values)) < len(values):
            twice = next(v for i, v in enumerate(values) if v in values[:i])
            raise UserError(f"{path}: {name} {twice!r} stands there twice; each must be unique")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return Dataset(key, ids, sentences, np.array(labels), np.array([numbers[g] for g in groups]))


def _row(path: Path, line: int, row: dict[str | None, str | None]) -> tuple[str, str, str, int]:
    if None in row or any(row[c] is None for c in COLUMNS):
        raise UserError(
            f"{path}:{line}: {len(row)} fields do not match the header; quote commas in sentences"
        )
    sentence, label = " ".join(row["sentence"].split()), row["label"].strip()
    if label not in ("0", "1"):
        raise UserError(f"{path}:{line}: label {label!r} must be 0 or 1")
    if not sentence or not row["id"].strip():
        raise UserError(f"{path}:{line}: the id or the sentence is empty")
    return row["id"].strip(), row["group"].strip(), sentence, int(label)


def split_dataset(dataset: Dataset, n_axis: int, n_trial: int, seed: int) -> Split:
    """Return two disjoint halves, each balanced by class, with whole groups only.

    Args:
        dataset: see Dataset.
        n_axis: sentences that fit the axes; half of each class.
        n_trial: sentences for experiments; half of each class.
        seed: draws the order of the groups.

    Raises:
        UserError: an odd size, one class missing, or too few sentences.
    """
    for name, size in (("n_axis", n_axis), ("n_trial", n_trial)):
        if size % 2:
            raise UserError(f"{name} = {size} must be even, half of each class")
    counts = np.bincount(dataset.labels, minlength=2)
    if not counts.all():
        raise UserError(
            f"dataset {dataset.key!r} has sentences of label {int(counts.argmax())} only: axes need both"
        )
    members: dict[int, list[int]] = {}
    for row, group in enumerate(dataset.groups.tolist()):
        members.setdefault(group, []).append(row)
    order = generator(seed, "split").permutation(len(members))
    groups = [members[key] for key in np.array(sorted(members))[order].tolist()]
    axis_rows, rest = _fill(groups, dataset.labels, n_axis)
    trial_rows, _ = _fill(rest, dataset.labels, n_trial)
    if len(axis_rows) < n_axis or len(trial_rows) < n_trial:
        raise UserError(
            f"dataset {dataset.key!r} has {counts[0]} + {counts[1]} sentences of labels 0 + 1 in "
            f"{len(groups)} groups, too few for n_axis {n_axis} and n_trial {n_trial}: lower them (--config)"
        )
    return Split(np.array(axis_rows), np.array(trial_rows))


def _fill(groups: Sequence[list[int]], labels: np.ndarray, size: int) -> tuple[list[int], list[list[int]]]:
    """Take groups in order while neither class exceeds half of ``size``; return rows and what is left."""
    taken: list[int] = []
    left: list[list[int]] = []
    room = np.array([size // 2, size // 2])
    for rows in groups:
        need = np.bincount(labels[rows], minlength=2)
        if (need <= room).all():
            taken += rows
            room = room - need
        else:
            left.append(rows)
    return taken, left
