"""From results to figures: a drawn figure with its caption and its numbers, and the files that hold them.

``summary.csv`` has one line per plotted number; ``index.html`` shows every figure of the folder.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.base.errors import UserError
from analysis.figures.style import Curve, count, write_figure
from analysis.tables.text import write_csv

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
COLUMNS = (
    "stage", "model", "dataset", "figure", "metric", "axis", "affected", "layer", "layer_read", "levels",
    "mode", "n", "variant", "value", "low", "high", "p", "q", "experiments", "trials",
)  # fmt: skip
"""Of summary.csv; cells that do not apply are empty."""
SUMMARY = "summary.csv"
BARS = "Bars: 95 % bootstrap interval over experiments."
BANDS = "Bands: 95 % bootstrap interval over experiments."


@dataclass(frozen=True)
class Drawn:
    """One figure, not written yet."""

    kind: str
    """Name for ``--figure``."""
    name: str
    """File name without its ending."""
    group: str
    """Heading on the index page, such as ``layer 15``."""
    caption: str
    figure: Figure
    numbers: list[dict[str, Any]] = field(default_factory=list)
    """Rows for summary.csv, see COLUMNS."""


@dataclass(frozen=True)
class Written:
    """One figure on disk."""

    kind: str
    name: str
    group: str
    caption: str
    paths: tuple[Path, ...]


def write_drawn(
    drawn: Iterable[Drawn], folder: Path, formats: Sequence[str], about: Mapping[str, str]
) -> list[Written]:
    """Write figures one by one, so that one is in memory at a time, then their numbers to ``summary.csv``.

    Args:
        drawn: from the draw_* modules.
        folder: where to.
        formats: png, pdf, svg.
        about: ``stage`` (control or report), ``model`` and ``dataset`` of every number.

    Raises:
        UserError: there is nothing to draw.
    """
    written, numbers = [], []
    for one in drawn:
        paths = tuple(write_figure(one.figure, folder, one.name, formats))
        written.append(Written(one.kind, one.name, one.group, one.caption, paths))
        numbers += [{**about, "figure": one.name, **row} for row in one.numbers]
    if not written:
        raise UserError(
            f"the {about['stage']} results of {about['model']} on {about['dataset']} allow none of the "
            "figures asked for: layers needs runs of several layers, models those of several models"
        )
    write_summary(folder / SUMMARY, about["stage"], numbers)
    return written


def write_summary(path: Path, stage: str, rows: Sequence[Row]) -> None:
    """Write the numbers of ``stage`` and keep those of the other stage that the file holds."""
    kept = []
    if path.exists():
        try:
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
            same = tuple(reader.fieldnames or ()) == COLUMNS
            kept = [row for row in reader if row["stage"] != stage] if same else []
        except (ValueError, csv.Error):
            same = False
        if not same:
            raise UserError(f"{path} has other columns than this version writes: move it away")
    new = [{name: row.get(name, "") for name in COLUMNS} for row in rows]
    write_csv(sorted([*kept, *new], key=lambda row: row["stage"]), path, COLUMNS)


def numbers(
    rows: Iterable[Row], metric: str, value: str = "value", ends: Sequence[str] = ("low", "high"), **more: Any
) -> list[dict[str, Any]]:
    """Return rows for summary.csv: columns of COLUMNS are taken over, ``value`` and ``ends`` renamed."""
    found = []
    for row in rows:
        taken = {name: row[name] for name in COLUMNS if name in row}
        interval = {"low": row.get(ends[0], ""), "high": row.get(ends[1], "")}
        found.append({**more, **taken, "metric": metric, "value": row[value], **interval})
    return found


def effect_numbers(rows: Iterable[Row], **more: Any) -> list[dict[str, Any]]:
    """Return rows for summary.csv from rows of effects."""
    return numbers(rows, "cohens_d", "d", ("d_low", "d_high"), **more)


def curve_numbers(curve: Curve, metric: str, x: str, **more: Any) -> list[dict[str, Any]]:
    """Return one row per point of a curve over column ``x``."""
    points = zip(curve.x.tolist(), curve.y.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True)
    return [{**more, "metric": metric, x: at, "value": y, "low": a, "high": b} for at, y, a, b in points]


def curve(rows: Sequence[Row], x: str, names: Sequence[str] = ("value", "low", "high")) -> Curve:
    """Return rows as a curve over column ``x``."""
    rows = sorted(rows, key=lambda row: row[x])
    return Curve(*(np.array([row[key] for row in rows], float) for key in (x, *names)))


def effect_curve(rows: Sequence[Row], x: str) -> Curve:
    """Return rows of effects as a curve of d."""
    return curve(rows, x, ("d", "d_low", "d_high"))


def bars(rows: Sequence[Row]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Return names of axes, values, low and high ends."""
    columns = (np.array([row[key] for row in rows], float) for key in ("value", "low", "high"))
    return [row["axis"] for row in rows], *columns


def n_text(rows: Iterable[Row]) -> str:
    """Return such as ``n = 6 experiments, n = 24 trials per point.``"""
    rows = list(rows)
    text = count((row["experiments"] for row in rows), "experiment")
    trials = count((row["trials"] for row in rows), "trial") if rows and "trials" in rows[0] else ""
    return f"{text}{f', {trials} per point' if trials else ''}."


def note(rows: Sequence[Row], bars_or_bands: str = BARS) -> str:
    """Return n and what the interval is."""
    single = all(row["experiments"] < 2 for row in rows)
    return f"{n_text(rows)} {'One experiment has no interval.' if single else bars_or_bands}"
