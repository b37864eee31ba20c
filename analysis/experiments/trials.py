"""Which sentences an experiment shows, in which order, with which labels and requests.

Experiment e draws one permutation of the trial pool with its own generator from (seed, e). The examples for
N = 0, 2, 4, ... are nested: always the first N of that order; the sentence after them is the test sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.base.errors import UserError
from analysis.base.seeds import generator
from analysis.process_prompts import Prompts, Turn, sentence_turn, shown_turn
from configs.settings import ACTIVE, INACTIVE, TRUE, arm_shots


@dataclass(frozen=True)
class ControlTrial:
    """One attempt to move the activation."""

    n: int
    """Examples in context."""
    flip: bool
    """Labels are shown mirrored: the top one stands for a low score."""
    target: int
    """The label that the model is asked for, as shown: the lowest or the top one."""
    mode: str
    """``active``: it writes a sentence; ``inactive``: the test sentence is prefilled."""
    levels: int = 2
    """Labels 0, 1, ..., levels - 1."""
    arm: str = TRUE
    """One of ``settings.ARMS``: which scores are shown, and whether the axis is pushed."""

    @property
    def want(self) -> int:
        """1 if the true score should become high."""
        return int(self.target > 0) ^ int(self.flip)


def draw_order(seed: int, exp: int, pool: np.ndarray, length: int) -> np.ndarray:
    """Return ``length`` rows of the pool in the order of experiment ``exp``.

    Raises:
        UserError: the pool is smaller than ``length``.
    """
    if length > len(pool):
        raise UserError(
            f"{length} sentences are needed (the examples, and for control a test sentence), but the trial "
            f"pool has {len(pool)}: use fewer examples (--n_train, report_examples) or a larger n_trial"
        )
    return generator(seed, "experiment", exp).permutation(pool)[:length]


def report_order(seed: int, exp: int, pool: np.ndarray, sides: np.ndarray, n: int) -> np.ndarray:
    """Return the rows of a report experiment: at each place a fair coin, then a sentence of that side.

    The coins are independent of each other and of the sentences, so that whatever ignores the sentence (a
    constant answer, the side shown more often so far, or less often) is right with chance 1/2 at every place.
    Sentences are drawn without replacement; where a pool is shown to its end, as a permutation is, the sides
    that are left tell what comes.

    Args:
        seed: of the study.
        exp: number of the experiment; the coins are those of every axis and layer.
        pool: (P,) rows to draw from.
        sides: (P,) 0 or 1, the side of the threshold that each row lies on.
        n: sentences to show.

    Raises:
        UserError: a side has fewer sentences than n coins may ask for (n / 2 and six standard deviations).
    """
    pool, sides = np.asarray(pool), np.asarray(sides)
    members = [pool[sides == side] for side in (0, 1)]
    most = min(n, int(np.ceil(n / 2 + 3 * np.sqrt(n))))
    if min(map(len, members)) < most:
        raise UserError(
            f"a report of {n} sentences may need {most} of one label, and the trial pool has "
            f"{len(members[0])} of label 0 and {len(members[1])} of label 1: use fewer (report_examples) or "
            "a larger n_trial"
        )
    coins = generator(seed, "report coins", exp).integers(2, size=n)
    order = np.empty(n, pool.dtype)
    for side, rows in enumerate(members):
        mixed = generator(seed, "report sentences", exp, side).permutation(rows)
        order[coins == side] = mixed[: int((coins == side).sum())]
    return order


def sham_labels(seed: int, exp: int, labels: np.ndarray) -> np.ndarray:
    """Return the labels of an experiment's examples in random order, the same for every axis and N.

    Prefixes stay nested, as those of the true labels are, so that one trunk serves all N.
    """
    return generator(seed, "sham", exp).permutation(labels)


def control_trials(
    shots: Sequence[int], modes: Sequence[str], levels: int = 2, arms: Sequence[str] = (TRUE,)
) -> list[ControlTrial]:
    """Return the 2x2 counterbalanced trials of one experiment: labels as they are or flipped, by target."""
    return [
        ControlTrial(n, flip, target, mode, levels, arm)
        for arm in arms
        for n in arm_shots(arm, shots)
        for flip in (False, True)
        for target in (0, levels - 1)
        for mode in modes
    ]


def control_turns(
    trial: ControlTrial, prompts: Prompts, sentences: Sequence[str], labels: Sequence[int]
) -> list[Turn]:
    """Return the conversation of a control trial.

    Args:
        trial: see ControlTrial.
        prompts: the texts.
        sentences: in the experiment's order, at least n + 1 of them; number n is the test sentence.
        labels: their true labels, 0 to levels - 1.
    """
    turns = [Turn("system", prompts.system("control", trial.levels))]
    shown = mirrored(labels, trial.levels) if trial.flip else labels
    turns += _examples(prompts, sentences[: trial.n], shown, mark_labels=False)
    request = prompts.control_request.format(target=trial.target)
    how = prompts.control_active if trial.mode == ACTIVE else prompts.control_inactive
    turns.append(Turn("user", f"{request} {how}"))
    if trial.mode == INACTIVE:
        turns.append(sentence_turn(sentences[trial.n]))
    return turns


def report_turns(
    prompts: Prompts, sentences: Sequence[str], labels: Sequence[int], flip: bool, levels: int = 2
) -> list[Turn]:
    """Return the one conversation of a report experiment, every label marked."""
    turns = [Turn("system", prompts.system("report", levels))]
    shown = mirrored(labels, levels) if flip else labels
    return turns + _examples(prompts, sentences, shown, mark_labels=True)


def mirrored(labels: Sequence[int], levels: int) -> list[int]:
    """Return the labels counted from the other end."""
    return [levels - 1 - int(label) for label in labels]


def axis_turns(prompts: Prompts, sentence: str) -> list[Turn]:
    """Return the conversation that a sentence's activation is measured in, to fit axes and compute scores."""
    return [
        Turn("system", prompts.axis_system),
        Turn("user", prompts.user_turn),
        sentence_turn(sentence),
    ]


def _examples(
    prompts: Prompts, sentences: Sequence[str], shown: Sequence[int], mark_labels: bool
) -> list[Turn]:
    turns = []
    for sentence, label in zip(sentences, shown, strict=False):
        turns.append(Turn("user", prompts.user_turn))
        turns.append(shown_turn(prompts.shown, sentence, int(label), mark_labels))
    return turns


def copy_rate(reply: str, shown: Sequence[str]) -> float:
    """Return the share of the reply that is its longest common substring with a shown sentence, 0..1.

    Letter case is ignored. 1 means that the reply stands in one of the shown sentences word for word.
    """
    text, pool = reply.lower(), "\ue000".join(shown).lower()  # a character that no reply holds
    longest, start = 0, 0
    for stop in range(1, len(text) + 1):
        if text[start:stop] in pool:
            longest = max(longest, stop - start)
        else:
            start += 1
    return longest / len(text) if text else float("nan")
