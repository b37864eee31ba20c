"""One request at a time: for architectures that cannot be packed, and to check those that can.

Slower and with the same results: a plain causal forward pass per request, the same pooling and sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply, ReplyMeans, Sampling, draw
from analysis.engine.request import Reading, Request
from analysis.engine.steering import Interventions
from analysis.process_hidden import read_layers

log = logging.getLogger(__name__)


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
