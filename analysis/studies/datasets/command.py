"""The command of this room, from its flags to what it prints."""

from __future__ import annotations

import argparse

from analysis.cli.flags import settings_from
from analysis.cli.stages import do_share, machine_from, shows, tell
from analysis.experiments.preparation import Preparation
from analysis.results.store import Store
from analysis.studies.datasets.flags import chosen_keys
from analysis.studies.datasets.pages import show


def compare_datasets(args: argparse.Namespace) -> int:
    """Prepare every dataset and compare; a dataset is a unit of work."""
    settings, root = settings_from(args, args.model), args.results / "compare"
    stores = [Store(root, args.model, key) for key in chosen_keys(args)]
    machine = machine_from(args)
    stage = Preparation(stores, settings, machine)
    if args.dry_run:
        tell(args, [stage], args.model, machine)
        return 0
    do_share(args, [stage], root)
    if shows(args):
        print(show(stage))
    return 0
