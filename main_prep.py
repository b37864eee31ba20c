"""Stage 1 of 3: hidden states of every sentence, axes of every layer, scores.

Reads   data/<dataset>/sentences.csv
Writes  results/<model>/<dataset>/split.pkl, hidden_layer<l>.pkl, axes_layer<l>.pkl
        What exists is kept; a finished preparation takes seconds.
Try     python main_prep.py --model smollm2 --dataset commonsense --process_hidden_method pcascore
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cli.flags import (
    add_run_flags,
    add_shard_flag,
    base_parser,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the preparation; see the module's docstring."""
    parser = base_parser(__doc__)
    add_run_flags(parser)
    add_shard_flag(parser)
    parser.add_argument(
        "--process_hidden_method", choices=("pcascore", "mean", "last", "each"), default="pcascore",
        help="pcascore: sentence means, axes and scores; mean, last, each: hidden states only, over the "
        "sentence, its last token, or every token (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    setup_logging(args.log_level)
    settings = settings_from(args, args.model)

    store = store_from(args, args.model)

    from analysis.cli.stages import do_share, machine_from, tell
    from analysis.experiments.preparation import Preparation

    machine = machine_from(args)
    stage = Preparation([store], settings, machine, args.process_hidden_method)
    if args.dry_run:
        tell(args, [stage], args.model, machine)
    else:
        do_share(args, [stage], store.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
