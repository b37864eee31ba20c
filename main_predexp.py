"""Stage 3 of 3: can the model report its own activations along an axis?

Reads   results/<config_s>/<dataset>/axes_layer<l>.pkl   (from main_prep.py)
Writes  results/<config_e>/<dataset>/pred_<axis>_layer<l>_exp<e>.pkl, one per experiment
        (results/<config_e>_from_<config_s>/... when one model reads the scores of another)
        What exists is kept, so a killed run is resumed by the same command.
Try     python main_predexp.py --config_s smollm2 --dataset commonsense --pc 1 --pred_exp_end -1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analysis.cli.flags import (
    add_axis_flags,
    add_experiment_flags,
    add_run_flags,
    add_shard_flag,
    base_parser,
    chosen_axes,
    experiment_range,
    positive,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging
from analysis.results.schema import REPORT


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__, model_flag=False)
    parser.add_argument(
        "--config_s", "--model", default="smollm2",
        help="model whose activations give the scores (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--config_e", help="model that reads and reports them (default: the same)")
    add_run_flags(parser)
    add_shard_flag(parser)
    add_axis_flags(parser)
    add_experiment_flags(parser, REPORT)
    parser.add_argument(
        "--n_train", dest="report_examples", type=positive, default=argparse.SUPPRESS,
        help="examples in the conversation (default: report_examples of the config)",
    )  # fmt: skip
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run report experiments; see the module's docstring."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    settings = settings_from(args, args.config_s)
    exps = experiment_range(args.pred_exp_start, args.pred_exp_end, settings)

    source = store_from(args, args.config_s)

    from analysis.cli.stages import do_share, machine_from, study_from, tell
    from analysis.experiments.report import ReportStage

    machine = machine_from(args)
    study = study_from(args, source, settings, machine)
    grid = chosen_axes(args), settings.layer, exps
    stage = ReportStage(study, *grid, machine, reader=args.config_e)
    if args.dry_run:
        tell(args, [stage], stage.model, machine)
    else:
        do_share(args, [stage], stage.store.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
