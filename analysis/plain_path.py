"""One request at a time: for architectures that cannot be packed, and to check those that can.

Slower and with the same results: a plain causal forward pass per request, the same pooling and sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from analysis.prefix_tree import PrefixTree, Reading, Request
from analysis.process_hidden import read_layers
from analysis.replies import Reply, ReplyMeans, Sampling, draw
from analysis.steering import Interventions

log = logging.getLogger(__name__)


def exact_mode(tree: PrefixTree, modes: Sequence[str]) -> str | None:
    """Return the first way to attend with which packed rows give what plain forward passes give, or None.

    It is tried on this model and device with prompts that branch, in steps of a few tokens, and with replies.
    """
    if not tree.masks.supported:
        log.warning("attention kinds %s cannot be packed: one sequence at a time", sorted(tree.masks.kinds))
        return None
    requests = _trial_requests(tree)
    last = tree.model.config.get_text_config().num_hidden_layers - 1
    packed_before, budget, plain = tree.packed, tree.token_budget, None
    try:
        for mode in modes:
            tree.packed, tree.token_budget, tree.mode = True, 8, mode
            try:
                packed = tree.read(requests, [last], range(5))
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
                log.warning("packing failed on this model (%s, attention by %s)", error, mode)
                continue
            plain = plain or read_plain(tree, requests, [last], range(5))
            worst = np.max([_difference(a, b) for a, b in zip(packed, plain, strict=True)])
            if worst <= (1e-3 if tree.model.dtype == torch.float32 else 0.1):
                return mode
            log.warning("packed rows differ from plain ones by %.1e (attention by %s)", worst, mode)
        log.warning("this model cannot be packed: one sequence at a time")
        return None
    finally:
        tree.packed, tree.token_budget = packed_before, budget
        tree.total = type(tree.total)()


def _trial_requests(tree: PrefixTree) -> list[Request]:
    rng = np.random.default_rng(0)
    vocabulary = min(tree.model.config.get_text_config().vocab_size, 1000)
    trunk, tails = rng.integers(0, vocabulary, 12), rng.integers(0, vocabulary, (4, 8))
    prompts = [np.concatenate([trunk[: 12 - 4 * (i // 2)], tail]) for i, tail in enumerate(tails)]
    return [
        Request(ids, spans=[(5, 10)], logits_at=[8], reply=Sampling(1) if i % 2 else None)
        for i, ids in enumerate(prompts)
    ]


def _difference(packed: Reading, plain: Reading) -> float:
    """Return the largest relative difference of states and logits, and of the reply if it is the same."""
    pairs = [(packed.pooled, plain.pooled), (packed.logits, plain.logits)]
    if packed.reply and packed.reply.sentence and packed.reply.ids == plain.reply.ids:
        pairs.append((packed.reply_pooled, plain.reply_pooled))
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))


def read_plain(
    tree: PrefixTree,
    requests: Sequence[Request],
    layers: Sequence[int],
    answers: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> list[Reading]:
    """Do what PrefixTree.read does, forwarding each request on its own."""
    readings = []
    with torch.inference_mode():
        for request in requests:
            readings.append(_PlainRead(tree, request, list(layers), list(answers)).go())
            tree.total.prompt += len(request.ids)
            tree.total.asked += len(request.ids)
            if progress is not None:
                progress(len(request.ids))
    return readings


class _PlainRead:
    def __init__(self, tree: PrefixTree, request: Request, layers: list[int], answers: list[int]) -> None:
        self.tree, self.request, self.layers, self.answers = tree, request, layers, answers
        self.steering = Interventions(tree.model, [(request.steering, len(request.ids))])
        self.cache: object = None
        self.ids: list[int] = []
        width = tree.model.config.get_text_config().hidden_size
        self.pooled = np.zeros((len(request.spans), len(layers), width), np.float32)
        self.width = width

    def go(self) -> Reading:
        request = self.request
        rows = [*request.logits_at, *([len(request.ids) - 1] if request.reply else [])]
        logits = self.call(list(request.ids), rows, self.pool)
        reading = Reading(self.pooled, self.answer_logits(logits))
        if request.reply:
            reading.reply, reading.reply_pooled = self.write(request.reply, logits[-1:])
        return reading

    def answer_logits(self, logits: torch.Tensor) -> np.ndarray:
        return logits[: len(self.request.logits_at), self.answers].float().cpu().numpy()

    def pool(self, slot: int, hidden: torch.Tensor) -> None:
        for s, (start, stop) in enumerate(self.request.spans):
            self.pooled[s, slot] = hidden[0, start:stop].float().mean(0).cpu().numpy()

    def call(
        self, ids: list[int], rows: list[int], sink: Callable[[int, torch.Tensor], None]
    ) -> torch.Tensor:
        """Forward ``ids`` after what came before; return logits (len(rows), V).

        A model that hands back no keys and values is given everything again.
        """
        tree = self.tree
        self.ids += ids
        if self.cache is None and len(self.ids) > len(ids):
            ids, rows = self.ids, [len(self.ids) - 1]
        tree.total.calls += 1
        keep = torch.tensor(rows, dtype=torch.long)
        acting = self.steering.acting(self.steering.tokens(0, len(self.ids))[-len(ids) :])
        with acting, read_layers(tree.model, self.layers, sink):
            done = tree.model(
                input_ids=torch.tensor([ids], device=tree.device),
                past_key_values=self.cache,
                use_cache=self.request.reply is not None,
                logits_to_keep=keep,
            )
        self.cache = getattr(done, "past_key_values", None)
        return done.logits[0]

    def write(self, sampling: Sampling, logits: torch.Tensor) -> tuple[Reply, np.ndarray]:
        reply = Reply(sampling)
        means = ReplyMeans([reply], len(self.layers))
        heat = np.array([sampling.temperature])
        while not reply.done:
            token = draw(logits, heat, reply.uniform[[len(reply.ids)]])[0]
            if reply.append(token, self.tree.decode, self.tree.stops):
                self.tree.total.reply += 1
                logits = self.call([token], [0], lambda slot, hidden: means.hold(slot, [0], hidden[0, -1:]))
            means.commit()
        return reply, means.means(self.width)[0]
