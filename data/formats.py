"""Parsers: each reads one file completely or raises one error with the file and line.

A parser returns rows (id, group, sentence, label); nothing is guessed, skipped or half-loaded.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.base.errors import UserError

Row = tuple[str, str, str, int]

COLUMNS = ("id", "group", "sentence", "label")
NEIGHBOURS = 0.3
"""Share of words (Jaccard) from which neighbouring rows count as variants of one another."""
LONGEST_LINE = 20_000


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte-order mark and with every line end as ``\\n``.

    Raises:
        UserError: missing, not UTF-8, holding a NUL, or a line too long for a sentence.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if "\0" in line or len(line) > LONGEST_LINE:
            raise UserError(f"{path}:{number}: the line holds a NUL or more than {LONGEST_LINE} characters")
    return text


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return (line, row) for every row of a CSV file with a header.

    Raises:
        UserError: columns are missing or named twice, or a row has more or fewer fields than the header.
    """
    rows = []
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        missing = [column for column in columns if column not in names]
        if missing or len(set(names)) < len(names):
            raise UserError(f"{path}:1: the header must hold {', '.join(columns)} once each, not {names}")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}:{reader.line_num}: the row has not the {len(names)} fields of the header; quote "
                    "commas in sentences"
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:  # line_num is the last good row's
        raise UserError(f"{path}:{reader.line_num + 1}: {error}") from None
    return rows


_UNWRITABLE = re.compile("[\\0\ud800-\udfff]")


def make_row(place: str, name: str, group: str, sentence: str, label: str) -> Row:
    """Return one checked row; ``place`` is file:line, for errors."""
    sentence = " ".join(sentence.split())
    if label.strip() not in ("0", "1"):
        raise UserError(f"{place}: label {label.strip()[:40]!r} must be 0 or 1")
    if not sentence or not name.strip():
        raise UserError(f"{place}: the id or the sentence is empty")
    if _UNWRITABLE.search(name + group + sentence):  # JSON can escape them
        raise UserError(f"{place}: the row holds a NUL or half of a surrogate pair, which is no text")
    return name.strip(), group.strip() or name.strip(), sentence, int(label)


# ---------------------------------------------------------------- this project's formats


def sentences_csv(path: Path) -> list[Row]:
    """Parse ``id,group,sentence,label``; further columns are ignored."""
    return [
        make_row(f"{path}:{line}", *(row[column] for column in COLUMNS))
        for line, row in read_csv(path, COLUMNS)
    ]


def sentences_jsonl(path: Path) -> list[Row]:
    """Parse one JSON object a line: sentence and label; id and group (text or whole numbers) if given."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        item = _json(line, place)
        if not isinstance(item, dict) or not isinstance(item.get("sentence"), str) or "label" not in item:
            raise UserError(f"{place}: must be an object with a text `sentence` and a `label`")
        name, group = item.get("id", number), item.get("group", "")
        if not all(type(value) in (str, int) for value in (name, group)):
            raise UserError(f"{place}: id and group must be text or whole numbers, or be left out")
        rows.append(make_row(place, str(name), str(group), item["sentence"], str(item["label"])))
    return rows


def class_files(folder: Path) -> list[Row]:
    """Parse ``0*.txt`` and ``1*.txt``, one sentence a line, each a group of its own."""
    rows = []
    for label in "01":
        files = sorted(folder.glob(f"{label}*.txt"))
        if len(files) != 1:
            raise UserError(f"{folder} must hold one file {label}*.txt with the sentences of label {label}")
        for number, line in enumerate(read_text(files[0]).split("\n"), 1):
            if line.strip():
                name = f"{label}-{number}"
                rows.append(make_row(f"{files[0]}:{number}", name, name, line, label))
    return rows


# ---------------------------------------------------------------- the published files


def commonsense(path: Path) -> list[Row]:
    """Parse ``label,input,is_short,edited``: the short rows; neighbours that share words are one group."""
    rows = []
    for line, row in read_csv(path, ("label", "input", "is_short", "edited")):
        if row["is_short"] not in ("True", "False"):
            raise UserError(f"{path}:{line}: is_short {row['is_short'][:40]!r} must be True or False")
        if row["is_short"] == "True":
            name = f"{path.stem}-{line}"
            rows.append(make_row(f"{path}:{line}", name, name, row["input"], row["label"]))
    return group_neighbours(rows)


def true_false(path: Path) -> list[Row]:
    """Parse ``statement,label``; statements on the same subject are one group."""
    rows = []
    for line, row in read_csv(path, ("statement", "label")):
        group = f"{path.stem} {subject(row['statement'])}"
        rows.append(make_row(f"{path}:{line}", f"{path.stem}-{line}", group, row["statement"], row["label"]))
    return rows


def emotion(path: Path) -> list[Row]:
    """Parse a JSON list of sentences; happiness is 1, any other file 0."""
    items = _json(read_text(path), str(path))
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{path} must be a JSON list of sentences")
    label = str(int(path.stem == "happiness"))
    names = [f"{path.stem}-{i}" for i in range(len(items))]
    return [
        make_row(f"{path}[{i}]", n, n, s, label) for i, (n, s) in enumerate(zip(names, items, strict=True))
    ]


_SYCOPHANCY = re.compile(r"(\d+) / (.+) / sycophancy=([01]) / agree=([01])")


def sycophancy(path: Path) -> list[Row]:
    """Parse lines ``id / sentence / sycophancy=k / agree=k``; the label is sycophancy."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            match = _SYCOPHANCY.fullmatch(line.strip())
            if match is None:
                raise UserError(f"{path}:{number}: must be `id / sentence / sycophancy=0|1 / agree=0|1`")
            rows.append(make_row(f"{path}:{number}", match[1], match[1], match[2], match[3]))
    return rows


PUBLISHED: dict[str, Callable[[Path], list[Row]]] = {
    "commonsense": commonsense,
    "commonsense_test": commonsense,
    "true_false": true_false,
    "sycophancy": sycophancy,
    "emotion": emotion,
}


def group_neighbours(rows: Iterable[Row]) -> list[Row]:
    """Give a row the group of the row before it when they share NEIGHBOURS of their words."""
    grouped: list[Row] = []
    for name, group, sentence, label in rows:
        if grouped and _shared_words(grouped[-1][2], sentence) >= NEIGHBOURS:
            group = grouped[-1][1]
        grouped.append((name, group, sentence, label))
    return grouped


def _shared_words(a: str, b: str) -> float:
    first, second = set(a.lower().split()), set(b.lower().split())
    return len(first & second) / max(1, len(first | second))


_VERB = re.compile(
    r"\s(?:is|are|was|were|has|have|had|uses?|used|can|lays?|eats?|lived|invented|discovered|developed|created|"
    r"engages?|operates?|appears?|forms?|occurs?|belongs?|primarily|does|do|refers?|contains?|produces?)\b"
)


def subject(statement: str) -> str:
    """Return what a statement is about: the words before its verb, without article or case."""
    head = _VERB.split(f" {statement}", maxsplit=1)[0].strip().lower()
    return re.sub(r"^(?:the|a|an|human uses for)\s+", "", head)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None
