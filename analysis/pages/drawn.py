"""One figure with its caption and its numbers, and how rows of a table become curves, notes and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.style import Bars, Curve, count
from analysis.tables.rows import Row

COLUMNS = (
    "stage", "model", "dataset", "figure", "metric", "axis", "affected", "layer", "layer_read", "levels",
    "mode", "n", "variant", "value", "low", "high", "p", "q", "experiments", "trials",
)  # fmt: skip
"""Of summary.csv; cells that do not apply are empty."""
BARS = "Bars: 95 % bootstrap interval over experiments."
BANDS = "Bands: 95 % bootstrap interval over experiments."


@dataclass(frozen=True)
class Drawn:
    """One figure, not written yet."""

    name: str
    """File name without its ending."""
    group: str
    """Heading on the index page, such as ``layer 15``."""
    caption: str
    figure: Figure
    numbers: list[Row] = field(default_factory=list)
    """Rows for summary.csv, see COLUMNS."""
    kind: str = ""
    """What ``--figure`` calls it, see analysis/pages/kinds.py."""
    order: int = 0
    """Place among the figures of its kind, or of its study, on the index page."""


# ---------------------------------------------------------------- numbers


def numbers(
    rows: Iterable[Row], metric: str, value: str = "value", ends: Sequence[str] = ("low", "high"), **more: Any
) -> list[Row]:
    """Return rows for summary.csv: columns of COLUMNS are taken over, ``value`` and ``ends`` renamed."""
    found = []
    for row in rows:
        taken = {name: row[name] for name in COLUMNS if name in row}
        interval = {"low": row.get(ends[0], ""), "high": row.get(ends[1], "")}
        found.append({**more, **taken, "metric": metric, "value": row[value], **interval})
    return found


def effect_numbers(rows: Iterable[Row], **more: Any) -> list[Row]:
    """Return rows for summary.csv from rows of effects."""
    return numbers(rows, "cohens_d", "d", ("d_low", "d_high"), **more)


def curve_numbers(curve: Curve, metric: str, x: str, **more: Any) -> list[Row]:
    """Return one row per point of a curve over column ``x``."""
    points = zip(curve.x.tolist(), curve.y.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True)
    return [{**more, "metric": metric, x: at, "value": y, "low": a, "high": b} for at, y, a, b in points]


# ---------------------------------------------------------------- lines and bars


def curve(rows: Sequence[Row], x: str, names: Sequence[str] = ("value", "low", "high")) -> Curve:
    """Return rows as a curve over column ``x``."""
    rows = sorted(rows, key=lambda row: row[x])
    return Curve(*(np.array([row[key] for row in rows], float) for key in (x, *names)))


def effect_curve(rows: Sequence[Row], x: str) -> Curve:
    """Return rows of effects as a curve of d."""
    return curve(rows, x, ("d", "d_low", "d_high"))


def bars(rows: Sequence[Row], names: Sequence[str] = ("value", "low", "high")) -> Bars:
    """Return rows as bars, one for each axis; a column that a row lacks is NaN."""
    columns = (np.array([row.get(key, np.nan) for row in rows], float) for key in names)
    return Bars([row["axis"] for row in rows], *columns)


# ---------------------------------------------------------------- words


def levels_in_words(levels: int) -> str:
    """Return what follows the name of a place where more than two labels were shown."""
    return "" if levels == 2 else f", {levels} levels"


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
