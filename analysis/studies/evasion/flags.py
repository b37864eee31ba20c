"""The flags of the evasion study and the sizes that they stand for; nothing heavy is imported."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from analysis.axes.names import LR
from analysis.base.errors import UserError
from analysis.cli.flags import add_run_flags, add_shard_flag, positive
from configs.layers import choose_layers


@dataclass(frozen=True)
class Plan:
    """What is asked of the model; part of the identity of every file."""

    axis: str
    layer: int
    layers: list[int]
    """Whose states are kept: those of the ensemble, and ``layer``."""
    n_examples: int
    n_test: int
    n_written: int


def add_evasion_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the study, those of scripts that run a model included."""
    add_run_flags(parser)
    add_shard_flag(parser)
    parser.add_argument("--axis", default=LR, help="axis of the feedback (default: %(default)s)")
    parser.add_argument("--layer", default="middle", help="layer of the feedback (default: %(default)s)")
    parser.add_argument(
        "--layers", default="all",
        help="layers of the ensemble probes, with that of the feedback: all, selected, or such as 7,15 "
        "(default: %(default)s)",
    )  # fmt: skip
    sizes = {
        "n_examples": (32, "examples in context"),
        "n_test": (24, "test sentences of an experiment, half of them of each class"),
        "n_written": (4, "sentences that the model writes for each request and label assignment"),
        "n_experiments": (6, "experiments"),
    }
    for name, (size, text) in sizes.items():
        parser.add_argument(f"--{name}", type=positive, default=size, help=f"{text} (default: %(default)s)")


def plan_of(args: argparse.Namespace, model: str, n_layers: int) -> Plan:
    """Return what the flags ask of a model with so many layers; more than one ``--layer`` is an error."""
    chosen = choose_layers(args.layer, model, n_layers)
    if len(chosen) > 1:
        raise UserError(f"--layer {args.layer}: give one layer of feedback, such as middle or {chosen[0]}")
    layers = sorted({*choose_layers(args.layers, model, n_layers), *chosen})
    return Plan(args.axis, chosen[0], layers, args.n_examples, args.n_test, args.n_written)
