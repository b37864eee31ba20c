"""The command of this room, from its flags to what it prints."""

from __future__ import annotations

import argparse

from analysis.cli.stages import run_study
from analysis.experiments.machine import Machine
from analysis.experiments.study import Study
from analysis.studies.evasion.flags import plan_of
from analysis.studies.evasion.pages import present
from analysis.studies.evasion.stage import EvasionStage


def evasion(args: argparse.Namespace) -> int:
    """Run the experiments, judge them, print tables and draw."""

    def stage(study: Study, machine: Machine) -> EvasionStage:
        plan = plan_of(args, study.store.model, len(study.layers))
        return EvasionStage(study, plan, args.n_experiments, machine)

    return run_study(args, stage, present)
