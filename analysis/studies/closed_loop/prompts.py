"""The texts of the closed loop, and the conversation that they make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.base.errors import UserError
from analysis.process_prompts import Prompter, Prompts, Turn, _places, sentence_turn
from configs.settings import CONFIG_DIR, read_yaml

NO_SCORE = -1
"""The label of a turn without a valid sentence."""
_PLACES = {
    "system": ["scale"], "feedback": ["label"], "no_score": [], "goal": ["target"], "write": [],
    "repeat": ["sentence"],
}  # fmt: skip


@dataclass(frozen=True)
class LoopPrompts:
    """The texts of configs/loop_prompts.yml."""

    system: str
    feedback: str
    no_score: str
    goal: str
    write: str
    repeat: str

    def message(self, label: int | None, target: int, sentence: str | None) -> str:
        """Return what the user says: the last score, the goal, and what to say.

        Args:
            label: shown for the sentence before; NO_SCORE if it was not valid, None if there was none.
            target: the label that is asked for.
            sentence: to be repeated; None to write a new one.
        """
        how = self.write if sentence is None else self.repeat.format(sentence=sentence)
        return f"{self.shown(label)}{self.goal.format(target=target)} {how}"

    def shown(self, label: int | None) -> str:
        """Return the score of the sentence before with a blank, or nothing for None."""
        if label is None:
            return ""
        return f"{self.no_score if label == NO_SCORE else self.feedback.format(label=label)} "

    def opening(
        self,
        base: Prompts,
        levels: int,
        examples: Sequence[tuple[str, int]],
        target: int,
        sentence: str | None,
    ) -> list[Turn]:
        """Return the turns before the first reply.

        Args:
            base: the study's texts.
            levels: labels 0 to levels - 1.
            examples: sentences with the labels that are shown for them.
            target, sentence: as for ``message``.
        """
        scale = base.scale_binary if levels == 2 else base.scale_levels.format(top=levels - 1)
        turns, label = [Turn("system", self.system.format(scale=scale))], None
        for example, shown in examples:
            turns += [Turn("user", self.shown(label) + base.user_turn), Turn("assistant", example)]
            label = shown
        return [*turns, Turn("user", self.message(label, target, sentence))]


def load_loop_prompts() -> LoopPrompts:
    """Return the texts of the closed loop.

    Raises:
        UserError: a text is missing, unknown, no string, or holds other braces than it must.
    """
    path = CONFIG_DIR / "loop_prompts.yml"
    texts = read_yaml(path)
    if texts.keys() != _PLACES.keys():
        wrong = ", ".join(sorted(texts.keys() ^ _PLACES.keys()))
        raise UserError(f"{path}: missing or unknown {wrong}; the keys are {', '.join(_PLACES)}")
    for key, places in _PLACES.items():
        if not isinstance(texts[key], str) or _places(texts[key]) != places:
            wanted = " then ".join(f"{{{name}}}" for name in places) or "no braces"
            raise UserError(f"{path}: {key} must be a text with {wanted}, not {texts[key]!r}")
    return LoopPrompts(**{key: text.strip() for key, text in texts.items()})


class Continued:
    """Tokens that go on a conversation, so that what was said before need not be forwarded again."""

    STAND_IN = "I went home."
    """Put in the place of a reply: its own tokens stay as they were written."""

    def __init__(self, prompter: Prompter) -> None:
        """Take a prompter; a template that moves the system text is given it in the first message.

        Raises:
            UserError: the template rewrites earlier turns, so that no conversation can go on.
        """
        self.prompter = prompter
        if not self._goes_on():
            prompter.fold_system = True
        if not self._goes_on():
            raise UserError(
                "the chat template changes earlier turns when a conversation goes on, so that a closed loop "
                "cannot keep them: use another model"
            )

    def opening(self, turns: Sequence[Turn]) -> np.ndarray:
        """Return (T,) token ids up to where the first reply starts."""
        return self.prompter.encode(turns, reply=True).ids

    def message(self, text: str) -> np.ndarray:
        """Return (T,) token ids from the end of a reply to the start of the next, ``text`` between them."""
        ids, (_, stop) = self._exchange(text)
        return ids[stop:]

    def _exchange(self, *texts: str) -> tuple[np.ndarray, tuple[int, int]]:
        turns = [Turn("system", "Be kind."), Turn("user", "Say something.")]
        for text in texts:
            turns += [sentence_turn(self.STAND_IN), Turn("user", text)]
        encoded = self.prompter.encode(turns, reply=True)
        return encoded.ids, encoded.spans[-1]

    def _goes_on(self) -> bool:
        """Return whether a longer conversation starts with the shorter one, token by token."""
        short, _ = self._exchange("Go on.")
        longer, (_, stop) = self._exchange("Go on.", "Go on.")
        first = self.opening([Turn("system", "Be kind."), Turn("user", "Say something.")])
        whole = np.array_equal(longer[: len(short)], short) and np.array_equal(short[: len(first)], first)
        return whole and np.array_equal(longer[stop:], self.message("Go on."))
