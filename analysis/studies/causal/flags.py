"""What the studies share that steer a model: one study per layer, the model loaded when it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from analysis.base.errors import UserError
from analysis.cli.flags import add_run_flags, loading_options, positive, settings_from, store_from
from analysis.cli.script import setup_logging

if TYPE_CHECKING:
    from analysis.engine.prefix_tree import PrefixTree
    from analysis.experiments.study import Study
    from utils import LoadedModel

Load = Callable[[], "tuple[LoadedModel, PrefixTree]"]
"""Returns the model and its engine; loads them at the first call."""


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every steered study, those of scripts that run a model included."""
    add_run_flags(parser)
    parser.add_argument("--axis", default="lr", help="such as lr, pc1, random0 (default: %(default)s)")
    parser.add_argument("--layer", default="middle", help="middle, selected, all, or such as 7,15")
    parser.add_argument(
        "--n_test", type=positive, default=4, help="test sentences per experiment (default: %(default)s)"
    )
    parser.add_argument(
        "--n_experiments", type=positive, default=24, help="independent samples (default: %(default)s)"
    )


def run_layers(args: argparse.Namespace, run: Callable[[argparse.Namespace, Study, int, Load], None]) -> int:
    """Call ``run`` for every layer that ``--layer`` names; see add_run_flags for ``args``."""
    setup_logging(args.log_level)
    if args.dry_run:
        raise UserError("this study has no --dry_run: give a small --n_experiments instead")
    settings = settings_from(args, args.model)

    from analysis.engine.prefix_tree import PrefixTree
    from analysis.experiments.study import open_study
    from configs.layers import choose_layers
    from utils import load_model

    study = open_study(store_from(args, args.model), settings)

    @cache
    def load() -> tuple[LoadedModel, PrefixTree]:
        lm = load_model(args.model, **loading_options(args))
        study.check_model(lm)
        return lm, PrefixTree(lm.model, lm.tokenizer, args.token_budget)

    for layer in choose_layers(settings.layer, args.model, len(study.layers)):
        run(args, study, layer, load)
    return 0
