"""One call of PrefixTree.read: the plan's steps, executed against one cache.

Shape letters: C tokens forwarded now   S cache slots in use   R replies   L layers   D hidden size
V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from analysis.prefix_tree import PrefixTree, Reading, Request
from analysis.process_hidden import StopForward, decoder_blocks, read_layers
from analysis.replies import Reply, ReplyMeans, draw
from analysis.steering import Interventions
from analysis.tree_cache import TreeCache, shared_heads
from analysis.trie import Crop, Decode, Forward, Plan, Trie, build_trie, make_plan

Sink = Callable[[int, torch.Tensor], None]


class Run:
    """One call of ``read``: executes the plan's steps against one cache."""

    def __init__(
        self,
        tree: PrefixTree,
        requests: Sequence[Request],
        layers: Sequence[int],
        answers: Sequence[int],
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.tree, self.requests, self.layers = tree, requests, list(layers)
        self.answers = torch.tensor(list(answers), dtype=torch.long)  # on the CPU, which indexes any device
        self.progress = progress or (lambda tokens: None)
        self.steering = Interventions(tree.model, [(r.steering, len(r.ids)) for r in requests])
        self.trie: Trie = build_trie([r.ids for r in requests], self.steering.prompts)
        replies = {b: r.reply.max_new_tokens for b, r in enumerate(requests) if r.reply}
        self.plan: Plan = make_plan(self.trie, replies, tree.token_budget)
        self.most_tokens = len(self.trie) + sum(replies.values())
        self.cache = TreeCache(len(decoder_blocks(tree.model)), self.plan.slots)
        self.slots = np.empty(self.plan.slots, np.int64)  # node in each slot, -1 for a reply's token
        self.used = 0
        self._index_spans()
        self._index_logits()
        self.sums: list[torch.Tensor | None] = [None] * len(self.layers)
        self.prompt_logits: dict[int, torch.Tensor] = {}
        self.replies: dict[int, tuple[Reply, np.ndarray]] = {}
        # without logits the model can stop after the last layer that is read
        self.stop_early = not len(self.wanted) and bool(self.layers)

    # ------------------------------------------------------------ what to read where

    def _index_spans(self) -> None:
        """List (node, span) pairs sorted by node, so that a step finds its own by bisection."""
        nodes, spans, lengths = [], [], []
        for request, path in zip(self.requests, self.trie.paths, strict=True):
            for start, stop in request.spans:
                nodes.append(path[start:stop])
                spans.append(np.full(stop - start, len(lengths)))
                lengths.append(stop - start)
        flat = np.concatenate([*nodes, np.empty(0, np.int64)])
        order = np.argsort(flat, kind="stable")
        self.span_nodes = flat[order]
        self.span_ids = np.concatenate([*spans, np.empty(0, np.int64)])[order]
        self.span_lengths = np.array(lengths, np.float32)

    def _index_logits(self) -> None:
        """List the nodes whose logits are wanted: answer positions and the ends of prompts with replies."""
        pairs = zip(self.requests, self.trie.paths, strict=True)
        at = [path[list(request.logits_at)] for request, path in pairs]
        self.answer_nodes = np.unique(np.concatenate([*at, np.empty(0, np.int64)]))
        self.prompt_ends = {b: int(self.trie.paths[b][-1]) for b, r in enumerate(self.requests) if r.reply}
        ends = np.array(list(self.prompt_ends.values()), np.int64)
        self.wanted = np.union1d(self.answer_nodes, ends)
        self.answer_logits = np.empty((len(self.answer_nodes), len(self.answers)), np.float32)

    def go(self) -> list[Reading]:
        with torch.inference_mode(), shared_heads(self.tree.device):
            for step in self.plan.steps:
                if isinstance(step, Forward):
                    self.forward(step)
                elif isinstance(step, Crop):
                    self.cache.crop(step.length)
                    self.used = step.length
                elif isinstance(step, Decode):
                    ReplyWriter(self, step.requests).write()
        total = self.tree.total
        total.prompt += len(self.trie)
        total.asked += sum(len(r.ids) for r in self.requests)
        return self.collect()

    # ------------------------------------------------------------ prompts

    def forward(self, step: Forward) -> None:
        """Forward nodes whose ancestors are cached, add up span sums, keep wanted logits."""
        nodes = step.nodes
        seen = np.concatenate([self.slots[: self.used if step.prefix is None else step.prefix], nodes])
        self.slots[self.used : self.used + len(nodes)] = nodes
        self.used += len(nodes)
        self.cache.attend_to(step.prefix)
        slots = torch.from_numpy(seen).to(self.tree.device)
        ends = torch.from_numpy(self.trie.end[seen]).to(self.tree.device)
        depth = torch.from_numpy(self.trie.depth[seen]).to(self.tree.device)
        now = slots[-len(nodes) :, None]
        allowed = (slots <= now) & (now < ends)  # ancestors: preorder intervals that contain the token
        position = depth[-len(nodes) :]
        mask = self.tree.masks.build(allowed, position[:, None] - depth)
        tokens, spans = self._spans_in(nodes)
        rows = np.flatnonzero(np.isin(nodes, self.wanted))
        ids = torch.from_numpy(self.trie.token[nodes]).to(self.tree.device)
        with self.steering.acting(self.trie.variant[nodes]):
            logits = self.call(
                ids, position, mask, rows, lambda slot, hidden: self.add(slot, hidden, tokens, spans)
            )
        for row, index in enumerate(rows):
            self.keep_logits(int(nodes[index]), logits[row])
        self.progress(len(nodes))

    def _spans_in(self, nodes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (token in this step, span) for every token of a span that is forwarded now."""
        low = np.searchsorted(self.span_nodes, nodes, "left")
        count = np.searchsorted(self.span_nodes, nodes, "right") - low
        tokens = np.repeat(np.arange(len(nodes)), count)
        within = np.arange(len(tokens)) - np.repeat(np.cumsum(count) - count, count)
        spans = self.span_ids[np.repeat(low, count) + within]
        return torch.from_numpy(tokens), torch.from_numpy(spans)

    def add(self, slot: int, hidden: torch.Tensor, tokens: torch.Tensor, spans: torch.Tensor) -> None:
        """Add the states (1, C, D) of this step's span tokens to their spans' sums, in float32."""
        if self.sums[slot] is None:
            shape = (len(self.span_lengths), hidden.shape[-1])
            self.sums[slot] = torch.zeros(shape, dtype=torch.float32, device=hidden.device)
        if len(tokens):
            picked = hidden[0, tokens.to(hidden.device)].float()
            self.sums[slot].index_add_(0, spans.to(hidden.device), picked)

    def keep_logits(self, node: int, logits: torch.Tensor) -> None:
        place = int(np.searchsorted(self.answer_nodes, node))
        if place < len(self.answer_nodes) and self.answer_nodes[place] == node:
            self.answer_logits[place] = logits[self.answers].float().cpu().numpy()
        if node in self.prompt_ends.values():
            self.prompt_logits[node] = logits

    def call(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        mask: object,
        rows: np.ndarray,
        sink: Sink,
    ) -> torch.Tensor | None:
        """Run the model on one packed row; return logits (len(rows), V), lm_head on those rows only."""
        model = self.tree.model
        inputs = {
            "input_ids": ids[None], "position_ids": position[None], "attention_mask": mask,
            "past_key_values": self.cache, "use_cache": True,
        }  # fmt: skip
        self.tree.total.calls += 1
        with read_layers(model, self.layers, sink, self.stop_early):
            if not len(rows):
                try:
                    model.base_model(**inputs)
                except StopForward:
                    pass
                return None
            return model(**inputs, logits_to_keep=torch.from_numpy(rows)).logits[0]

    # ------------------------------------------------------------ results

    def collect(self) -> list[Reading]:
        """Divide sums by lengths and hand each request its part."""
        width = self.tree.model.config.get_text_config().hidden_size
        shape = (len(self.span_lengths), len(self.layers), width)
        pooled = np.zeros(shape, np.float32)
        for slot, total in enumerate(self.sums):
            if total is not None:
                pooled[:, slot] = total.cpu().numpy() / self.span_lengths[:, None]
                self.sums[slot] = total = None  # else the result would be in memory twice
        readings, first = [], 0
        for b, (request, path) in enumerate(zip(self.requests, self.trie.paths, strict=True)):
            place = np.searchsorted(self.answer_nodes, path[list(request.logits_at)])
            reading = Reading(pooled[first : first + len(request.spans)], self.answer_logits[place])
            reading.reply, reading.reply_pooled = self.replies.get(b, (None, None))
            readings.append(reading)
            first += len(request.spans)
        return readings


class ReplyWriter:
    """Writes replies together: one token per unfinished reply per step."""

    def __init__(self, run: Run, requests: Sequence[int]) -> None:
        self.run, self.requests, tree = run, requests, run.tree
        self.replies = [Reply(run.requests[b].reply) for b in requests]
        self.means = ReplyMeans(self.replies, len(run.layers))
        self.ends = np.array([run.prompt_ends[b] for b in requests])
        self.variant = np.array([run.steering.replies[b] for b in requests])
        cached = run.slots[: run.used]
        seen = (cached <= self.ends[:, None]) & (self.ends[:, None] < run.trie.end[cached])
        # (R, slots) which slots each reply may look at, and the position of each slot's token
        self.allowed = torch.zeros(len(requests), run.plan.slots, dtype=torch.bool, device=tree.device)
        self.allowed[:, : run.used] = torch.from_numpy(seen).to(tree.device)
        self.depth = torch.zeros(run.plan.slots, dtype=torch.long, device=tree.device)
        self.depth[: run.used] = torch.from_numpy(run.trie.depth[cached]).to(tree.device)

    def write(self) -> None:
        """Draw, forward and pool until every reply has ended."""
        self.run.cache.attend_to(None)
        logits = torch.stack([self.run.prompt_logits[int(node)] for node in self.ends])
        writing = list(range(len(self.replies)))
        while writing:
            tokens = self.draw(logits, writing)
            forwarded = [r for r, token in zip(writing, tokens, strict=True) if self.append(r, token)]
            if forwarded:
                logits = self.step(forwarded)
            self.means.commit()
            alive = [i for i, r in enumerate(forwarded) if not self.replies[r].done]
            writing = [forwarded[i] for i in alive]
            logits = logits[alive] if writing else logits
        width = self.run.tree.model.config.get_text_config().hidden_size
        for b, reply, mean in zip(self.requests, self.replies, self.means.means(width), strict=True):
            self.run.replies[b] = (reply, mean)

    def draw(self, logits: torch.Tensor, writing: Sequence[int]) -> list[int]:
        replies = [self.replies[r] for r in writing]
        heat = np.array([reply.sampling.temperature for reply in replies])
        return draw(logits, heat, np.array([reply.uniform[len(reply.ids)] for reply in replies]))

    def append(self, row: int, token: int) -> bool:
        tree = self.run.tree
        return self.replies[row].append(token, tree.decode, tree.stops)

    def step(self, rows: Sequence[int]) -> torch.Tensor:
        """Forward the newest token of each of ``rows``; return logits (len(rows), V)."""
        run, device = self.run, self.run.tree.device
        replies = [self.replies[r] for r in rows]
        first, run.used = run.used, run.used + len(rows)
        places = torch.arange(first, run.used, device=device)
        self.allowed[torch.tensor(rows, device=device), places] = True
        base = run.trie.depth[self.ends[rows]]
        position = torch.from_numpy(base + [len(reply.ids) for reply in replies]).to(device)
        self.depth[places] = position
        allowed = self.allowed[torch.tensor(rows, device=device), : run.used]
        mask = run.tree.masks.build(allowed, position[:, None] - self.depth[: run.used])
        ids = torch.tensor([reply.ids[-1] for reply in replies], device=device)
        run.tree.total.reply += len(rows)
        run.progress(len(rows))
        with run.steering.acting(self.variant[rows]):
            return run.call(
                ids, position, mask, np.arange(len(rows)),
                lambda slot, hidden: self.means.hold(slot, rows, hidden[0]),
            )  # fmt: skip
