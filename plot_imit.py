"""Figures of the control experiments: can the model move its own activations?

Reads   results/<model>/<dataset>/imit_*.pkl, axes_layer*.pkl and split.pkl; never loads a model
Writes  results/<model>/<dataset>/figures/: control_*.png, axes_*.png, summary_imit.csv (effects of the runs
        that were asked for), summary_arms.csv and summary_text.csv (arms; what a text carries); adds to
        summary.csv (every plotted number) and index.html (every figure)
Try     python plot_imit.py --model smollm2 --dataset commonsense --all --format png pdf
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.flags import base_parser
from analysis.cli.plot_flags import add_plot_flags, chosen_kinds, resolve_layers
from analysis.cli.script import script, setup_logging
from analysis.pages import kinds
from analysis.results import schema
from analysis.results.store import Store
from analysis.tables.text import interval, show_p, text_table, write_csv
from configs.settings import MODES

if TYPE_CHECKING:
    from analysis.pages.figures_folder import Written
    from analysis.tables.read import ControlData
    from analysis.tables.rows import Row

KINDS = kinds.of_stage(kinds.CONTROL)
MAIN = kinds.main_of(kinds.CONTROL)
BOTH = "both"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_plot_flags(parser, {name: kind.what for name, kind in KINDS.items()}, MAIN)
    parser.add_argument(
        "--mode", choices=(BOTH, *MODES), default=BOTH,
        help="active: the model writes; inactive: it reads a given sentence (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(argv)


def make_figures(
    store: Store,
    *,
    chosen: Collection[str] = MAIN,
    axes: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    mode: str = BOTH,
    models: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    data: ControlData | None = None,
    rows: Sequence[Row] | None = None,
) -> list[Written]:
    """Draw figures of the control experiments, and write their tables and the index page next to them.

    Args:
        chosen: kinds of figures, see KINDS.
        axes, layers, mode: narrow the choice; None and ``both``: all that has runs.
        models: other models for the kind ``models``; None: all with runs on the dataset.
        out: folder, default ``store.figures``.
        data, rows: what load_control and control_table returned, if they are at hand.

    Raises:
        UserError: nothing to draw; the message holds the command that makes it.
    """
    from analysis.pages.control import ControlView
    from analysis.pages.figures_folder import add_figures
    from analysis.tables import arms as arms_tables
    from analysis.tables import control as control_tables
    from analysis.tables import read as tables_read

    data = data or tables_read.load_control(store, axes, layers)
    data = data if mode == BOTH else tables_read.only_modes(data, [mode])
    rows = rows or control_tables.control_table(data)
    folder = out or store.figures
    write_csv(rows, folder / "summary_imit.csv")
    if arms_tables.compared(data):
        write_csv(arms_tables.arms_table(data), folder / "summary_arms.csv")
        write_csv(arms_tables.text_table_rows(data), folder / "summary_text.csv")
    about = {"stage": kinds.CONTROL, "model": store.model, "dataset": store.dataset}
    drawn = kinds.draw(kinds.CONTROL, chosen, ControlView(store, data, rows, axes, models))
    return add_figures(folder, drawn, formats, about, data.meta)


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
    from analysis.tables import arms as arms_tables
    from analysis.tables import control as control_tables
    from analysis.tables import read as tables_read

    store = Store(args.results, args.model, args.dataset)
    data = tables_read.load_control(store, args.axes, resolve_layers(store, args.layer, schema.CONTROL))
    data = data if args.mode == BOTH else tables_read.only_modes(data, [args.mode])
    rows = control_tables.control_table(data)
    written = make_figures(
        store, chosen=chosen_kinds(args, KINDS, MAIN), axes=args.axes, models=args.models,
        formats=args.format, out=args.out, data=data, rows=rows,
    )  # fmt: skip
    print(summary(rows))
    if text := arms_tables.describe(data):
        print(f"\n{text}")
    for path in [path for figure in written for path in figure.paths]:
        print(path)
    folder = args.out or store.figures
    for name in ("summary_imit.csv", "summary.csv", "index.html"):
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
