"""Build sentences.csv, true and false statements in pairs, from the tables of facts in tables/.

    python -m data.true_false.build

A table ``<topic>.csv`` has one row per subject (an element, a country, ...) and one column per relation;
``phrasings.csv`` gives several wordings of each relation. The subjects of a table are matched two by two,
and the two swap their values, which gives four statements in one wording:

    The chemical symbol of tin is Sn.    true     The chemical symbol of gold is Au.    true
    The chemical symbol of tin is Au.    false    The chemical symbol of gold is Sn.    false

So each subject, value and wording stands in as many true as false statements, in the file and in each
group. The column ``also`` of a table lists further values, separated by ``|``, that are true or arguable
for a subject; they are never used as its false values. In ``facts.csv`` each row has a wording of its own,
and rows 1 and 2, 3 and 4, ... swap their values. A group holds all statements on the subjects in it.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.base.errors import UserError
from analysis.base.files import save_bytes
from analysis.base.seeds import generator

HERE = Path(__file__).resolve().parent
TABLES = HERE / "tables"
OUT = HERE / "sentences.csv"
SEED = 0
TOPICS = ("capitals", "elements", "animals", "inventions", "companies")
"""Tables with relations; facts.csv comes on top."""
LIMIT = 38
"""At most this many matches, of two subjects each, are drawn from each of TOPICS."""
HEADER = ("id", "group", "sentence", "label", "topic")

SLOT = re.compile(r"\{(a:)?(\w+)\}")
AN = re.compile(r"[aeioAIO]|u(?!ni)|E(?!u)")
"""Start of a word that takes "an"; "European" takes "a"."""

Row = dict[str, str]


@dataclass(frozen=True)
class Cell:
    """Two facts of one relation that have swapped their values."""

    topic: str
    subjects: tuple[str, str]
    pairs: tuple[tuple[str, str], tuple[str, str]]
    """For each of the subjects the false and the true statement, in this order: the index is the label."""


def build(seed: int = SEED) -> list[Cell]:
    """Return all cells; equal tables and seeds give equal cells.

    Raises:
        UserError: a table is not as described.
    """
    phrasings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read_table("phrasings", ("topic", "relation", "phrasing")):
        phrasings[row["topic"]][row["relation"]].append(row["phrasing"])
    if unknown := set(phrasings) - set(TOPICS):
        raise UserError(f"{TABLES / 'phrasings.csv'}: unknown topics {', '.join(sorted(unknown))}")
    cells: list[Cell] = []
    for topic in TOPICS:
        cells += build_topic(topic, phrasings[topic], generator(seed, "true_false", topic))
    cells += build_facts()
    check(cells)
    return cells


def read_table(name: str, columns: tuple[str, ...]) -> list[Row]:
    """Read tables/<name>.csv, which must have ``columns``.

    Raises:
        UserError: a column is missing, a row has a wrong number of cells, or there is no row.
    """
    path = TABLES / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        rows = list(reader)
    if missing or not rows:
        raise UserError(f"{path}: missing {', '.join(missing) or 'rows'}")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}:{line}: the number of cells does not match the header")
    return rows


def build_topic(topic: str, phrasings: dict[str, list[str]], rng: np.random.Generator) -> list[Cell]:
    """Return the cells of a table.

    Args:
        topic: name of the table.
        phrasings: relation, which is a column of the table, to its wordings.
        rng: draws the matches and the wordings.

    Raises:
        UserError: the table is not as described, or a subject stands there twice.
    """
    rows = read_table(topic, ("subject", "also", *phrasings))
    twice = [subject for subject, count in Counter(row["subject"] for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{TABLES / topic}.csv: {', '.join(twice)} more than once")
    matches = match_rows(rows, list(phrasings), rng)
    matches = [matches[i] for i in rng.permutation(len(matches))[:LIMIT].tolist()]
    cells = []
    for relation, texts in phrasings.items():
        usable = [match for match in matches if can_swap(*match, relation)]
        # Wordings come in turn, so that they are about equally frequent.
        for (one, two), k in zip(usable, rng.permutation(len(usable)).tolist(), strict=True):
            text = texts[k % len(texts)]
            cells.append(make_cell(topic, (one, two), (text, text), (one[relation], two[relation])))
    return cells


def can_swap(one: Row, two: Row, relation: str) -> bool:
    """Tell whether each row has a value of the relation that is false for the other row."""
    if not one[relation] or not two[relation] or one[relation] == two[relation]:
        return False
    return one[relation] not in two["also"].split("|") and two[relation] not in one["also"].split("|")


def match_rows(rows: list[Row], relations: list[str], rng: np.random.Generator) -> list[tuple[Row, Row]]:
    """Match rows two by two, greedily, so that many relations can be swapped; rare ones weigh more.

    The order is random among rows of equal weight. A row that nothing can be swapped with is left out.
    """
    weights = {relation: 1 / max(1, sum(bool(row[relation]) for row in rows)) for relation in relations}
    left = [rows[i] for i in rng.permutation(len(rows)).tolist()]
    left.sort(key=lambda row: -sum(weights[relation] for relation in relations if row[relation]))
    matches = []
    while len(left) > 1:
        row = left.pop(0)
        gains = [sum(weights[r] for r in relations if can_swap(row, other, r)) for other in left]
        best = int(np.argmax(gains))
        if gains[best] > 0:
            matches.append((row, left.pop(best)))
    return matches


def build_facts() -> list[Cell]:
    """Return the cells of facts.csv.

    Raises:
        UserError: two rows that belong together do not swap their values.
    """
    rows = read_table("facts", ("subject", "text", "true", "false"))
    cells = []
    for number in range(0, len(rows), 2):
        one, two = rows[number : number + 2] if number + 1 < len(rows) else (rows[number], {})
        if (one["true"], one["false"]) != (two.get("false"), two.get("true")):
            raise UserError(
                f"{TABLES / 'facts.csv'}: {one['text']!r} and its successor do not swap their values"
            )
        cells.append(make_cell("facts", (one, two), (one["text"], two["text"]), (one["true"], two["true"])))
    return cells


def make_cell(topic: str, rows: tuple[Row, Row], texts: tuple[str, str], values: tuple[str, str]) -> Cell:
    """Fill the wordings with the own value, which is true, and with that of the other row."""
    one, two = rows
    return Cell(
        topic,
        (one["subject"], two["subject"]),
        (
            (fill(texts[0], one, values[1]), fill(texts[0], one, values[0])),
            (fill(texts[1], two, values[0]), fill(texts[1], two, values[1])),
        ),
    )


def fill(text: str, row: Row, value: str) -> str:
    """Fill the slots ``{value}`` and ``{column}``, or ``{a:...}`` with "a" or "an"; begin with a capital."""
    fields = row | {"value": value}

    def replace(slot: re.Match[str]) -> str:
        word = fields[slot[2]]
        if not slot[1]:
            return word
        return f"{'an' if AN.match(word) else 'a'} {word}"

    sentence = SLOT.sub(replace, text)
    return sentence[0].upper() + sentence[1:]


def check(cells: list[Cell]) -> None:
    """Look for damage that a mistake in a table would cause.

    Raises:
        UserError: a sentence stands there twice, or has a wrong character or end.
    """
    sentences = [sentence for cell in cells for pair in cell.pairs for sentence in pair]
    for sentence, count in Counter(sentence.casefold() for sentence in sentences).items():
        if count > 1:
            raise UserError(f"sentence stands there {count} times: {sentence!r}")
    for sentence in sentences:
        if not sentence.isascii() or not sentence.endswith(".") or re.search(r'[{}"\n]|  |\.\.', sentence):
            raise UserError(f"damaged sentence: {sentence!r}")


def group_cells(cells: list[Cell]) -> list[list[Cell]]:
    """Put cells that share a subject, directly or by way of other cells, into one group."""
    parent: dict[str, str] = {}

    def root(subject: str) -> str:
        while parent.setdefault(subject, subject) != subject:
            subject = parent[subject]
        return subject

    for cell in cells:
        one, two = cell.subjects
        parent[root(one)] = root(two)
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[root(cell.subjects[0])].append(cell)
    return list(groups.values())


def to_csv(cells: list[Cell], seed: int = SEED) -> str:
    """Return the file: groups in random order, the two statements of a pair in random order."""
    rng = generator(seed, "true_false", "order")
    groups = group_cells(cells)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    number = 0
    for group, index in enumerate(rng.permutation(len(groups)).tolist(), start=1):
        for cell in groups[index]:
            for pair in cell.pairs:
                first = int(rng.integers(2))
                for label in (first, 1 - first):
                    number += 1
                    writer.writerow((f"tf{number:04d}", group, pair[label], label, cell.topic))
    return buffer.getvalue()


def main() -> None:
    """Write sentences.csv next to this file."""
    cells = build()
    save_bytes(to_csv(cells).encode("ascii"), OUT)
    print(f"{OUT}: {4 * len(cells)} statements in {len(group_cells(cells))} groups")


if __name__ == "__main__":
    main()
