"""Figures of the report experiments: can the model predict the scores of its own activations?

Reads   results/<model>/<dataset>/pred_*.pkl; never loads a model
Writes  results/<model>/<dataset>/figures/: report_*.png, summary_pred.csv (accuracies of the runs that were
        asked for); adds to summary.csv (every plotted number) and index.html (every figure)
Try     python plot_pred.py --model smollm2 --dataset commonsense --all --format png pdf
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

if TYPE_CHECKING:
    from analysis.pages.figures_folder import Written
    from analysis.tables.read import ReportData
    from analysis.tables.rows import Row

KINDS = kinds.of_stage(kinds.REPORT)
MAIN = kinds.main_of(kinds.REPORT)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_plot_flags(parser, {name: kind.what for name, kind in KINDS.items()}, MAIN)
    return parser.parse_args(argv)


def make_figures(
    store: Store,
    *,
    chosen: Collection[str] = MAIN,
    axes: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    models: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    data: ReportData | None = None,
    rows: Sequence[Row] | None = None,
) -> list[Written]:
    """Draw figures of the report experiments, and write their tables and the index page next to them.

    Args, Raises: as for ``plot_imit.make_figures``, with load_report and report_table.
    """
    from analysis.pages.figures_folder import add_figures
    from analysis.pages.report import ReportView
    from analysis.tables import read as tables_read
    from analysis.tables import report as report_tables

    data = data or tables_read.load_report(store, axes, layers)
    rows = rows or report_tables.report_table(data)
    folder = out or store.figures
    write_csv(rows, folder / "summary_pred.csv")
    about = {"stage": kinds.REPORT, "model": store.model, "dataset": store.dataset}
    drawn = kinds.draw(kinds.REPORT, chosen, ReportView(store, data, rows, axes, models))
    return add_figures(folder, drawn, formats, about, data.meta)


def summary(rows: Sequence[Row]) -> str:
    """Return the accuracies over the later half of the examples as a table in text."""
    header = (
        "axis", "layer", "levels", "shown", "accuracy [95 % CI]", "majority", "gain [95 % CI]", "p", "q",
        "ideal observer", "input only", "words", "experiments",
    )  # fmt: skip
    observers = ("accuracy_own", "accuracy_embedding", "accuracy_words")
    lines = [
        (
            row["axis"], row["layer"], row["levels"], f"{row['n_from']}-{row['n_to']}",
            interval(row, "accuracy"), row["majority"], interval(row, "gain"), show_p(row["p"]),
            show_p(row["q"]), *(row.get(name, float("nan")) for name in observers), row["experiments"],
        )
        for row in rows
    ]  # fmt: skip
    return text_table(header, lines)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    from analysis.tables import read as tables_read
    from analysis.tables import report as report_tables

    store = Store(args.results, args.model, args.dataset)
    data = tables_read.load_report(store, args.axes, resolve_layers(store, args.layer, schema.REPORT))
    rows = report_tables.report_table(data)
    written = make_figures(
        store, chosen=chosen_kinds(args, KINDS, MAIN), axes=args.axes, models=args.models,
        formats=args.format, out=args.out, data=data, rows=rows,
    )  # fmt: skip
    print(summary(rows))
    for path in [path for figure in written for path in figure.paths]:
        print(path)
    folder = args.out or store.figures
    for name in ("summary_pred.csv", "summary.csv", "index.html"):
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
