"""THE ENGINE: forward many token sequences that share prefixes, each distinct token once.

    tree = PrefixTree(model, tokenizer)
    readings = tree.read([Request(ids, spans=[(30, 42)])], layers=[7, 15])
    readings[0].pooled                      # (1, 2, D): mean residual stream over tokens 30..41

The sequences become a trie (analysis/trie.py). Long shared paths are forwarded causally, what hangs off
them in packed rows where each token sees its ancestors only (analysis/tree_attention.py); the replies of
all branches are written together, one token per reply per step. Only span means and the asked-for logits
are kept, so memory does not grow with tokens x layers or tokens x vocabulary. Results equal those of plain
forward passes up to rounding.

Shape letters: T tokens of one request   L layers   D hidden size   A answers
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.process_hidden import input_device
from analysis.replies import Reply, Sampling, stop_tokens
from analysis.steering import Steering
from analysis.tree_attention import possible_modes
from analysis.tree_cache import Masks
from utils import UserError

log = logging.getLogger(__name__)

SMALLEST_BUDGET = 32

EXACT_MODES: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], str | None]] = WeakKeyDictionary()
"""Model -> ways to attend that were tried -> the first that is exact."""


@dataclass(frozen=True)
class Request:
    """One token sequence and what to read from it."""

    ids: Sequence[int] | np.ndarray
    """(T,) token ids."""
    spans: Sequence[tuple[int, int]] = ()
    """Token ranges [start, stop) whose mean residual stream is wanted."""
    logits_at: Sequence[int] = ()
    """Positions whose next-token logits are wanted, for the answer tokens of ``read``."""
    reply: Sampling | None = None
    """Write a reply after the last token."""
    steering: Sequence[Steering] = ()
    """Interventions on the residual stream, applied in this order."""


@dataclass
class Reading:
    """What was read from one request."""

    pooled: np.ndarray
    """(len(spans), L, D) float32 means over each span."""
    logits: np.ndarray
    """(len(logits_at), A) float32."""
    reply: Reply | None = None
    """The reply, if one was asked for."""
    reply_pooled: np.ndarray | None = None
    """(L, D) float32 mean over the reply's sentence; NaN if it is empty."""


def stack_pooled(readings: Sequence[Reading]) -> np.ndarray:
    """Return (B, L, D) float32 for requests of one span each, without a copy where they are in one array."""
    whole = readings[0].pooled.base
    if whole is not None and len(whole) == len(readings) and all(r.pooled.base is whole for r in readings):
        return whole
    return np.concatenate([reading.pooled for reading in readings])


@dataclass
class Counters:
    """Work done, in tokens."""

    prompt: int = 0
    """Prompt tokens forwarded."""
    reply: int = 0
    """Reply tokens forwarded."""
    calls: int = 0
    """Forward passes."""
    asked: int = 0
    """Prompt tokens that one forward pass per request would take."""


@dataclass
class PrefixTree:
    """Reads residual streams and logits of many sequences with one model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_budget: int | None = None
    """Most tokens forwarded at once; default 512 on a CPU, 4096 on a GPU. Halved when memory runs out."""
    packed: bool | None = None
    """False forwards one request at a time; None tries packing once and checks that it is exact."""
    mode: str | None = None
    """How packed rows attend, see analysis/tree_attention.py; None takes the fastest that is exact."""
    total: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.device = input_device(self.model)
        if self.token_budget is None:
            self.token_budget = 512 if self.device.type == "cpu" else 4096
        self.masks = Masks(self.model)
        self.stops = stop_tokens(self.model, self.tokenizer)
        modes = possible_modes(self.model, self.masks.kinds)
        if self.packed is None:
            self.mode = self._exact_mode([self.mode] if self.mode else modes)
            self.packed = self.mode is not None
        self.mode = self.mode or modes[0]

    def _exact_mode(self, modes: Sequence[str]) -> str | None:
        """Return the first exact way to attend, which is tried once for each model."""
        from analysis.plain_path import exact_mode

        known = EXACT_MODES.setdefault(self.model, {})
        key = tuple(modes)
        if key not in known:
            known[key] = exact_mode(self, modes)
        return known[key]

    def read(
        self,
        requests: Sequence[Request],
        layers: Sequence[int] = (),
        answers: Sequence[int] = (),
        progress: Callable[[int], object] | None = None,
        expect: Callable[[int], object] | None = None,
    ) -> list[Reading]:
        """Forward all requests and return what they ask for, in the same order.

        Args:
            requests: see Request.
            layers: blocks to read, from 0; spans and replies are pooled at each.
            answers: token ids whose logits are returned at ``logits_at``.
            progress: called with the number of tokens of each finished step.
            expect: called before the work with the most tokens that will be forwarded.

        Raises:
            UserError: a sequence is longer than the model's context, the smallest budget does not fit, or
                steering that does not fit the model or its request.
        """
        check_context(self.model, requests)
        if not self.packed:
            from analysis.plain_path import read_plain

            if expect is not None:
                expect(sum(len(r.ids) for r in requests))
            return read_plain(self, requests, layers, answers, progress)
        from analysis.tree_run import Run

        while True:
            try:
                run = Run(self, requests, layers, answers, progress)
                if expect is not None:
                    expect(run.most_tokens)
                return run.go()
            except torch.OutOfMemoryError:
                self._halve_budget()

    def _halve_budget(self) -> None:
        if self.token_budget // 2 < SMALLEST_BUDGET:
            raise UserError(
                f"out of memory even with {self.token_budget} tokens at once: use a smaller model, a smaller "
                "--dtype, fewer examples (--n_train), or --device map to spread the model over devices"
            )
        self.token_budget //= 2
        log.warning("out of memory: going on with %d tokens at once", self.token_budget)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of reply tokens, exactly as written."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check_context(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    """Raise UserError if a request and its reply do not fit the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [len(r.ids) + (r.reply.max_new_tokens if r.reply else 0) for r in requests]
    if limit is not None and lengths and max(lengths) > limit:
        raise UserError(
            f"the longest prompt needs {max(lengths)} tokens, but the model's context has {limit}: use fewer "
            "examples (--n_train), shorter sentences, or a model with a longer context"
        )
