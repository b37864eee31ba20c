"""Figures of the control experiments: can the model move its own activations?

Reads   results/<model>/<dataset>/imit_*.pkl, axes_layer*.pkl and split.pkl; never loads a model
Writes  results/<model>/<dataset>/figures/control_*.png, axes_overview.png and summary_imit.csv
Try     python plot_imit.py --model smollm2 --dataset commonsense --format png pdf
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

    from analysis.figures_control import Panels
    from analysis.tables import ControlData, ControlSeries

Row = dict[str, Any]
Named = Iterator[tuple[str, "Figure"]]
BARS = "Bars: 95 % bootstrap interval over experiments."


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_plot_flags(parser)
    parser.add_argument(
        "--mode", choices=("both", "active", "inactive"), default="both",
        help="active: the model writes; inactive: it reads a given sentence (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(argv)


def make_figures(
    store: Store,
    *,
    axes: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    mode: str = "both",
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    data: ControlData | None = None,
    rows: Sequence[Row] | None = None,
) -> list[Path]:
    """Draw every figure of the control experiments and write summary_imit.csv next to them.

    Args:
        axes, layers, mode: narrow the choice; None and ``both``: all that has runs.
        out: folder, default ``store.figures``.
        data, rows: what load_control and control_table returned, if they are at hand.

    Returns:
        The figures' paths.

    Raises:
        UserError: nothing to draw; the message holds the command that makes it.
    """
    from analysis import effects, figures, tables

    data = data or tables.load_control(store, axes, layers)
    data = data if mode == "both" else tables.only_modes(data, [mode])
    rows = rows or effects.control_table(data)
    folder = out or store.figures
    write_csv(rows, folder / "summary_imit.csv")
    paths = []
    for name, figure in _figures(store, data, rows):
        paths += figures.write_figure(figure, folder, name, formats)
    return paths


def _figures(store: Store, data: ControlData, rows: Sequence[Row]) -> Named:
    from analysis.overview import axes_overview

    targeted = sorted({series.layer for series in data.series})
    for layer in targeted:
        here = [series for series in data.series if series.layer == layer]
        yield from _layer_figures(store, data, here, [row for row in rows if row["layer"] == layer])
    if len(targeted) > 1:
        yield "control_by_layer", _by_target(store, data, rows)
    if store.layers():
        yield "axes_overview", axes_overview(store)


def _layer_figures(
    store: Store, data: ControlData, here: Sequence[ControlSeries], rows: Sequence[Row]
) -> Named:
    from analysis import effects, figures_control

    layer, modes = here[0].layer, _modes(here)
    largest = max(int(series.shots[-1]) for series in here)
    where = f"{store.model}, {store.dataset}, layer {layer}"
    title = f"Control against examples in context ({where})"
    yield f"control_layer{layer}", figures_control.plot_control(_panels(rows, modes, "n"), title, _note(rows))

    read = {
        mode: {s.axis: _curve(effects.layer_effects(s, mode), "layer") for s in here if mode in s.modes}
        for mode in modes
    }
    title = f"The same axis read at every layer, N = {largest} ({where} targeted)"
    note = _note(rows).replace("Bars", "Bands")
    yield f"control_readout_layer{layer}", figures_control.plot_readout(read, layer, title, note)

    found = {mode: effects.affected_effects(data, layer, mode) for mode in modes}
    targets, affected, _, _ = found[modes[0]]
    title = f"Effect on the targeted and on other axes, N = {largest} ({where})"
    note = f"{_n_text(rows)} Outlined: the targeted axis itself. Intervals: summary_imit.csv, targeted axis."
    matrices = {mode: part[2] for mode, part in found.items()}
    heatmap = figures_control.plot_heatmap(matrices, targets, affected, title, note)
    yield f"control_heatmap_layer{layer}", heatmap

    cells = {series.axis: _histogram_cells(series) for series in here}
    behind = {s.axis: data.originals[s.axis, layer] for s in here if (s.axis, layer) in data.originals}
    title = f"Scores when a high or a low score was wanted ({where})"
    note = f"{_n_text(rows)} Dashed: means. Scores beyond the axis's ends are counted in the last bins."
    yield (
        f"control_scores_layer{layer}",
        figures_control.plot_score_histograms(cells, behind, title, note),
    )


def _by_target(store: Store, data: ControlData, rows: Sequence[Row]) -> Figure:
    from analysis import figures_control

    last = max(row["n"] for row in rows)
    at_last = [row for row in rows if row["n"] == last]
    title = f"Control against the layer that is targeted, N = {last} ({store.model}, {store.dataset})"
    panels = _panels(at_last, _modes(data.series), "layer")
    return figures_control.plot_effect_by_target(panels, title, _note(at_last))


def _modes(series: Sequence[ControlSeries]) -> list[str]:
    from analysis.tables import MODES

    return [mode for mode in MODES if any(mode in s.modes for s in series)]


def _panels(rows: Sequence[Row], modes: Sequence[str], x: str) -> Panels:
    """Group rows into mode -> axis -> curve over column ``x``."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    return {
        mode: {
            axis: _curve([row for row in rows if row["mode"] == mode and row["axis"] == axis], x)
            for axis in axes
        }
        for mode in modes
    }


def _curve(rows: Sequence[Row], x: str) -> Any:
    import numpy as np

    from analysis.figures import Curve

    rows = sorted(rows, key=lambda row: row[x])
    return Curve(*(np.array([row[key] for row in rows], float) for key in (x, "d", "d_low", "d_high")))


def _histogram_cells(series: ControlSeries) -> dict[tuple[str, int], Any]:
    """Return (mode, N) -> scores when high was wanted, when low was, at the smallest and largest N."""
    ends = sorted({0, len(series.shots) - 1})
    return {
        (mode, int(series.shots[s])): (
            series.target[:, s, m, :, 1].ravel(),
            series.target[:, s, m, :, 0].ravel(),
        )
        for m, mode in enumerate(series.modes)
        for s in ends
    }


def _n_text(rows: Sequence[Row]) -> str:
    from analysis.figures import count

    return (
        f"{count((row['experiments'] for row in rows), 'experiment')}, "
        f"{count((row['trials'] for row in rows), 'trial')} per point."
    )


def _note(rows: Sequence[Row]) -> str:
    single = all(row["experiments"] < 2 for row in rows)
    return f"{_n_text(rows)} {'One experiment has no interval.' if single else BARS}"


def summary(rows: Sequence[Row]) -> str:
    """Return the effects at the largest N as a table in text."""
    last = max(row["n"] for row in rows)
    header = ("axis", "layer", "mode", "N", "d [95 % CI]", "d_z", "p", "q", "experiments", "empty")
    lines = [
        (
            row["axis"], row["layer"], row["mode"], row["n"], interval(row, "d"), row["dz"],
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
    from analysis import effects, tables

    store = Store(args.results, args.model, args.dataset)
    data = tables.load_control(store, args.axes, resolve_layers(store, args.layer, "imit"))
    data = data if args.mode == "both" else tables.only_modes(data, [args.mode])
    rows = effects.control_table(data)
    paths = make_figures(store, formats=args.format, out=args.out, data=data, rows=rows)
    print(summary(rows))
    for path in [*paths, (args.out or store.figures) / "summary_imit.csv"]:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
