"""Figures of the control experiments: can the model move its own activations?

Reads   results/<model>/<dataset>/imit_*.pkl, axes_layer*.pkl and split.pkl; never loads a model
Writes  results/<model>/<dataset>/figures/: control_*.png, axes_*.png, summary_imit.csv (effects),
        summary.csv (every plotted number) and index.html (every figure)
Try     python plot_imit.py --model smollm2 --dataset commonsense --all --format png pdf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import base_parser
from analysis.cli.plot_flags import add_plot_flags, chosen_kinds, resolve_layers
from analysis.cli.script import script, setup_logging
from analysis.results.store import Store
from analysis.tables.text import interval, show_p, text_table, write_csv
from configs.settings import MODES

if TYPE_CHECKING:
    from analysis.pages.drawn import Drawn, Written
    from analysis.tables.read import ControlData

Row = dict[str, Any]
MAIN = ("effect", "readout", "heatmap", "scores", "layers", "axes")
"""Kinds of figures that are drawn without --figure and --all."""
KINDS = (*MAIN, "density", "accumulation", "precision", "cosine", "models")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_plot_flags(parser, KINDS, MAIN)
    parser.add_argument(
        "--mode", choices=("both", *MODES), default="both",
        help="active: the model writes; inactive: it reads a given sentence (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(argv)


def make_figures(
    store: Store,
    *,
    kinds: Sequence[str] = MAIN,
    axes: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    mode: str = "both",
    models: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    data: ControlData | None = None,
    rows: Sequence[Row] | None = None,
) -> list[Written]:
    """Draw figures of the control experiments, and write their tables and the index page next to them.

    Args:
        kinds: see KINDS.
        axes, layers, mode: narrow the choice; None and ``both``: all that has runs.
        models: other models for the kind ``models``; None: all with runs on the dataset.
        out: folder, default ``store.figures``.
        data, rows: what load_control and control_table returned, if they are at hand.

    Raises:
        UserError: nothing to draw; the message holds the command that makes it.
    """
    from analysis.pages.drawn import write_drawn
    from analysis.pages.index import finish_folder
    from analysis.tables import control as control_tables
    from analysis.tables import read as tables_read

    data = data or tables_read.load_control(store, axes, layers)
    data = data if mode == "both" else tables_read.only_modes(data, [mode])
    rows = rows or control_tables.control_table(data)
    folder = out or store.figures
    write_csv(rows, folder / "summary_imit.csv")
    about = {"stage": "control", "model": store.model, "dataset": store.dataset}
    drawn = _figures(store, data, rows, kinds, axes, models)
    written = write_drawn(drawn, folder, formats, about)
    finish_folder(folder, "control", written, formats, f"{store.model}, {store.dataset}", data.meta)
    return written


def _figures(
    store: Store,
    data: ControlData,
    rows: Sequence[Row],
    kinds: Sequence[str],
    axes: Sequence[str] | None,
    models: Sequence[str] | None,
) -> Iterator[Drawn]:
    from analysis.pages import axes as pages_axes
    from analysis.pages import control as pages_control
    from analysis.pages import models as pages_models

    directions = pages_axes.direction_reader(store)
    for layer, levels in sorted({(s.layer, s.levels) for s in data.series}):
        here = pages_control.LayerFigures(store, data, rows, layer, levels, directions)
        for kind, draw in pages_control.KINDS.items():
            if kind in kinds and (drawn := draw(here)) is not None:
                yield drawn
    if "layers" in kinds:
        yield from pages_control.across_layers(store, data, rows)
    if "axes" in kinds and store.layers():
        yield from pages_axes.axes_figures(store)
    if "models" in kinds:
        stores = pages_models.other_stores(store, models, "imit", axes)
        if len(stores) > 1:
            found = [pages_models.control_results(other, axes) for other in stores]
            yield from pages_models.control_figures(found, store.dataset)


def summary(rows: Sequence[Row]) -> str:
    """Return the effects at the largest N as a table in text."""
    last = max(row["n"] for row in rows)
    header = ("axis", "layer", "levels", "mode", "N", "d [95 % CI]", "d_z", "p", "q", "experiments", "empty")
    lines = [
        (
            row["axis"], row["layer"], row["levels"], row["mode"], row["n"], interval(row, "d"), row["dz"],
            show_p(row["p"]), show_p(row["q"]), row["experiments"], row["empty"],
        )
        for row in rows
        if row["n"] == last
    ]  # fmt: skip
    return text_table(header, lines)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    from analysis.tables import control as control_tables
    from analysis.tables import read as tables_read

    store = Store(args.results, args.model, args.dataset)
    data = tables_read.load_control(store, args.axes, resolve_layers(store, args.layer, "imit"))
    data = data if args.mode == "both" else tables_read.only_modes(data, [args.mode])
    rows = control_tables.control_table(data)
    written = make_figures(
        store, kinds=chosen_kinds(args, KINDS, MAIN), axes=args.axes, models=args.models,
        formats=args.format, out=args.out, data=data, rows=rows,
    )  # fmt: skip
    print(summary(rows))
    for path in [path for figure in written for path in figure.paths]:
        print(path)
    folder = args.out or store.figures
    for name in ("summary_imit.csv", "summary.csv", "index.html"):
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
