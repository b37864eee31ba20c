"""A figures folder: drawing adds to it, and what lists its figures is made again from all that are there.

    <figure>.png             and .pdf, .svg: as many formats as were asked for
    <figure>.json            its record: heading, caption and every plotted number
    overview_layer<l>.png    the figures of a layer in one image
    summary.csv              the numbers of all records, one line each
    index.html               all figures

A figure and its record replace those of the same name. What lists figures is made under a lock from all
records that have an image: processes that draw into one folder at once lose nothing, and what a killed one
has drawn is listed by the next.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from analysis.base.errors import UserError
from analysis.base.files import save_bytes, uninterrupted
from analysis.figures.style import figure_files, write_figure
from analysis.pages import index
from analysis.pages.drawn import COLUMNS, Drawn
from analysis.pages.kinds import rank
from analysis.pages.overview import stitch
from analysis.results.claims import claim
from analysis.tables.rows import Row
from analysis.tables.text import write_csv
from configs.settings import FORMATS

log = logging.getLogger(__name__)

SUMMARY = "summary.csv"
OVERVIEW = "overview"
_PLAIN = re.compile(r"[\w-][\w ,.-]*")
"""Names become file names: nothing in them may lead out of the folder."""
_MOST_BYTES = 2**26
"""Of a record: a larger file is none."""


@dataclass(frozen=True)
class Written:
    """One figure on disk."""

    kind: str
    name: str
    group: str
    caption: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Record:
    """What a figure's JSON file holds."""

    stage: str
    """Such as ``control``."""
    kind: str
    order: int
    """Place among the figures of its kind, or of its study."""
    name: str
    group: str
    """Heading on the index page."""
    caption: str
    numbers: list[Row] = field(default_factory=list)
    """Rows of summary.csv."""

    def place(self) -> tuple[Any, ...]:
        """Return the key that sorts records: by kind, then by name, layer 2 before layer 10."""
        words = re.split(r"(\d+)", self.name)
        natural = [(int(word), "") if word.isdecimal() else (0, word) for word in words]
        return rank(self.stage, self.kind), self.stage, self.order, natural


def add_figures(
    folder: Path,
    drawn: Iterable[Drawn],
    formats: Sequence[str],
    about: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> list[Written]:
    """Write figures one by one, so that one is in memory at a time, then list all of the folder anew.

    Args:
        folder: where to.
        drawn: from ``kinds.draw``, or of a study.
        formats: png, pdf, svg.
        about: ``stage``, ``model`` and ``dataset`` of every number.
        provenance: of the index page, such as the meta data of a unit.

    Raises:
        UserError: there is nothing to draw.
    """
    written = []
    for one in drawn:
        files = figure_files(one.figure, folder / one.name, formats)
        numbers = [{**about, "figure": one.name, **row} for row in one.numbers]
        record = Record(about["stage"], one.kind, one.order, one.name, one.group, one.caption, numbers)
        with uninterrupted():
            for path, content in {**files, folder / f"{one.name}.json": _as_json(record)}.items():
                save_bytes(content, path)
        written.append(Written(one.kind, one.name, one.group, one.caption, tuple(files)))
    if not written:
        raise UserError(
            f"the {about['stage']} results of {about['model']} on {about['dataset']} allow none of the "
            "figures asked for: layers needs runs of several layers, models those of several models"
        )
    list_figures(folder, formats, f"{about['model']}, {about['dataset']}", provenance)
    return written


def list_figures(folder: Path, formats: Sequence[str], title: str, provenance: Mapping[str, Any]) -> Path:
    """Make overviews, summary.csv and index.html from all records of ``folder``; return the page."""
    with claim(folder / index.NAME, wait=True):
        records = read_records(folder)
        rows = [{name: row.get(name, "") for name in COLUMNS} for one in records for row in one.numbers]
        write_csv(rows, folder / SUMMARY, COLUMNS)
        entries = _overviews(folder, records, formats, title)
        entries += [
            index.Entry(one.name, one.caption, one.group, images(folder, one.name)) for one in records
        ]
        return index.write_index(folder, entries, title, provenance)


def read_records(folder: Path) -> list[Record]:
    """Return the records whose figures are there, in the order of the index page."""
    found = [_read(path) for path in folder.glob("*.json")]
    return sorted((one for one in found if one and images(folder, one.name)), key=Record.place)


def images(folder: Path, name: str) -> dict[str, Path]:
    """Return format -> file of a figure, for the formats that are there."""
    return {form: path for form in FORMATS if (path := folder / f"{name}.{form}").is_file()}


def _overviews(
    folder: Path, records: Iterable[Record], formats: Sequence[str], title: str
) -> list[index.Entry]:
    """Stitch the PNG files of every layer that has two or more."""
    groups: dict[str, list[Path]] = {}
    for one in records:
        path = images(folder, one.name).get("png")
        if one.group.startswith("layer") and path:
            groups.setdefault(one.group, []).append(path)
    entries = []
    for group, paths in groups.items():
        if len(paths) > 1:
            name = f"{OVERVIEW}_{group.replace(', ', '_').replace(' ', '')}"
            write_figure(stitch(paths, f"{title}: {group}"), folder, name, formats)
            entries.append(index.Entry(name, f"All figures of {group}.", OVERVIEW, images(folder, name)))
    return entries


# ---------------------------------------------------------------- records as files


def _as_json(record: Record) -> bytes:
    """Return the file's content; NaN becomes null, numbers of numpy those of Python."""
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in record.numbers
    ]
    plain = {**asdict(record), "numbers": rows}
    return json.dumps(plain, default=lambda value: value.item()).encode()


def _read(path: Path) -> Record | None:
    """Return what the file holds, None (with a warning) if that is no record of a figure."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("no file of a record's size")
        return _checked(json.loads(path.read_bytes()), path.stem)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        log.warning("%s describes no figure: it is not listed", path)
        return None


def _checked(found: Any, name: str) -> Record:
    """Return a record that was read, or raise what says that it is none."""
    if not isinstance(found, dict) or set(found) != {one.name for one in fields(Record)}:
        raise ValueError("other keys")
    record = Record(**found)
    texts = (record.stage, record.kind, record.name, record.group, record.caption)
    if not all(isinstance(text, str) for text in texts) or type(record.order) is not int:
        raise TypeError("a value of another type")
    if record.name != name or not all(map(_PLAIN.fullmatch, (name, record.group))):
        raise ValueError("a name that is no plain file name")
    if not isinstance(record.numbers, list) or not all(isinstance(row, dict) for row in record.numbers):
        raise TypeError("numbers are no rows")
    plain = (str, int, float, type(None))
    if not all(isinstance(value, plain) for row in record.numbers for value in row.values()):
        raise TypeError("a number of another type")
    return record
