"""The two commands of this room, from their flags to what they print."""

from __future__ import annotations

import argparse

from analysis.cli.stages import run_study
from analysis.experiments.machine import Machine
from analysis.experiments.study import Study
from analysis.studies.causal.flags import causal_sizes, curve_sizes
from analysis.studies.causal.pages import present_curve, present_report
from analysis.studies.causal.stage import CausalStage, CurveStage


def causal_report(args: argparse.Namespace) -> int:
    """Run and show the causal report."""
    sizes = causal_sizes(args)

    def stage(study: Study, machine: Machine) -> CausalStage:
        return CausalStage(study, args.axis, study.settings.layer, args.n_experiments, sizes, machine)

    return run_study(args, stage, present_report)


def steering_curve(args: argparse.Namespace) -> int:
    """Run and show the steering curve."""
    sizes = curve_sizes(args)

    def stage(study: Study, machine: Machine) -> CurveStage:
        return CurveStage(study, args.axis, study.settings.layer, args.n_experiments, sizes, machine)

    return run_study(args, stage, present_curve)
