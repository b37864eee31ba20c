"""The flags of the steered studies and the sizes that they stand for; nothing heavy is imported."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from analysis.axes.names import LR
from analysis.base.errors import UserError
from analysis.cli.flags import add_run_flags, add_shard_flag, natural, positive


@dataclass(frozen=True)
class CausalSizes:
    """Of a causal report."""

    n_examples: int = 32
    """Examples, half of them with label 1."""
    n_test: int = 4
    """Test sentences, each after the same examples."""
    alpha: float = 4.0
    """Strength of a push, in training deviations along the direction."""
    repeat_sentence: bool = False
    """One sentence is every example and the one test sentence."""

    def __post_init__(self) -> None:
        if self.n_examples < 2 or self.n_examples % 2:
            raise UserError(f"{self.n_examples} examples: give an even number from 2, half get label 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"alpha {self.alpha}: give a number above 0, both signs are pushed")


@dataclass(frozen=True)
class CurveSizes:
    """Of a validation curve."""

    n_examples: int = 32
    """Examples with their true labels."""
    n_test: int = 4
    """Test sentences, each after the same examples."""
    alphas: tuple[float, ...] = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    """(Q,) strengths in training deviations, 0 is no steering."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.alphas, self.alphas[1:], strict=False))
        if (
            len(self.alphas) < 2
            or not all(map(math.isfinite, self.alphas))
            or not rising
            or 0 not in self.alphas
        ):
            raise UserError(f"alphas {list(self.alphas)}: give two or more rising numbers, one of them 0")


def add_causal_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the causal report."""
    _add_study_flags(parser)
    parser.add_argument(
        "--n_examples", type=positive, default=CausalSizes.n_examples,
        help="examples, an even number (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--alpha", type=float, default=CausalSizes.alpha,
        help="push, in training deviations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repeat_sentence", action="store_true",
        help="one sentence is every example and the test sentence: the text differs in labels only",
    )  # fmt: skip


def causal_sizes(args: argparse.Namespace) -> CausalSizes:
    """Return the sizes that the flags stand for."""
    return CausalSizes(args.n_examples, args.n_test, args.alpha, args.repeat_sentence)


def add_curve_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the steering curve."""
    _add_study_flags(parser)
    parser.add_argument(
        "--n_examples", type=natural, default=CurveSizes.n_examples,
        help="examples with true labels (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--alphas", type=float, nargs="+", default=[-4, -3, -2, -1, 0, 1, 2, 3, 4],
        help="pushes in training deviations, rising, with 0 (default: %(default)s)",
    )  # fmt: skip


def curve_sizes(args: argparse.Namespace) -> CurveSizes:
    """Return the sizes that the flags stand for."""
    return CurveSizes(args.n_examples, args.n_test, tuple(args.alphas))


def _add_study_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    add_shard_flag(parser)
    parser.add_argument("--axis", default=LR, help="such as lr, pc1, random0 (default: %(default)s)")
    parser.add_argument("--layer", default="middle", help="middle, selected, all, or such as 7,15")
    parser.add_argument(
        "--n_test", type=positive, default=4, help="test sentences per experiment (default: %(default)s)"
    )
    parser.add_argument(
        "--n_experiments", type=positive, default=24, help="independent samples (default: %(default)s)"
    )
