"""Tables as CSV and as text, and their numbers as words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.base.files import save_bytes


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> Path:
    """Write one line per row, with the columns of the first row or ``columns``; NaN becomes an empty cell."""
    text = io.StringIO()
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
    save_bytes(text.getvalue().encode(), path)
    return path


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in columns, for the terminal."""
    cells = [list(header), *([show(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    )


def show(value: object, digits: int = 2) -> str:
    """Return a cell's text: numbers rounded, NaN as a dash."""
    if _is_nan(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def interval(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """Return such as ``0.51 [0.20, 0.80]``, without brackets where there is no interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    middle = show(row[name], digits)
    return middle if _is_nan(low) else f"{middle} [{low:.{digits}f}, {high:.{digits}f}]"


def show_p(value: float) -> str:
    """Return a p or q value with three digits, ``<0.001`` below that."""
    return "<0.001" if value < 0.001 else show(float(value), 3)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
