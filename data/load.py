"""Datasets: labelled sentences in groups that must not straddle the split.

Three kinds of keys, each with its own results folder: ``commonsense``, ``true_false``, ``sycophancy``,
``emotion`` are shipped; ``published/<key>`` are the paper's files (``python -m data.download``);
``custom/<name>`` are yours (``python -m data.template``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.base.errors import UserError, unknown
from analysis.base.seeds import fingerprint, generator
from data.balance import balanced_halves
from data.formats import PUBLISHED, Row, class_files, sentences_csv, sentences_jsonl
from data.sources import SOURCES

log = logging.getLogger(__name__)

DATA_DIR = Path(__file__).resolve().parent
SHIPPED = ("commonsense", "true_false", "sycophancy", "emotion")


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
    """A dataset, the rows that fit the axes, and the rows that experiments draw from."""

    dataset: Dataset
    axis_rows: np.ndarray
    """(n_axis,) int64."""
    trial_rows: np.ndarray
    """(n_trial,) int64."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the content and of the split."""
        return fingerprint(self.dataset.fingerprint, self.axis_rows, self.trial_rows)

    def compact(self) -> Split:
        """Return the same split of just the sentences that it uses."""
        rows = np.sort(np.concatenate([self.axis_rows, self.trial_rows]))
        whole = self.dataset
        used = Dataset(
            whole.key,
            [whole.ids[row] for row in rows],
            [whole.sentences[row] for row in rows],
            whole.labels[rows],
            whole.groups[rows],
        )
        return Split(used, np.searchsorted(rows, self.axis_rows), np.searchsorted(rows, self.trial_rows))


def load_dataset(key: str, seed: int, n_axis: int, n_trial: int) -> Split:
    """Read a dataset and split it: by group, balanced by class, random by seed.

    Raises:
        UserError: see read_dataset and split_dataset.
    """
    return split_dataset(read_dataset(key), n_axis, n_trial, seed)


def read_dataset(key: str) -> Dataset:
    """Read all sentences of a dataset.

    Raises:
        UserError: unknown key, missing files (with what to do), or a file that is not as described (with
            its line).
    """
    space, _, name = key.rpartition("/")
    if key in SHIPPED:
        return make_dataset(key, sentences_csv(DATA_DIR / key / "sentences.csv"), DATA_DIR / key)
    if space == "published" and name in SOURCES:
        return _published(key, name)
    if space == "custom" and name not in ("", ".", ".."):
        return _custom(key, DATA_DIR / "custom" / name)
    known = (*SHIPPED, *(f"published/{name}" for name in SOURCES), "custom/<name>")
    raise unknown("dataset", key, known, "data/README.md")


def _published(key: str, name: str) -> Dataset:
    rows: list[Row] = []
    for source in SOURCES[name]:
        path = DATA_DIR / "published" / source.key / source.name
        if not path.is_file():
            raise UserError(
                f"{path} is not there: run `python -m data.download {name}` (without a network: with --from "
                "FOLDER)"
            )
        rows += PUBLISHED[name](path)
    return make_dataset(key, _without_repeats(key, rows), DATA_DIR / "published" / name)


def _without_repeats(key: str, rows: Sequence[Row]) -> list[Row]:
    """Keep the first of equal sentences, none if their labels differ; the published files repeat some."""
    labels: dict[str, set[int]] = {}
    for _, _, sentence, label in rows:
        labels.setdefault(sentence, set()).add(label)
    kept, seen = [], set()
    for row in rows:
        if len(labels[row[2]]) == 1 and row[2] not in seen:
            seen.add(row[2])
            kept.append(row)
    if len(kept) < len(rows):
        log.info("%s: %d repeated sentences left out", key, len(rows) - len(kept))
    return kept


def _custom(key: str, folder: Path) -> Dataset:
    if not folder.is_dir():
        raise UserError(
            f"dataset {key!r} has no folder {folder}: run `python -m data.template {folder.name}`"
        )
    if not (folder / "README.md").is_file():
        raise UserError(
            f"{folder} needs a README.md that says where the sentences come from and what labels mean"
        )
    readers = {"sentences.csv": sentences_csv, "sentences.jsonl": sentences_jsonl}
    found = [name for name in readers if (folder / name).is_file()]
    texts = sorted(folder.glob("[01]*.txt"))
    if len(found) + bool(texts) != 1:
        raise UserError(
            f"{folder} must hold one of sentences.csv, sentences.jsonl, or two files 0*.txt and 1*.txt; it "
            f"has {', '.join([*found, *(path.name for path in texts)]) or 'none'}"
        )
    rows = readers[found[0]](folder / found[0]) if found else class_files(folder)
    return make_dataset(key, rows, folder)


def make_dataset(key: str, rows: Sequence[Row], place: Path) -> Dataset:
    """Return checked rows as a dataset; ``place`` is named in errors.

    Raises:
        UserError: no rows, or an id or a sentence that stands there twice.
    """
    if not rows:
        raise UserError(f"{place} holds no sentences")
    ids, groups, sentences, labels = (list(column) for column in zip(*rows, strict=True))
    for name, values in (("id", ids), ("sentence", sentences)):
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise UserError(f"{place}: {name} {value[:80]!r} stands there twice; each must be unique")
            seen.add(value)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return Dataset(key, ids, sentences, np.array(labels), np.array([numbers[g] for g in groups]))


def split_dataset(dataset: Dataset, n_axis: int, n_trial: int, seed: int) -> Split:
    """Return two disjoint halves, each balanced by class, with whole groups only.

    The split is random where that fills both halves, and exact where it does not: see ``balanced_halves``.

    Args:
        dataset: see Dataset.
        n_axis: sentences that fit the axes; half of each class.
        n_trial: sentences for experiments; half of each class.
        seed: draws the order of the groups.

    Raises:
        UserError: an odd size, one class missing, or no choice of whole groups fits.
    """
    for name, size in (("n_axis", n_axis), ("n_trial", n_trial)):
        if size % 2:
            raise UserError(f"{name} = {size} must be even, half of each class")
    counts = np.bincount(dataset.labels, minlength=2)
    if not counts.all():
        raise UserError(
            f"dataset {dataset.key!r} has sentences of label {int(counts.argmax())} only: axes need both"
        )
    names, member = np.unique(dataset.groups, return_inverse=True)
    sizes = np.stack(
        [np.bincount(member[dataset.labels == side], minlength=len(names)) for side in (0, 1)], axis=1
    )
    halves = balanced_halves(sizes, (n_axis, n_trial), generator(seed, "split"))
    if not halves:
        raise UserError(
            f"dataset {dataset.key!r} has {counts[0]} + {counts[1]} sentences of labels 0 + 1 in "
            f"{len(names)} groups, too few for n_axis {n_axis} and n_trial {n_trial}: no choice of whole "
            "groups gives half of each label; lower them (--config)"
        )
    rows = [[np.flatnonzero(member == group) for group in half] for half in halves]
    return Split(dataset, *(np.concatenate(half) for half in rows))
