"""Stage 1 of 3: hidden states of every sentence, axes of every layer, scores.

Reads   data/<dataset>/sentences.csv
Writes  results/<model>/<dataset>/split.pkl, hidden_layer<l>.pkl, axes_layer<l>.pkl
        What exists is kept; a finished preparation takes seconds.
Try     python main_prep.py --model smollm2 --dataset commonsense --process_hidden_method pcascore
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from analysis.base import processes
from analysis.cli.flags import (
    add_run_flags,
    add_shard_flag,
    base_parser,
    loading_options,
    run_options,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging

log = logging.getLogger("main_prep")


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
    if args.dry_run:
        from analysis.experiments.dry_run import dry_run

        plan = dry_run(
            store, ["preparation"], settings, method=args.process_hidden_method,
            shard=processes.asked(args.shard), **run_options(args),
        )  # fmt: skip
        if processes.is_main():
            print(plan)
        return 0
    if processes.current(args.shard).index > 1:
        log.info("the preparation is one unit of work, done by the first shard: nothing to do here")
        return 0
    from analysis.experiments.preparation import prepare
    from data.load import read_dataset
    from utils import load_model

    read_dataset(args.dataset)  # its mistakes show before a large model is loaded

    lm = load_model(args.model, **loading_options(args))
    prepare(
        lm, args.dataset, settings, store,
        method=args.process_hidden_method, token_budget=args.token_budget, overwrite=args.overwrite,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
