"""What a model writes: where its sentence ends, how tokens are drawn, and the mean over its own tokens.

Shape letters: R replies   V vocabulary   W tokens held back   L layers   D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_BACK = 16
"""A reply ends when so many tokens in a row add nothing to its sentence: blanks, what its rule holds back."""

INCOMPLETE = "\ufffd"
"""What the bytes of a character that is not whole yet decode to."""


class Bounds(NamedTuple):
    """Where the sentence lies in the text of a reply."""

    start: int
    """First character; no blanks surround the sentence."""
    stop: int
    """One past the last; the same as ``start`` if there is none."""
    settled: bool
    """Whatever follows is no part of it: the reply ends here."""


Rule = Callable[[str, bool], Bounds]
"""Where the sentence lies, from the text so far and whether that is all of it.

While more may come, what may turn out not to belong to the sentence is not counted yet: whatever follows, a
later ``start`` is the same, once there is a sentence, and a later ``stop`` is no smaller."""


def whole_reply(text: str, final: bool) -> Bounds:
    """Return the bounds of all of it, without surrounding blanks."""
    body = text if final else text.rstrip(INCOMPLETE)
    stop = len(body.rstrip())
    return Bounds(min(len(body) - len(body.lstrip()), stop), stop, False)


@dataclass(frozen=True)
class Sampling:
    """How one reply is drawn, and what of it is its sentence."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy; else the full softmax is sampled."""
    seed: tuple[int, ...] = (0,)
    """Seeds this reply alone, so that it does not depend on what else is in the batch."""
    rule: Rule = whole_reply
    """Says where the sentence lies, whose tokens are pooled, and whether the reply ends with it."""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a reply: end of sequence, end of turn, and every other special token."""
    ids: set[int] = set(tokenizer.all_special_ids)
    for source in (model.generation_config, model.config):
        eos = getattr(source, "eos_token_id", None)
        ids.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return frozenset(ids)


def draw(
    logits: Float[torch.Tensor, "R V"],
    temperatures: Float[np.ndarray, " R"],
    uniform: Float[np.ndarray, " R"],
) -> list[int]:
    """Return one token id per row: argmax at temperature 0, else by inverse of the cumulative softmax.

    Args:
        logits: (R, V).
        temperatures: (R,).
        uniform: (R,) draws from [0, 1).
    """
    greedy = logits.argmax(-1)
    if not temperatures.any():
        return greedy.tolist()
    heat = torch.as_tensor(np.where(temperatures > 0, temperatures, 1.0), device=logits.device)
    cumulative = (logits.double() / heat[:, None].double()).softmax(-1).cumsum(-1)
    # the last entry can fall short of 1 by rounding
    target = torch.as_tensor(uniform, device=logits.device)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    hot = torch.as_tensor(temperatures > 0, device=logits.device)
    return torch.where(hot, sampled, greedy).tolist()


def draw_next(logits: Float[torch.Tensor, "R V"], replies: Sequence[Reply]) -> list[int]:
    """Return the next token of each of R replies, from logits (R, V)."""
    heat = np.array([reply.sampling.temperature for reply in replies])
    return draw(logits, heat, np.array([reply.uniform[len(reply.ids)] for reply in replies]))


@dataclass
class Reply:
    """One reply while it is written."""

    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    """Tokens written, without the one that ended it."""
    ends: list[int] = field(default_factory=list)
    """Length of the decoded text after each token."""
    text: str = ""
    uniform: np.ndarray = field(init=False)
    start: int = 0
    stop: int = 0
    """ids[start:stop] are the tokens of the sentence."""
    counted: int = 0
    """Tokens up to here are in the sum, or before the sentence."""
    done: bool = False
    cut: bool = False
    """Its rule settled where the sentence ends, which ended the reply."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(list(self.sampling.seed))
        self.uniform = rng.random(self.sampling.max_new_tokens)

    @property
    def sentence(self) -> str:
        """What of the reply is its sentence, by its rule."""
        start, stop, _ = self.sampling.rule(self.text, True)
        return self.text[start:stop]

    def append(self, token: int, decode: Callable[[list[int]], str], ends: Iterable[int]) -> bool:
        """Take the next token; return whether it must be forwarded."""
        if token in ends:
            self._close()
            return False
        self.ids.append(token)
        self.text = decode(self.ids)
        self.ends.append(len(self.text.rstrip(INCOMPLETE)))
        self._locate(final=False)
        idle = len(self.ids) - max(self.stop, self.counted) >= HELD_BACK
        if self.cut or idle or len(self.ids) == self.sampling.max_new_tokens:
            self._close()
        return not self.done or self.stop == len(self.ids)

    def _close(self) -> None:
        self.done = True
        self._locate(final=True)

    def _locate(self, final: bool) -> None:
        first, last, self.cut = self.sampling.rule(self.text, final)
        if last > first:
            tail = len(self.ends) - 1
            begins = [0, *self.ends]
            self.start = next(i for i in range(len(self.ends)) if max(begins[i] + 1, self.ends[i]) > first)
            self.stop = 1 + next((i for i, end in enumerate(self.ends) if end >= last), tail)


class ReplyMeans:
    """Mean hidden state over the sentence of each reply, without keeping the states of all tokens.

    A token's state is held back in a ring until it is known to belong to the sentence (blanks at the end do
    not, nor does what the rule holds back), then added to the sum.
    """

    def __init__(self, replies: Sequence[Reply], n_layers: int) -> None:
        self.replies, self.n_layers = replies, n_layers
        self.ring: torch.Tensor | None = None  # (W, L, R, D)
        self.sums: torch.Tensor | None = None  # (R, L, D) float32

    def hold(self, slot: int, rows: Sequence[int], hidden: Float[torch.Tensor, "n D"]) -> None:
        """Keep the states of the newest token of each of n ``rows`` at one layer."""
        if self.ring is None or self.sums is None:
            shape = (self.n_layers, len(self.replies), hidden.shape[-1])
            self.ring = hidden.new_zeros(HELD_BACK + 1, *shape)
            self.sums = hidden.new_zeros(shape[1], shape[0], shape[2], dtype=torch.float32)
        place = [(len(self.replies[r].ids) - 1) % (HELD_BACK + 1) for r in rows]
        self.ring[place, slot, list(rows)] = hidden.to(self.ring.device)

    def commit(self) -> None:
        """Add the tokens that have become part of a sentence to the sums."""
        rows, places = [], []
        for row, reply in enumerate(self.replies):
            first = max(reply.counted, reply.start)
            for token in range(first, reply.stop):
                rows.append(row)
                places.append(token % (HELD_BACK + 1))
            reply.counted = max(reply.counted, reply.stop)
        if rows and self.ring is not None and self.sums is not None:
            index = torch.tensor(rows, device=self.sums.device)
            self.sums.index_add_(0, index, self.ring[places, :, rows].float())

    def means(self, width: int) -> Float[np.ndarray, "R L {width}"]:
        """Return (R, L, D) float32 for D = ``width``; NaN where the sentence is empty."""
        counts = np.array([reply.stop - reply.start for reply in self.replies], np.float32)
        shape = (len(self.replies), self.n_layers, width)
        sums = np.zeros(shape, np.float32) if self.sums is None else self.sums.cpu().numpy()
        with np.errstate(invalid="ignore"):
            return sums / np.where(counts > 0, counts, np.nan)[:, None, None]
