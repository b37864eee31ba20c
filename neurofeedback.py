"""The whole study in one command: prepare, report, control, figures, report page.

Reads   data/<dataset>/sentences.csv
Writes  results/<model>/<dataset>/: all caches, figures/index.html with every figure, report.html
        What exists is kept: a killed study goes on where it stopped, a finished one takes seconds.
Try     python neurofeedback.py                       the embedded model, sized for two CPU cores
        python neurofeedback.py --model llama3_8b     the paper's sizes, on a GPU
        python neurofeedback.py --config sweep.yml --dry_run
        python neurofeedback.py --loop 6 --axes lr    only the closed loop: the model sees its scores
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.base import processes
from analysis.cli.flags import (
    add_levels_flag,
    add_run_flags,
    add_shard_flag,
    base_parser,
    positive,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging
from analysis.results.store import Store, provenance
from analysis.studies.closed_loop.flags import Loop, add_loop_flags, loop_from
from configs.settings import Settings, as_plain

if TYPE_CHECKING:
    from analysis.experiments.preparation import Preparation

log = logging.getLogger("neurofeedback")

DEFAULT_MODEL, DEFAULT_DATASET = "smollm2", "commonsense"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_run_flags(parser)
    add_shard_flag(parser)
    parser.add_argument(
        "--axes", nargs="+", default=argparse.SUPPRESS, help="axes of the feedback (default: of the config)"
    )
    parser.add_argument(
        "--layer", default=argparse.SUPPRESS,
        help="all, middle, selected, or numbers such as 7,15 (default: of the config)",
    )  # fmt: skip
    parser.add_argument(
        "--n_experiments", type=positive, default=argparse.SUPPRESS, help="default: of the config"
    )
    add_levels_flag(parser)
    add_loop_flags(parser)
    parser.set_defaults(model=None, dataset=None)  # models and datasets of the config may take their place
    return parser.parse_args(argv)


def studies(args: argparse.Namespace) -> list[tuple[Settings, Store]]:
    """Return the settings and the store of every model and dataset, flags before the config."""
    first = settings_from(args, args.model or DEFAULT_MODEL)
    models = [args.model] if args.model else first.models or (DEFAULT_MODEL,)
    datasets = [args.dataset] if args.dataset else first.datasets or (DEFAULT_DATASET,)
    found = []
    for model in models:
        settings = settings_from(args, model)
        for dataset in datasets:
            store = store_from(argparse.Namespace(**{**vars(args), "dataset": dataset}), model)
            found.append((settings, store))
    return found


def prepare_first(args: argparse.Namespace, preparation: Preparation) -> None:
    """Do the preparation: all shards need it, one does it, and the others wait for that."""
    from analysis.experiments.units import run

    with processes.main_first():
        first = processes.current(args.shard).index == 1  # the others find it done anew
        run(preparation, overwrite=args.overwrite and first)


def run_study(args: argparse.Namespace, settings: Settings, store: Store) -> None:
    """Run preparation, report and control of one model on one dataset, then show them."""
    from analysis.cli.stages import do_share, machine_from, shows, tell
    from analysis.experiments.control import ControlStage
    from analysis.experiments.preparation import Preparation
    from analysis.experiments.report import ReportStage
    from analysis.experiments.study import draft_study, open_study

    machine = machine_from(args)
    preparation = Preparation([store], settings, machine)
    if args.dry_run:
        study = draft_study(store, settings, machine.shape(store.model).n_layers)
    else:
        prepare_first(args, preparation)
        study = open_study(store, settings)
    grid = settings.layer, range(settings.n_experiments), machine
    report = ReportStage(study, settings.report_axes, *grid)
    control = ControlStage(study, settings.axes, *grid)
    if args.dry_run:
        tell(args, [preparation, report, control], store.model, machine)
        return
    do_share(args, [report, control], store.folder)
    if shows(args):
        log.info("figures and report page")
        figures, page, text = present(settings, store)
        print(text)
        print(f"\n{figures} figures: {store.figures / 'index.html'}\nreport page: {page}")


def run_closed_loop(args: argparse.Namespace, settings: Settings, store: Store, loop: Loop) -> None:
    """Run the closed loop alone, after the preparation that it needs, then show it."""
    from analysis.cli.stages import do_share, machine_from, shows, tell
    from analysis.experiments.preparation import Preparation
    from analysis.experiments.study import draft_study, open_study
    from analysis.studies.closed_loop.pages import present
    from analysis.studies.closed_loop.stage import LoopStage

    machine = machine_from(args)
    preparation = Preparation([store], settings, machine)
    if args.dry_run:
        draft = draft_study(store, settings, machine.shape(store.model).n_layers)
        tell(args, [preparation, LoopStage(draft, loop, machine)], store.model, machine)
        return
    prepare_first(args, preparation)
    stage = LoopStage(open_study(store, settings), loop, machine)
    do_share(args, [stage], store.folder)
    if shows(args):
        print(f"{present(stage)}\n\nfigures: {store.figures / 'loop_*.png'}")


def present(settings: Settings, store: Store) -> tuple[int, Path, str]:
    """Write every figure and the page from what is on disk; return their number, the page, tables as text."""
    import plot_imit
    import plot_pred
    from analysis.pages import report_page
    from analysis.tables import arms
    from analysis.tables import control as control_tables
    from analysis.tables import read as tables_read
    from analysis.tables import report as report_tables

    control, report = tables_read.load_control(store), tables_read.load_report(store)
    rows, report_rows = control_tables.control_table(control), report_tables.report_table(report)
    reported = plot_pred.make_figures(store, chosen=plot_pred.KINDS, data=report, rows=report_rows)
    controlled = plot_imit.make_figures(store, chosen=plot_imit.KINDS, data=control, rows=rows)
    shown = [one for one in reported if one.kind in plot_pred.MAIN]
    shown += [one for one in controlled if one.kind in plot_imit.MAIN]
    examples = report_page.collect_examples(control, limit=6)
    page = report_page.write_report(
        store, as_plain(settings), shown, rows, report_rows, examples, provenance(), arms.arms_table(control)
    )
    text = f"Report\n{plot_pred.summary(report_rows)}\n\nControl\n{plot_imit.summary(rows)}"
    if compared := arms.describe(control):
        text += f"\n\n{compared}"
    return len(reported) + len(controlled), page, text


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; see the module's docstring."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    start = time.perf_counter()
    loop = loop_from(args)
    for settings, store in studies(args):
        log.info("%s on %s", store.model, store.dataset)
        if loop is None:
            run_study(args, settings, store)
        else:
            run_closed_loop(args, settings, store, loop)
    log.info("done in %.0f s", time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
