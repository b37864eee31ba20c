"""What a command does with its stages: its share of the units, or with ``--dry_run`` only a count of them.

Imported inside ``main``, since it brings the models' libraries.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from analysis.base import processes
from analysis.cli.flags import loading_options, settings_from, store_from
from analysis.experiments.dry_run import dry_run
from analysis.experiments.machine import Machine
from analysis.experiments.preparation import Preparation
from analysis.experiments.study import Study, draft_study, open_study
from analysis.experiments.units import Stage, run
from analysis.results.store import Store
from configs.settings import Settings

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Stage[Any])


def machine_from(args: argparse.Namespace) -> Machine:
    """Return what the flags of add_run_flags say to compute with."""
    return Machine(args.token_budget, **loading_options(args))


def study_from(args: argparse.Namespace, store: Store, settings: Settings, machine: Machine) -> Study:
    """Return the prepared study; with ``--dry_run``, where nothing is prepared yet, one of its sentences."""
    if args.dry_run and not store.layers():
        return draft_study(store, settings, machine.shape(store.model).n_layers)
    return open_study(store, settings)


def tell(args: argparse.Namespace, stages: Sequence[Stage[Any]], model: str, machine: Machine) -> None:
    """Print the work that is left for ``model``; of several processes the main one does."""
    text = dry_run(stages, model, machine, processes.asked(args.shard), args.overwrite)
    if processes.is_main():
        print(text)


def prepare_first(args: argparse.Namespace, preparation: Preparation) -> None:
    """Do the whole preparation: every shard needs it, one process does it, and the others wait for that."""
    with processes.main_first():
        first = processes.current(args.shard).index == 1  # the others find it done anew
        run(preparation, overwrite=args.overwrite and first)


def do_share(args: argparse.Namespace, stages: Sequence[Stage[Any]], folder: Path) -> None:
    """Do what is left of this process's share of the stages, one after the other; they write to a folder."""
    shard = processes.current(args.shard)
    for stage in stages:
        done, kept = run(stage, shard, args.overwrite)
        log.info("%s: %d new, %d kept, in %s", stage.name, done, kept, folder)


def shows(args: argparse.Namespace) -> bool:
    """Wait for the other processes of this launch; return whether this one shows the results.

    A shard leaves that to the command without ``--shard``, and the log says so.
    """
    processes.wait_for_all()
    if not processes.is_main():
        return False
    if (shard := processes.asked(args.shard)).count > 1:
        log.info("shard %s is done; when all are, figures: the same command without --shard", shard)
        return False
    return True


def run_study(
    args: argparse.Namespace, stage_of: Callable[[Study, Machine], S], present: Callable[[S], str]
) -> int:
    """Run a study of one stage on a prepared model and dataset: count, or do and show.

    Args:
        args: of the command.
        stage_of: returns the stage.
        present: writes figures and tables from what is on disk, and returns what is printed.

    Returns:
        The exit code.
    """
    store, machine = store_from(args, args.model), machine_from(args)
    stage = stage_of(open_study(store, settings_from(args, args.model)), machine)
    if args.dry_run:
        tell(args, [stage], args.model, machine)
        return 0
    do_share(args, [stage], store.folder)
    if shows(args):
        print(present(stage))
    return 0
