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
from configs.layers import choose_layers
from utils import save_bytes

log = logging.getLogger(__name__)


def add_plot_flags(parser: argparse.ArgumentParser, kinds: Sequence[str], main: Sequence[str]) -> None:
    """Add the flags of both plot scripts; ``main`` are the kinds of figures drawn by default."""
    parser.add_argument(
        "--figure", nargs="+", choices=kinds, metavar="KIND",
        help=f"which figures: {', '.join(kinds)} (default: {', '.join(main)})",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every figure that the results on disk allow")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME",
        help="other models for the figures over models (default: all with runs on this dataset)",
    )  # fmt: skip
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


def chosen_kinds(args: argparse.Namespace, kinds: Sequence[str], main: Sequence[str]) -> Sequence[str]:
    """Return the kinds of figures that ``--figure`` and ``--all`` ask for; ``--models`` implies its kind."""
    chosen = kinds if args.all else args.figure or main
    return chosen if args.models is None else list(dict.fromkeys([*chosen, "models"]))


def resolve_layers(store: Store, spec: str, kind: str) -> list[int] | None:
    """Return the layers that ``--layer`` means, from the layers that have axes; None is all with runs.

    Selected layers without runs are named in the log and left out.

    Raises:
        UserError: not a layer of this model, with the choices.
    """
    if spec == "all":
        return None
    have = {unit.layer for unit in store.units(kind)}
    known = store.layers() or sorted(have)
    if not known:
        raise no_axes(store)
    chosen = choose_layers(spec, store.model, known[-1] + 1)
    if spec != "selected":
        return list(chosen)
    lacking = [layer for layer in chosen if layer not in have]
    if lacking:
        log.warning("selected layers without runs are left out: %s", ", ".join(map(str, lacking)))
    return [layer for layer in chosen if layer in have] or list(chosen)


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
