"""What the plot scripts share: flags, which layers are meant, and tables as CSV and as text."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.missing import no_axes
from analysis.store import Store
from configs.settings import SELECTED_LAYERS
from utils import UserError, model_name, save_bytes

log = logging.getLogger(__name__)

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What ``--layer selected`` means for a model that configs/settings.py does not list."""


def add_plot_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of both plot scripts."""
    parser.add_argument(
        "--layer", default="all",
        help="layers that were targeted: all (with runs), middle, selected, or such as 7,15 (default: all)",
    )  # fmt: skip
    parser.add_argument("--axes", nargs="+", metavar="NAME", help="such as lr pc1 (default: all with runs)")
    parser.add_argument(
        "--format", nargs="+", choices=("png", "pdf", "svg"), default=["png"],
        help="file formats, several allowed (default: png)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results/<model>/<dataset>/figures"
    )


def resolve_layers(store: Store, spec: str, kind: str) -> list[int] | None:
    """Return the layers that ``--layer`` means, from the layers that have axes; None is all with runs.

    Raises:
        UserError: not a layer of this model, with the choices.
    """
    if spec == "all":
        return None
    layers = store.layers() or sorted({unit.layer for unit in store.units(kind)})
    if not layers:
        raise no_axes(store)
    if spec == "middle":
        return [layers[len(layers) // 2]]
    if spec == "selected":
        return _selected(store, kind, layers)
    words = [word.strip() for word in spec.split(",")]
    if not all(word.isdecimal() and int(word) in layers for word in words):
        known = ", ".join(map(str, layers))
        raise UserError(
            f"--layer {spec}: give all, middle, selected, or numbers joined by commas out of those in "
            f"{store.folder}: {known}"
        )
    return list(dict.fromkeys(int(word) for word in words))


def _selected(store: Store, kind: str, layers: Sequence[int]) -> list[int]:
    """Return the selected layers that have runs; those without are named in the log."""
    computed = [math.floor(depth * layers[-1] + 0.5) for depth in DEPTHS]
    wanted = SELECTED_LAYERS.get(model_name(store.model)) or tuple(dict.fromkeys(computed))
    have = {unit.layer for unit in store.units(kind)}
    lacking = [layer for layer in wanted if layer not in have]
    if lacking:
        log.warning("selected layers without runs are left out: %s", ", ".join(map(str, lacking)))
    return [layer for layer in wanted if layer in have] or list(wanted)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write one line per row; NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
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
