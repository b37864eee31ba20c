"""One request at a time: for architectures that cannot be packed, and to check those that can.

Slower and with the same results: a plain causal forward pass per request, the same pooling and sampling. A
prompt is forwarded at once; if memory runs out, in parts that see what came before in the model's own cache.

Shape letters: T tokens of the request   C tokens forwarded now   n rows whose logits are wanted
V vocabulary   A answers   L layers   D hidden size
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from analysis.base.errors import UserError
from analysis.engine.context import Context
from analysis.engine.memory import with_less_memory
from analysis.engine.patches import engaged
from analysis.engine.replies import Reply, ReplyMeans, Sampling, draw_next
from analysis.engine.request import Reading, Request
from analysis.engine.steering import Interventions
from analysis.process_hidden import Sink, read_layers


def read_plain(
    context: Context,
    requests: Sequence[Request],
    layers: Sequence[int],
    answers: Sequence[int],
    progress: Callable[[int], object] | None = None,
    expect: Callable[[int], object] | None = None,
) -> list[Reading]:
    """Do what PrefixTree.read does, forwarding each request on its own."""
    if expect is not None:
        expect(sum(len(r.ids) for r in requests))
    readings: list[Reading] = []
    most = max((len(r.ids) for r in requests), default=0)
    with torch.inference_mode(), engaged(context.model):
        for request in requests:
            work = partial(_read_one, context, request, layers, answers)
            begin = min(most, len(request.ids))
            reading, took = with_less_memory(work, begin, min(begin, context.smallest_budget))
            most = most if took == begin else took  # the next prompts are not tried in one piece again
            readings.append(reading)
            context.total.prompt += len(request.ids)
            context.total.asked += len(request.ids)
            if progress is not None:
                progress(len(request.ids))
    return readings


def _read_one(
    context: Context, request: Request, layers: Sequence[int], answers: Sequence[int], most: int
) -> Reading:
    """Read one request, its prompt in parts of at most ``most`` tokens."""
    return _PlainRead(context, request, layers, answers).go(most)


class _PlainRead:
    def __init__(
        self, context: Context, request: Request, layers: Sequence[int], answers: Sequence[int]
    ) -> None:
        self.context, self.request, self.layers, self.answers = context, request, layers, list(answers)
        self.steering = Interventions(context.blocks, [(request.steering, len(request.ids))])
        self.takes = inspect.signature(context.model.forward).parameters
        self.cache: object = None
        self.ids: list[int] = []
        self.pooled = np.zeros((len(request.spans), len(layers), context.width), np.float32)

    def go(self, most: int) -> Reading:
        request = self.request
        logits = self.prompt(most)
        lengths = np.array([stop - start for start, stop in request.spans], np.float32)
        answers = logits[: len(request.logits_at), self.answers].float().cpu().numpy()
        reading = Reading(self.pooled / lengths[:, None, None], answers)
        if request.reply:
            reading.reply, reading.reply_pooled = self.write(request.reply, logits[-1:])
        return reading

    def prompt(self, most: int) -> Float[torch.Tensor, "n V"]:
        """Forward the prompt; return logits at positions asked for, and the last if there is a reply."""
        request, ids = self.request, np.asarray(self.request.ids).tolist()
        rows = np.array([*request.logits_at, *([len(ids) - 1] if request.reply else [])], np.int64)
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for start in range(0, len(ids), most):
            part = ids[start : start + most]
            here = np.flatnonzero((start <= rows) & (rows < start + len(part)))
            parts.append(self.call(part, (rows[here] - start).tolist(), partial(self.pool, start)))
            order += here.tolist()
        return torch.cat(parts)[np.argsort(order)]

    def pool(self, first: int, slot: int, hidden: Float[torch.Tensor, "1 C D"]) -> None:
        """Add the states of the tokens from ``first`` on to the sums over their spans."""
        for s, (start, stop) in enumerate(self.request.spans):
            inside = hidden[0, max(start - first, 0) : max(stop - first, 0)]
            self.pooled[s, slot] += inside.float().sum(0).cpu().numpy()

    def call(self, ids: list[int], rows: list[int], sink: Sink) -> Float[torch.Tensor, "n V"]:
        """Forward ``ids`` after what came before; return logits of n ``rows`` of them.

        A model that hands back no keys and values is given everything again.
        """
        context = self.context
        self.ids += ids
        before = len(self.ids) - len(ids)
        if self.cache is None and before:
            self.check_whole()
            ids, rows, before = self.ids, [len(self.ids) - 1], 0
        inputs: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        if before and "position_ids" in self.takes:  # some count from 0 again behind a cache
            inputs["position_ids"] = torch.arange(before, len(self.ids), device=context.device)[None]
        if selects := "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = torch.tensor(rows, dtype=torch.long)
        context.total.calls += 1
        acting = self.steering.acting(self.steering.tokens(0, len(self.ids))[-len(ids) :])
        with acting, read_layers(context.model, self.layers, sink):
            done = context.model(input_ids=torch.tensor([ids], device=context.device), **inputs)
        self.cache = getattr(done, "past_key_values", None)
        return done.logits[0] if selects else done.logits[0, rows]

    def check_whole(self) -> None:
        """Raise UserError if the prompt comes in parts, which a model without keys and values cannot join."""
        if len(self.ids) <= len(self.request.ids):
            raise UserError(
                f"out of memory, and {type(self.context.model).__name__} cannot take a prompt of "
                f"{len(self.request.ids)} tokens in parts: use fewer examples (--n_train), a smaller "
                "model, or a smaller --dtype"
            )

    def write(
        self, sampling: Sampling, logits: Float[torch.Tensor, "1 V"]
    ) -> tuple[Reply, Float[np.ndarray, "L D"]]:
        context, reply = self.context, Reply(sampling)
        means = ReplyMeans([reply], len(self.layers))
        while not reply.done:
            (token,) = draw_next(logits, [reply])
            if reply.append(token, context.decode, context.stops):
                context.total.reply += 1
                logits = self.call([token], [0], lambda slot, hidden: means.hold(slot, [0], hidden[0, -1:]))
            means.commit()
        return reply, means.means(context.width)[0]
