"""Closed-loop neurofeedback: the model speaks, sees the score of what it said, and speaks again.

One unit is one experiment on one axis of one layer in one mode: every arm of the feedback, both targets, both
label assignments, K turns each. Its conversations go on together in one cache. The arms ``yoked`` and
``random`` show labels that the next experiment's true arm was shown: see stage.py for the order of the work.

Shape letters: B conversations of a unit   K turns   L layers   D hidden size
"""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.axes.levels import level_cuts, to_levels
from analysis.axes.names import ENSEMBLE
from analysis.base.errors import UserError
from analysis.base.seeds import generator
from analysis.engine.dialogues import Dialogues
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply, Sampling
from analysis.experiments.score_text import before_score
from analysis.experiments.study import Study
from analysis.experiments.trials import copy_rate, draw_order, mirrored
from analysis.process_prompts import Prompter
from analysis.results.store import UnitKey
from analysis.studies.closed_loop.flags import Loop
from analysis.studies.closed_loop.prompts import NO_SCORE, Continued, load_loop_prompts
from utils import LoadedModel

_SPARE = 8
"""Tokens that a repetition may be longer than its sentence."""


@dataclass(frozen=True)
class LoopTrial:
    """One conversation."""

    arm: str
    flip: bool
    """Labels are shown mirrored: the top one stands for a low score."""
    target: int
    """The label that is asked for, as shown: the lowest or the top one."""
    levels: int

    @property
    def want(self) -> int:
        """1 if the true score should become high."""
        return int(self.target > 0) ^ int(self.flip)


def loop_trials(arms: Sequence[str], levels: int) -> list[LoopTrial]:
    """Return the conversations of a unit: per arm, label assignments by targets."""
    grid = itertools.product(arms, (False, True), (0, levels - 1))
    return [LoopTrial(arm, flip, target, levels) for arm, flip, target in grid]


def normalised(text: str) -> str:
    """Return a sentence without case, outer quotes, outer punctuation and double blanks."""
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).casefold()
    return plain.strip(" \"'“”‘’«»*.!?,:;-")


# ---------------------------------------------------------------- labels


def label_cuts(study: Study, key: UnitKey) -> np.ndarray:
    """Return the scores at which labels change, as ``Study.labels`` cuts them."""
    scores = study.scores(key.layer, key.axis)[study.axis_rows]
    whole = key.axis == ENSEMBLE
    middle = study.ensemble.threshold if whole else study.axes(key.layer).threshold(key.axis)
    return level_cuts(scores, middle, key.levels)


def shown_label(label: int, flip: bool, levels: int) -> int:
    """Return the label as it is shown; NO_SCORE stays."""
    return mirrored([label], levels)[0] if flip and label != NO_SCORE else int(label)


def given_labels(
    trials: Sequence[LoopTrial], donor: np.ndarray | None, count: int, seed: int, *stream: int | str
) -> np.ndarray:
    """Return (B, count) int64 labels of the arms whose feedback is set beforehand, 0 in the others.

    Args:
        trials: B conversations.
        donor: (4, count) shown to another experiment's true arm, in the order of ``loop_trials``; None if no
            arm needs it.
        count: labels of a conversation, K - 1.
        seed, stream: of the generator that puts the labels of arm ``random`` in order.
    """
    labels = np.zeros((len(trials), count), np.int64)
    if donor is not None:
        mixed = generator(seed, *stream).permutation(donor.ravel()).reshape(donor.shape)
        for arm, source in (("yoked", donor), ("random", mixed)):
            rows = [b for b, trial in enumerate(trials) if trial.arm == arm]
            labels[rows] = source[: len(rows)]
    return labels


