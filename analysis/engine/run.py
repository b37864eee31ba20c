"""One call of PrefixTree.read: the plan's steps, executed against one cache.

Shape letters: C tokens forwarded now   S cache slots in use   L layers   D hidden size   V vocabulary
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from analysis.engine.attention import (
    Layout,
    Slots,
    is_chain,
    laid_out,
    prompt_layout,
    runs_of,
    tree_attention,
)
from analysis.engine.blocks import Blocks, make_blocks
from analysis.engine.cache import TreeCache, shared_heads
from analysis.engine.kernels import fast_linear, return_memory
from analysis.engine.masks import Mask
from analysis.engine.plan import SIMILAR, Crop, Decode, Forward, Plan, make_plan
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply
from analysis.engine.request import Reading, Request
from analysis.engine.spans import SpanMeans
from analysis.engine.steering import Interventions
from analysis.engine.trie import Trie, build_trie
from analysis.engine.writer import ReplyWriter
from analysis.models.blocks import decoder_blocks
from analysis.process_hidden import Sink, StopForward, read_layers

TRIM_EVERY = 8
"""Steps after which a CPU gives back freed memory: more often costs time, since it is soon needed again."""


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
        by_groups = tree.mode == "slots"
        self.plan: Plan = make_plan(self.trie, replies, tree.token_budget, 0.0 if by_groups else SIMILAR)
        self.most_tokens = len(self.trie) + sum(replies.values())
        blocks, kept_as = len(decoder_blocks(tree.model)), torch.float32 if by_groups else None
        self.cache = TreeCache(blocks, self.plan.slots, kept_as)
        self.slots = np.empty(self.plan.slots, np.int64)  # node in each slot, -1 for a reply's token
        self.used = 0
        self.spans = SpanMeans(self.trie.paths, requests, len(self.layers))
        self.root = np.full(len(self.trie), -1)  # subtree that a node was packed in, -1 for nodes of a chain
        self._index_logits()
        self.prompt_logits: dict[int, torch.Tensor] = {}
        self.replies: dict[int, tuple[Reply, np.ndarray]] = {}
        # without logits the model can stop after the last layer that is read
        self.stop_early = not len(self.wanted) and bool(self.layers)

    # ------------------------------------------------------------ what to read where

    def _index_logits(self) -> None:
        """List the nodes whose logits are wanted: answer positions and the ends of prompts with replies."""
        pairs = zip(self.requests, self.trie.paths, strict=True)
        at = [path[list(request.logits_at)] for request, path in pairs]
        self.answer_nodes = np.unique(np.concatenate([*at, np.empty(0, np.int64)]))
        self.prompt_ends = {b: int(self.trie.paths[b][-1]) for b, r in enumerate(self.requests) if r.reply}
        ends = np.array(list(self.prompt_ends.values()), np.int64)
        self.wanted = np.union1d(self.answer_nodes, ends)
        self.answer_logits: list[tuple[np.ndarray, torch.Tensor]] = []
        """Places in ``answer_nodes``, and their logits (count, A) on the model's device."""

    def go(self) -> list[Reading]:
        tree = self.tree
        own = nullcontext() if tree.mode == "mask" else tree_attention(tree.model)
        with torch.inference_mode(), shared_heads(tree.device), fast_linear(tree.model), own:
            for number, step in enumerate(self.plan.steps, start=1):
                if tree.device.type == "cpu" and number % TRIM_EVERY == 0:
                    return_memory()
                if isinstance(step, Forward):
                    self.forward(step)
                elif isinstance(step, Crop):
                    self.cache.crop(step.length)
                    self.used = step.length
                elif isinstance(step, Decode):
                    ReplyWriter(self, step.requests).write()
        total = tree.total
        total.prompt += len(self.trie)
        total.asked += sum(len(r.ids) for r in self.requests)
        return self.collect()

    # ------------------------------------------------------------ prompts

    def forward(self, step: Forward) -> None:
        """Forward nodes whose ancestors are cached, add up span sums, keep wanted logits."""
        nodes, first = step.nodes, self.used
        runs = self.runs_to(nodes)
        self.slots[first : first + len(nodes)] = nodes
        self.used += len(nodes)
        if not is_chain(nodes, self.trie.parent):
            roots = np.isin(self.trie.parent[nodes], list(runs))
            self.root[nodes] = nodes[roots][np.cumsum(roots) - 1]
        layout, mask = self.visible(nodes, first, runs)
        rows = np.flatnonzero(np.isin(nodes, self.wanted))
        both = (self.trie.token[nodes], self.trie.depth[nodes])
        ids, position = (torch.from_numpy(a).to(self.tree.device) for a in both)
        adder = self.spans.step(nodes)
        with self.steering.acting(self.trie.variant[nodes]), laid_out(layout):
            logits = self.call(ids, position, mask, rows, adder)
        if len(rows):
            self.keep_logits(nodes[rows], logits)
        self.progress(len(nodes))

    def runs_to(self, nodes: np.ndarray) -> dict[int, tuple[Slots, ...]]:
        """Return, for each parent of ``nodes`` that is not among them, the slots of it and its ancestors."""
        parents = np.unique(self.trie.parent[nodes])
        return {int(node): runs_of(self.path_slots(node)) for node in parents[~np.isin(parents, nodes)]}

    def path_slots(self, node: int) -> np.ndarray:
        """Return the slots of a node and its ancestors; none for -1."""
        cached = self.slots[: self.used]
        return np.flatnonzero((0 <= cached) & (cached <= node) & (node < self.trie.end[cached]))

    def fork(self, node: int) -> int:
        """Return the node at which the path to ``node`` leaves the chain it hangs off; -1 above the first."""
        return int(self.trie.parent[self.root[node]]) if self.root[node] >= 0 else node

    def reserve(self, count: int) -> None:
        """Reserve slots for tokens that are no nodes."""
        self.cache.reserve(count)
        self.slots[self.used : self.used + count] = -1
        self.used += count

    def visible(
        self, nodes: np.ndarray, first: int, runs: dict[int, tuple[Slots, ...]]
    ) -> tuple[Layout | Blocks | None, Mask]:
        """Return what the mode needs to know of who sees what: a layout, or a dense mask.

        The mask that is given besides a layout has the right shape and takes no memory.
        """
        trie, new = self.trie, (first, self.used)
        if self.tree.mode == "slots":
            self.cache.show(None)
            empty = self.tree.masks.none(len(nodes), self.used, self.tree.device)
            return prompt_layout(nodes, trie.parent, trie.end, first, runs), empty
        seen_by_any = np.zeros(first, bool)
        for start, stop in itertools.chain.from_iterable(runs.values()):
            seen_by_any[start:stop] = True
        shown = np.concatenate([np.flatnonzero(seen_by_any), np.arange(*new)])
        self.cache.show(runs_of(shown))
        if self.tree.mode == "chain":
            before, chain = self.slots[shown[: -len(nodes)]], is_chain(nodes, trie.parent)
            layout = () if chain else make_blocks(nodes, trie.parent, trie.end, before, self.tree.device)
            if layout is not None:
                return layout, self.tree.masks.none(len(nodes), len(shown), self.tree.device)
        return None, self.tree.masks.build(*self.distances(nodes, self.slots[shown]))

    def distances(self, nodes: np.ndarray, shown: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whether ``shown`` nodes are ancestors of ``nodes``, and how many tokens lie between them."""
        device, trie = self.tree.device, self.trie
        now, slots = (torch.from_numpy(a).to(device) for a in (nodes, shown))
        ends, depth, position = (
            torch.from_numpy(a).to(device) for a in (trie.end[shown], trie.depth[shown], trie.depth[nodes])
        )
        allowed = (slots <= now[:, None]) & (now[:, None] < ends)  # preorder intervals that contain the token
        return allowed, position[:, None] - depth

    def keep_logits(self, nodes: np.ndarray, logits: torch.Tensor) -> None:
        """Keep what is asked for of logits (len(nodes), V), without waiting for the device."""
        places = np.searchsorted(self.answer_nodes, nodes)
        asked = np.flatnonzero(np.isin(nodes, self.answer_nodes))
        if len(asked) and len(self.answers):
            picked = logits[asked][:, self.answers.to(logits.device)]
            self.answer_logits.append((places[asked], picked.float()))
        ends = set(self.prompt_ends.values())
        for row, node in enumerate(nodes.tolist()):
            if node in ends:
                self.prompt_logits[node] = logits[row]

    def call(
        self, ids: torch.Tensor, position: torch.Tensor, mask: Mask, rows: np.ndarray, sink: Sink
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
        pooled = self.spans.means(self.tree.model.config.get_text_config().hidden_size)
        logits = np.empty((len(self.answer_nodes), len(self.answers)), np.float32)
        for places, found in self.answer_logits:
            logits[places] = found.cpu().numpy()
        readings, first = [], 0
        for b, (request, path) in enumerate(zip(self.requests, self.trie.paths, strict=True)):
            place = np.searchsorted(self.answer_nodes, path[list(request.logits_at)])
            reading = Reading(pooled[first : first + len(request.spans)], logits[place])
            reading.reply, reading.reply_pooled = self.replies.get(b, (None, None))
            readings.append(reading)
            first += len(request.spans)
        return readings
