"""Figures of the report experiments: can the model predict the scores of its own activations?

Reads   results/<model>/<dataset>/pred_*.pkl and axes_layer*.pkl; never loads a model
Writes  results/<model>/<dataset>/figures/report_*.png and summary_pred.csv
Try     python plot_pred.py --model smollm2 --dataset commonsense --format png pdf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli import base_parser, script, setup_logging
from analysis.plotting import add_plot_flags, interval, resolve_layers, show_p, text_table, write_csv
from analysis.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.figures import Curve
    from analysis.tables import ReportData, ReportSeries

Row = dict[str, Any]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_plot_flags(parser)
    return parser.parse_args(argv)


def make_figures(
    store: Store,
    *,
    axes: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    data: ReportData | None = None,
    rows: Sequence[Row] | None = None,
) -> list[Path]:
    """Draw every figure of the report experiments and write summary_pred.csv next to them.

    Args, Returns, Raises: as for ``plot_imit.make_figures``, with load_report and report_table.
    """
    from analysis import effects, figures, tables

    data = data or tables.load_report(store, axes, layers)
    rows = rows or effects.report_table(data)
    folder = out or store.figures
    write_csv(rows, folder / "summary_pred.csv")
    paths = []
    for name, figure in _figures(store, data):
        paths += figures.write_figure(figure, folder, name, formats)
    return paths


def _figures(store: Store, data: ReportData) -> Iterator[tuple[str, Figure]]:
    from analysis import figures_report

    where = f"{store.model}, {store.dataset}"
    layers = sorted({series.layer for series in data.series})
    panels = {layer: _curves([s for s in data.series if s.layer == layer]) for layer in layers}
    for layer, curves in panels.items():
        title = f"Reporting the model's own scores ({where}, layer {layer})"
        note = _note([s for s in data.series if s.layer == layer])
        yield f"report_layer{layer}", figures_report.plot_report(*curves, title, note)
    if len(layers) > 1:
        title = f"Reporting the model's own scores, by layer ({where})"
        yield "report_by_layer", figures_report.plot_report_layers(panels, title, _note(data.series))


def _curves(series: Sequence[ReportSeries]) -> tuple[dict[str, Curve], dict[str, Curve], Curve]:
    """Return accuracy and cross-entropy by axis, and the majority baseline as the mean over axes."""
    import numpy as np

    from analysis.effects import report_curves
    from analysis.figures import Curve

    found = {s.axis: report_curves(s) for s in series}
    accuracy, entropy = (
        {axis: Curve(curves["shown"], *curves[name]) for axis, curves in found.items()}
        for name in ("accuracy", "cross_entropy")
    )
    longest = max(found.values(), key=lambda curves: len(curves["shown"]))
    same = [curves["majority"] for curves in found.values() if len(curves["shown"]) == len(longest["shown"])]
    return accuracy, entropy, Curve(longest["shown"], *np.mean(same, axis=0))


def _note(series: Sequence[ReportSeries]) -> str:
    from analysis.figures import count

    single = all(len(s.exps) < 2 for s in series)
    bands = "One experiment has no interval" if single else "Bands: 95 % bootstrap interval over experiments"
    return (
        f"{count((len(s.exps) for s in series), 'experiment')}, each with both label assignments. Points are "
        f"means over ranges of positions (0, 1, 2, 3, 4-5, 6-7, 8-10, ...).\n{bands}. Chance: 0.5 and ln 2. "
        "Majority so far: guessing the label shown more often."
    )


def summary(rows: Sequence[Row]) -> str:
    """Return the accuracies over the later half of the examples as a table in text."""
    header = (
        "axis", "layer", "shown", "accuracy [95 % CI]", "majority", "gain [95 % CI]", "p", "q",
        "cross-entropy [95 % CI]", "experiments",
    )  # fmt: skip
    lines = [
        (
            row["axis"], row["layer"], f"{row['n_from']}-{row['n_to']}", interval(row, "accuracy"),
            row["majority"], interval(row, "gain"), show_p(row["p"]), show_p(row["q"]),
            interval(row, "cross_entropy"), row["experiments"],
        )
        for row in rows
    ]  # fmt: skip
    return text_table(header, lines)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    from analysis import effects, tables

    store = Store(args.results, args.model, args.dataset)
    data = tables.load_report(store, args.axes, resolve_layers(store, args.layer, "pred"))
    rows = effects.report_table(data)
    paths = make_figures(store, formats=args.format, out=args.out, data=data, rows=rows)
    print(summary(rows))
    for path in [*paths, (args.out or store.figures) / "summary_pred.csv"]:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