def fed_back(trials: Sequence[LoopTrial], labels: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return (B,) the labels that are shown, from the true ones (B,) or those ``given`` (B,) beforehand."""
    shown = given.copy()
    for b, trial in enumerate(trials):
        if trial.arm in ("true", "flipped"):
            flip = trial.flip ^ (trial.arm == "flipped")
            shown[b] = shown_label(int(labels[b]), flip, trial.levels)
    return shown


# ---------------------------------------------------------------- units


@dataclass(frozen=True)
class Start:
    """What a unit begins with."""

    trials: list[LoopTrial]
    """B conversations."""
    rows: np.ndarray
    """The sentences of the experiment: the examples, then the one to repeat."""
    sentence: str | None
    """To be repeated; None to write new ones."""
    openings: list[np.ndarray]
    """B arrays of token ids up to the first reply."""
    added: int
    """Most tokens that one turn adds to a conversation."""


class LoopTexts:
    """Builds the conversations of units; no model is needed for it."""

    def __init__(self, study: Study, prompter: Prompter, loop: Loop) -> None:
        self.study, self.loop, self.settings = study, loop, study.settings
        self.prompter, self.prompts = prompter, load_loop_prompts()
        self.continued = Continued(prompter)

    def start(self, key: UnitKey, mode: str, arms: Sequence[str]) -> Start:
        """Return the openings of a unit: the same examples and first request in every arm."""
        rows = draw_order(self.settings.seed, key.exp, self.study.trial_rows, self.loop.examples + 1)
        labels = self.study.labels(key.layer, key.axis, key.levels)[rows]
        examples = [self.study.sentences[row] for row in rows[:-1]]
        sentence = self.study.sentences[rows[-1]] if mode == "repeat" else None
        trials, openings = loop_trials(arms, key.levels), []
        for trial in trials:
            shown = [shown_label(label, trial.flip, key.levels) for label in labels[:-1]]
            pairs = list(zip(examples, shown, strict=True))
            turns = self.prompts.opening(self.study.prompts, key.levels, pairs, trial.target, sentence)
            openings.append(self.continued.opening(turns))
        added = self.longest_message(key.levels, sentence) + self.longest_reply(sentence)
        return Start(trials, rows, sentence, openings, added)

    def layers(self, key: UnitKey) -> list[int]:
        """Return the layers that the score of a unit is made of."""
        return self.study.layers if key.axis == ENSEMBLE else [key.layer]

    def messages(self, start: Start, shown: Sequence[int]) -> list[np.ndarray]:
        """Return what every conversation is told after a turn, as token ids."""
        pairs = zip(start.trials, shown, strict=True)
        texts = [self.prompts.message(label, trial.target, start.sentence) for trial, label in pairs]
        return [self.continued.message(text) for text in texts]

    def longest_message(self, levels: int, sentence: str | None) -> int:
        """Return the tokens of the longest message between two replies."""
        grid = itertools.product([NO_SCORE, *range(levels)], (0, levels - 1))
        texts = [self.prompts.message(label, target, sentence) for label, target in grid]
        return max(len(self.continued.message(text)) for text in texts)

    def longest_reply(self, sentence: str | None) -> int:
        """Return the most tokens of a reply; a sentence to repeat must fit."""
        least = self.settings.max_new_tokens
        if sentence is None:
            return least
        return max(
            least, len(self.prompter.tokenizer(sentence, add_special_tokens=False)["input_ids"]) + _SPARE
        )

    def sampling(
        self, key: UnitKey, mode: str, trial: LoopTrial, turn: int, sentence: str | None
    ) -> Sampling:
        """Return a seed for this reply; arms share it, so that they differ by their feedback alone."""
        words = zlib.crc32(key.axis.encode()), zlib.crc32(mode.encode())
        seed = (self.settings.seed, key.exp, key.layer, *words, int(trial.flip), trial.target, turn)
        return Sampling(self.longest_reply(sentence), self.settings.temperature, seed, before_score)


class ClosedLoop(LoopTexts):
    """Runs units with one model."""

    def __init__(self, lm: LoadedModel, study: Study, tree: PrefixTree, loop: Loop) -> None:
        study.check_model(lm)
        super().__init__(study, Prompter(lm.tokenizer, lm.name), loop)
        self.lm, self.tree = lm, tree

    def check(self, work: Iterable[tuple[str, UnitKey]]) -> None:
        """Raise UserError before any work if sentences lack or a conversation could outgrow the context."""
        different = {(mode, key.exp, key.levels): (mode, key) for mode, key in work}
        for mode, key in different.values():
            start, limit = self.start(key, mode, ("true",)), self.lm.max_positions
            opening = max(map(len, start.openings))
            most = opening + self.loop.turns * start.added
            if limit is not None and most > limit:
                raise UserError(
                    f"{self.loop.turns} turns can need {most} tokens, but the model's context has {limit}: "
                    f"at most {max(0, (limit - opening) // start.added)} turns fit (--loop), or use fewer "
                    "--loop_examples"
                )

    def unit(
        self, key: UnitKey, mode: str, arms: Sequence[str], donor: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Run one unit and return its record.

        Args:
            key: the unit.
            mode: ``write`` or ``repeat``.
            arms: of the feedback.
            donor: see ``given_labels``.
        """
        start, last = self.start(key, mode, arms), self.loop.turns - 1
        layers = self.layers(key)
        room = len(start.trials) * self.loop.turns * start.added
        talk = Dialogues(self.tree, start.openings, layers, room)
        stream = ("loop", key.exp, key.layer, key.axis, mode)
        given = given_labels(start.trials, donor, last, self.settings.seed, *stream)
        cuts, turns = label_cuts(self.study, key), []
        for turn in range(self.loop.turns):
            said = talk.write([self.sampling(key, mode, t, turn, start.sentence) for t in start.trials])
            turns.append(self.measured(key, said, cuts, start.sentence))
            if turn < last:
                given[:, turn] = fed_back(start.trials, turns[-1]["label"], given[:, turn])
                talk.add(self.messages(start, given[:, turn].tolist()))
        return {
            **trial_columns(start.trials),
            **turn_columns(turns),
            "shown": given,
            "rows": start.rows,
            "sentence": start.sentence or "",
            "tokens": asdict(talk.tokens),
        }

    def measured(
        self, key: UnitKey, said: Sequence[tuple[Reply, np.ndarray]], cuts: np.ndarray, sentence: str | None
    ) -> dict[str, Any]:
        """Return the columns (B,) of one turn."""
        texts = [reply.sentence for reply, _ in said]
        score = self.score(key, np.stack([mean for _, mean in said]))
        empty = np.array([not text for text in texts])
        if not np.isfinite(score[~empty]).all():
            raise UserError(
                f"activations of {key.axis}, layer {key.layer}, experiment {key.exp} are not finite: use "
                "--dtype bfloat16 or float32"
            )
        complied = ~empty
        if sentence is not None:
            complied &= np.array([normalised(text) == normalised(sentence) for text in texts])
        label = np.where(complied, to_levels(np.nan_to_num(score), cuts), NO_SCORE)
        cut = np.array([reply.cut for reply, _ in said])
        ids = [list(reply.ids[: reply.stop]) for reply, _ in said]
        return dict(score=score, label=label, text=texts, ids=ids, empty=empty, complied=complied, cut=cut)

    def score(self, key: UnitKey, pooled: np.ndarray) -> np.ndarray:
        """Return (B,) float32 scores of (B, L, D) states on the axis, NaN for empty replies."""
        if key.axis != ENSEMBLE:
            return self.study.axes(key.layer).score(pooled[:, 0], key.axis)
        layers = enumerate(self.study.layers)
        members = [self.study.axes(layer).score(pooled[:, slot], "lr") for slot, layer in layers]
        return self.study.ensemble.score(np.stack(members, axis=1))


def trial_columns(trials: Sequence[LoopTrial]) -> dict[str, Any]:
    """Return what was asked for, per conversation."""
    return {
        "arm": [trial.arm for trial in trials],
        "flip": np.array([trial.flip for trial in trials]),
        "target": np.array([trial.target for trial in trials]),
        "want": np.array([trial.want for trial in trials]),
    }


def turn_columns(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return (B, K) arrays and lists from the columns of every turn, with how much was said before.

    ``copy_rate`` is NaN in the first turn and for empty replies.
    """
    names = ("score", "label", "empty", "complied", "cut")
    columns: dict[str, Any] = {name: np.stack([turn[name] for turn in turns], axis=1) for name in names}
    text = [list(row) for row in zip(*(turn["text"] for turn in turns), strict=True)]
    ids = [list(row) for row in zip(*(turn["ids"] for turn in turns), strict=True)]
    copied = [[copy_rate(row[k], row[:k]) if k else np.nan for k in range(len(row))] for row in text]
    return {**columns, "text": text, "reply_ids": ids, "copy_rate": np.array(copied, np.float32)}
