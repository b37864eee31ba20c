"""THE ENGINE: forward many token sequences that share prefixes, each distinct token once.

    tree = PrefixTree(model, tokenizer)
    readings = tree.read([Request(ids, spans=[(30, 42)])], layers=[7, 15])
    readings[0].pooled                      # (1, 2, D): mean residual stream over tokens 30..41

The sequences become a trie (analysis/engine/trie.py). Long shared paths are forwarded causally, what hangs
off them in packed rows where each token sees its ancestors only (analysis/engine/sight.py); replies of
all branches are written together, one token per reply per step. Only span means and the asked-for logits
are kept, so memory does not grow with tokens x layers or tokens x vocabulary. Results equal those of plain
forward passes up to rounding.

Shape letters: T tokens of one request   L layers   D hidden size   A answers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.engine.check import exact_mode
from analysis.engine.context import PLAIN, Context, make_context
from analysis.engine.patches import Busy
from analysis.engine.plain import read_plain
from analysis.engine.refuse import BadRequest, checked
from analysis.engine.replies import Sampling
from analysis.engine.request import Counters, Reading, Request, stack_pooled
from analysis.engine.run import read_packed
from analysis.engine.sight import MODES, possible_modes

__all__ = [
    "BadRequest",
    "Busy",
    "Counters",
    "PrefixTree",
    "Reading",
    "Request",
    "Sampling",
    "stack_pooled",
]


class PrefixTree:
    """Reads residual streams and logits of many sequences with one model."""

    context: Context
    """What the model brings, and how it is read."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        token_budget: int | None = None,
        packed: bool | None = None,
        mode: str | None = None,
    ) -> None:
        """Choose how to read ``model``.

        Args:
            model: any decoder-only model, on one device or spread over several.
            tokenizer: of the model.
            token_budget: most tokens forwarded at once; default 512 on a CPU, 4096 on a GPU. Halved when
                memory runs out.
            packed: False forwards one request at a time; None tries packing once and checks that it is exact.
            mode: how packed rows attend, see analysis/engine/sight.py; None takes the fastest that is exact.

        Raises:
            ValueError: no such mode or budget.
            UserError: no decoder blocks are found, or memory runs out.
        """
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode {mode!r}: choose from {', '.join(MODES)}")
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"token_budget {token_budget}: give 1 or more")
        self.model, self.tokenizer = model, tokenizer
        self.context = make_context(model, tokenizer, token_budget)
        modes = [mode] if mode else possible_modes(model, self.context.masks.kinds)
        if packed is None:
            self.context.mode = exact_mode(self.context, modes)
        elif packed:
            self.context.mode = modes[0]

    def read(
        self,
        requests: Sequence[Request],
        layers: Sequence[int] = (),
        answers: Sequence[int] = (),
        progress: Callable[[int], object] | None = None,
        expect: Callable[[int], object] | None = None,
    ) -> list[Reading]:
        """Forward all requests and return what they ask for, in the same order.

        Threads that read with the same model take turns.

        Args:
            requests: see Request.
            layers: blocks to read, from 0, or from -1 for the last; spans and replies are pooled at each.
            answers: token ids whose logits are returned at ``logits_at``.
            progress: called with the number of tokens of each finished step.
            expect: called before the work with the most tokens that will be forwarded.

        Raises:
            BadRequest: a request, layer or answer that is not there, see analysis/engine/refuse.py; nothing
                was forwarded.
            UserError: a sequence is longer than the model's context, or the smallest budget does not fit.
            Busy: this thread is reading the model already.
        """
        found, blocks, tokens = checked(self.context, requests, layers, answers)
        reader = read_packed if self.packed else read_plain
        return reader(self.context, found, blocks, tokens, progress, expect)

    @property
    def packed(self) -> bool:
        """Whether requests share what is forwarded."""
        return self.mode != PLAIN

    @property
    def mode(self) -> str:
        """How rows attend: one of ``MODES``, or PLAIN."""
        return self.context.mode

    @property
    def token_budget(self) -> int:
        """Most tokens forwarded at once, now."""
        return self.context.token_budget

    @property
    def total(self) -> Counters:
        """Work done so far."""
        return self.context.total

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.context.device

    @property
    def stops(self) -> frozenset[int]:
        """Token ids that end a reply."""
        return self.context.stops

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of reply tokens, exactly as written."""
        return self.context.decode(ids)
