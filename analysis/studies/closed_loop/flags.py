"""The flags of closed-loop neurofeedback and the sizes that they stand for; nothing heavy is imported."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from analysis.base.errors import UserError
from analysis.cli.flags import natural

ARMS = ("true", "flipped", "random", "yoked")
MODES = ("write", "repeat")


@dataclass(frozen=True)
class Loop:
    """The sizes of a closed loop."""

    turns: int
    """Sentences of one conversation."""
    arms: tuple[str, ...] = ARMS
    """What is shown as score:

    ``true``      the score of the sentence
    ``flipped``   the same, low and high exchanged (with examples: against what the examples say)
    ``yoked``     what the same conversation of the next experiment's true arm was shown
    ``random``    all labels of that experiment's true arm in random order: the same rate, no relation
    """
    modes: tuple[str, ...] = MODES
    """``write``: a new sentence each turn; ``repeat``: one given sentence, again and again."""
    examples: int = 8
    """Given sentences with their scores before the first turn."""

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise UserError(f"--loop {self.turns}: a loop needs 2 turns or more")
        if "true" not in self.arms or len(set(self.arms)) < len(self.arms):
            raise UserError(
                f"--loop_arms {' '.join(self.arms)}: name each arm once, and `true`, which the others are "
                f"compared with (there are: {', '.join(ARMS)})"
            )


def add_loop_flags(parser: argparse.ArgumentParser) -> None:
    """Add --loop and its sizes."""
    parser.add_argument(
        "--loop", type=natural, metavar="K",
        help="only the closed loop, K turns: the model speaks, sees its score, and speaks again",
    )  # fmt: skip
    parser.add_argument(
        "--loop_arms", nargs="+", choices=ARMS, default=list(ARMS),
        help="what is shown as score in the closed loop (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--loop_mode", choices=(*MODES, "both"), default="both",
        help="write a new sentence each turn, repeat a given one, or both (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--loop_examples", type=natural, default=Loop.examples,
        help="scored sentences before the first turn; with 0, labels get their meaning from the feedback "
        "alone, and arm flipped mirrors arm true (default: %(default)s)",
    )  # fmt: skip


def loop_from(args: argparse.Namespace) -> Loop | None:
    """Return the sizes that the flags stand for, None without --loop; UserError for what is no loop."""
    if args.loop is None:
        return None
    modes = MODES if args.loop_mode == "both" else (args.loop_mode,)
    return Loop(args.loop, tuple(args.loop_arms), modes, args.loop_examples)
