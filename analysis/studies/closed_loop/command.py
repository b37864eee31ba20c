"""The command of this room: ``neurofeedback.py --loop K``, which prepares what it needs."""

from __future__ import annotations

import argparse

from analysis.cli.stages import do_share, machine_from, prepare_first, shows, tell
from analysis.experiments.preparation import Preparation
from analysis.experiments.study import draft_study, open_study
from analysis.results.store import Store
from analysis.studies.closed_loop.flags import Loop
from analysis.studies.closed_loop.pages import present
from analysis.studies.closed_loop.stage import LoopStage
from configs.settings import Settings


def closed_loop(args: argparse.Namespace, settings: Settings, store: Store, loop: Loop) -> None:
    """Run the closed loop of one model on one dataset, and show it."""
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
