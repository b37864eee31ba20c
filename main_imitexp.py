"""Stage 2 of 3: can the model move its own activations along an axis?

Reads   results/<model>/<dataset>/axes_layer<l>.pkl      (from main_prep.py)
Writes  results/<model>/<dataset>/imit_<axis>_layer<l>_exp<e>.pkl, one per experiment
        What exists is kept, so a killed run is resumed by the same command.
Try     python main_imitexp.py --model smollm2 --dataset commonsense --pc 1 --imit_exp_end -1
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
    natural,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging
from analysis.results.schema import CONTROL
from configs.settings import ARMS


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_run_flags(parser)
    add_shard_flag(parser)
    add_axis_flags(parser)
    add_experiment_flags(parser, CONTROL)
    parser.add_argument(
        "--n_train", dest="shots", type=natural, nargs="+", default=argparse.SUPPRESS,
        help="numbers of examples in context, rising (default: shots of the config)",
    )  # fmt: skip
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=argparse.SUPPRESS,
        help="true scores, the same permuted (sham), the axis added by steering (pushed) (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--push",
        type=float,
        default=argparse.SUPPRESS,
        help="strength of the pushed arm in standard deviations of the scores (default: 1)",
    )
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run control experiments; see the module's docstring."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    settings = settings_from(args, args.model)
    exps = experiment_range(args.imit_exp_start, args.imit_exp_end, settings)

    store = store_from(args, args.model)

    from analysis.cli.stages import do_share, machine_from, study_from, tell
    from analysis.experiments.control import ControlStage

    machine = machine_from(args)
    study = study_from(args, store, settings, machine)
    stage = ControlStage(study, chosen_axes(args), settings.layer, exps, machine)
    if args.dry_run:
        tell(args, [stage], args.model, machine)
    else:
        do_share(args, [stage], store.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
