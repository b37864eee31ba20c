"""One packed read: the plan's steps, executed against one cache.

Shape letters: C tokens forwarded now   L layers   D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int

from analysis.engine.cache import TreeCache
from analysis.engine.context import Context
from analysis.engine.kernels import return_memory
from analysis.engine.logits import Logits
from analysis.engine.memory import with_less_memory
from analysis.engine.passes import Passes
from analysis.engine.patches import engaged
from analysis.engine.plan import Crop, Decode, Forward, Plan, make_plan
from analysis.engine.replies import Reply
from analysis.engine.request import Reading, Request
from analysis.engine.sight import MODES
from analysis.engine.spans import SpanMeans
from analysis.engine.steering import Interventions
from analysis.engine.table import SlotTable
from analysis.engine.trie import Trie, build_trie
from analysis.engine.writer import ReplyWriter

TRIM_EVERY = 8
"""Steps after which a CPU gives back freed memory: more often costs time, since it is soon needed again."""

Progress = Callable[[int], object]
"""Is called with the number of tokens of each finished step."""


def read_packed(
    context: Context,
    requests: Sequence[Request],
    layers: Sequence[int],
    answers: Sequence[int],
    progress: Progress | None = None,
    expect: Callable[[int], object] | None = None,
) -> list[Reading]:
    """Do what PrefixTree.read does, each distinct token once, with fewer at once when memory runs out."""

    def attempt(tokens: int) -> list[Reading]:
        context.token_budget = tokens
        run = Run(context, requests, layers, answers, progress)
        if expect is not None:
            expect(run.most_tokens)
        return run.go()

    return with_less_memory(attempt, context.token_budget, context.smallest_budget)[0]


class Run:
    """One packed read: executes the plan's steps against one cache."""

    def __init__(
        self,
        context: Context,
        requests: Sequence[Request],
        layers: Sequence[int],
        answers: Sequence[int],
        progress: Progress | None = None,
    ) -> None:
        self.context, self.requests = context, requests
        self.progress = progress or (lambda tokens: None)
        way = MODES[context.mode]
        steering = Interventions(context.blocks, [(r.steering, len(r.ids)) for r in requests])
        self.trie: Trie = build_trie([r.ids for r in requests], steering.prompts)
        replies = {b: r.reply.max_new_tokens for b, r in enumerate(requests) if r.reply}
        self.plan: Plan = make_plan(self.trie, replies, context.token_budget, way.similar)
        self.most_tokens = len(self.trie) + sum(replies.values())
        self.cache = TreeCache(len(context.blocks), self.plan.slots, way.kept_as)
        self.table = SlotTable(self.trie, self.plan.slots)
        self.attending = way(context.masks, self.table, context.device)
        self.spans = SpanMeans(self.trie.paths, requests, len(layers))
        self.logits = Logits(self.trie.paths, requests, answers)
        self.replies: dict[int, tuple[Reply, np.ndarray]] = {}
        # without logits the model can stop after the last layer that is read
        stop_early = not len(self.logits.wanted) and bool(layers)
        self.passes = Passes(context, self.cache, steering, layers, stop_early)

    def go(self) -> list[Reading]:
        """Do all steps; return what was read, in the order of the requests."""
        context, own = self.context, self.attending.by_layout
        on_cpu = context.device.type == "cpu"
        changes = engaged(context.model, attention=own, products=True, heads=on_cpu)
        with torch.inference_mode(), changes:
            for number, step in enumerate(self.plan.steps, start=1):
                if on_cpu and number % TRIM_EVERY == 0:
                    return_memory()
                if isinstance(step, Forward):
                    self.forward(step.nodes)
                elif isinstance(step, Crop):
                    self.table.crop(step.length)
                elif isinstance(step, Decode):
                    self.write(step.requests)
        context.total.prompt += len(self.trie)
        context.total.asked += sum(len(r.ids) for r in self.requests)
        return self.collect()

    def forward(self, nodes: Int[np.ndarray, " C"]) -> None:
        """Forward nodes whose ancestors are cached, add up span sums, keep wanted logits."""
        trie = self.trie
        places, runs = self.table.append(nodes)
        sight = self.attending.prompt(nodes, places, runs)
        rows = np.flatnonzero(np.isin(nodes, self.logits.wanted))
        logits = self.passes.run(
            trie.token[nodes], trie.depth[nodes], trie.variant[nodes], places, sight, rows,
            self.spans.step(nodes),
        )  # fmt: skip
        if len(rows):
            self.logits.keep(nodes[rows], logits)
        self.progress(len(nodes))

    def write(self, requests: Sequence[int]) -> None:
        """Write the replies of these requests, whose prompts are in the cache."""
        ends = self.logits.ends
        order = sorted(requests, key=lambda b: self.table.fork(ends[b]))  # groups side by side
        replies = [Reply(sampling) for b in order if (sampling := self.requests[b].reply)]
        nodes = np.array([ends[b] for b in order])
        acting = np.array([self.passes.steering.replies[b] for b in order])
        writer = ReplyWriter(self.passes, self.attending, replies, nodes, acting)
        means = writer.write(torch.stack([self.logits.after[int(node)] for node in nodes]), self.progress)
        self.replies.update(
            (b, pair) for b, pair in zip(order, zip(replies, means, strict=True), strict=True)
        )

    def collect(self) -> list[Reading]:
        """Divide sums by lengths and hand each request its part."""
        pooled = self.spans.means(self.context.width)
        readings, first = [], 0
        for b, (request, logits) in enumerate(zip(self.requests, self.logits.answered(), strict=True)):
            reply, mean = self.replies.get(b, (None, None))
            readings.append(Reading(pooled[first : first + len(request.spans)], logits, reply, mean))
            first += len(request.spans)
        return readings
