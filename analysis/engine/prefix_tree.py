"""THE ENGINE: forward many token sequences that share prefixes, each distinct token once.

    tree = PrefixTree(model, tokenizer)
    readings = tree.read([Request(ids, spans=[(30, 42)])], layers=[7, 15])
    readings[0].pooled                      # (1, 2, D): mean residual stream over tokens 30..41

The sequences become a trie (analysis/engine/trie.py). Long shared paths are forwarded causally, what hangs
off them in packed rows where each token sees its ancestors only (analysis/engine/attention.py); replies of
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

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.base.errors import UserError
from analysis.engine.attention import possible_modes
from analysis.engine.masks import Masks
from analysis.engine.replies import stop_tokens
from analysis.engine.request import Counters, Reading, Request, check_context
from analysis.models.blocks import input_device

log = logging.getLogger(__name__)

SMALLEST_BUDGET = 32

EXACT_MODES: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], str | None]] = WeakKeyDictionary()
"""Model -> ways to attend that were tried -> the first that is exact."""


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
    """How packed rows attend, see analysis/engine/attention.py; None takes the fastest that is exact."""
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
        from analysis.engine.check import exact_mode

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
            from analysis.engine.plain import read_plain

            if expect is not None:
                expect(sum(len(r.ids) for r in requests))
            return read_plain(self, requests, layers, answers, progress)
        from analysis.engine.run import Run

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
