"""The order in which a trie is forwarded, so that every token is computed once.

Shape letters: M distinct tokens (nodes)   B sequences   C tokens forwarded now
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from analysis.engine.trie import Trie

SIMILAR = 0.75
"""Subtrees are packed together if the trunk before one is at least this share of that before another."""


DECODE_SLOTS = 16384
"""Most cache slots for prompts and replies of one trunk that are decoded together."""


JOINT_SLOTS = 32768
"""Most cache slots in use while replies of several trunks wait to be decoded together."""


@dataclass(frozen=True)
class Forward:
    """Forward these nodes in one call; they are appended to the cache."""

    nodes: Int[np.ndarray, " C"]
    """Every ancestor is in the cache or earlier in this array."""


@dataclass(frozen=True)
class Crop:
    """Keep only the first ``length`` cache slots."""

    length: int


@dataclass(frozen=True)
class Decode:
    """Write the replies of these requests together; their prompts are in the cache."""

    requests: tuple[int, ...]


Step = Forward | Crop | Decode


@dataclass(frozen=True)
class Plan:
    """Steps that forward every node exactly once, and the cache slots that they need."""

    steps: tuple[Step, ...]
    slots: int


def make_plan(
    trie: Trie,
    replies: dict[int, int],
    token_budget: int,
    similar: float = 0.0,
    decode_slots: int = DECODE_SLOTS,
    joint_slots: int = JOINT_SLOTS,
) -> Plan:
    """Order the work: a trunk is forwarded causally, what hangs off it in packed rows.

    Replies wait with their prompts in the cache, so that those of many trunks are decoded together.

    A trunk of three tokens with two branches (see build_trie). What fits in one call is packed; else the
    trunk goes on into the larger branch, in calls of the budget, and the other branch is forwarded behind it,
    seeing the first three slots only. Replies to both are then written together, in slots 6 to 15:

        >>> from analysis.engine.trie import build_trie
        >>> trie = build_trie([[7, 8, 9, 1], [7, 8, 9, 2, 3]])
        >>> [getattr(step, "nodes", step) for step in make_plan(trie, {}, token_budget=8).steps]
        [array([0, 1, 2, 3, 4, 5]), Crop(length=0)]
        >>> plan = make_plan(trie, {0: 5, 1: 5}, token_budget=4)
        >>> [step.nodes.tolist() for step in plan.steps[:3]], plan.steps[3:]
        ([[0, 1, 2, 4], [5], [3]], (Decode(requests=(1, 0)), Crop(length=6), Crop(length=0)))
        >>> plan.slots
        16

    Args:
        trie: the sequences.
        replies: request -> longest reply in tokens, for the requests that write.
        token_budget: most tokens in one forward call.
        similar: see SIMILAR; 0 packs whatever fits, for attention that computes what is seen only.
        decode_slots: see DECODE_SLOTS.
        joint_slots: see JOINT_SLOTS.
    """
    planner = _Planner(trie, replies, token_budget, similar, decode_slots, joint_slots)
    planner.hang(list(trie.children(-1)), [], 0)
    planner.decode()
    planner.crop(0)
    return Plan(tuple(planner.steps), planner.most_slots)


class _Planner:
    def __init__(
        self, trie: Trie, replies: dict[int, int], budget: int, similar: float, decode: int, joint: int
    ) -> None:
        self.trie, self.replies, self.budget, self.similar = trie, replies, budget, similar
        self.decode_slots, self.joint_slots = decode, joint
        self.steps: list[Step] = []
        self.slots = self.most_slots = 0
        self.waiting: list[int] = []
        """Requests whose prompts are in the cache and whose replies are to be written."""
        self.held = 0
        """Slots up to here hold these prompts."""
        ends = sorted((int(trie.paths[b][-1]), b) for b in replies)
        self.reply_nodes = np.array([node for node, _ in ends], np.int64)
        self.reply_requests = [b for _, b in ends]

    def writers(self, node: int) -> list[int]:
        """Return the requests that write a reply after a node of the subtree of ``node``."""
        low, high = np.searchsorted(self.reply_nodes, [node, self.trie.end[node]])
        return self.reply_requests[low:high]

    def longest(self, requests: list[int]) -> int:
        """Return the most slots that the replies of ``requests`` take."""
        return sum(self.replies[b] for b in requests)

    def forward(self, nodes: Int[np.ndarray, " n"]) -> None:
        for start in range(0, len(nodes), self.budget):
            self.steps.append(Forward(nodes[start : start + self.budget]))
        self.grow(len(nodes))

    def grow(self, slots: int) -> None:
        self.slots += slots
        self.most_slots = max(self.most_slots, self.slots)

    def crop(self, length: int) -> None:
        """Free the slots from ``length`` on, but for prompts that wait for their replies."""
        length = max(length, self.held)
        if self.slots > length:
            self.steps.append(Crop(length))
            self.slots = length

    def decode(self) -> None:
        """Write the replies that wait."""
        if self.waiting:
            before = self.slots
            self.steps.append(Decode(tuple(self.waiting)))
            self.grow(self.longest(self.waiting))
            self.waiting, self.held = [], 0
            self.crop(before)

    def tree(self, root: int) -> None:
        """Forward the subtree of ``root``; the ancestors of ``root`` are in the cache."""
        before = self.slots
        trunk, hanging = self.heavy_path(root)
        self.forward(trunk)
        ends = np.isin(self.reply_nodes, trunk)
        writing = [b for b, on_trunk in zip(self.reply_requests, ends, strict=True) if on_trunk]
        self.hang(hanging, writing, self.slots)
        self.crop(before)

    def heavy_path(self, root: int) -> tuple[Int[np.ndarray, " n"], list[int]]:
        """Return the path that follows the largest subtree, and the nodes that hang off it."""
        trunk, node = [root], root
        hanging: list[int] = []
        while True:
            children = list(self.trie.children(node))
            if not children:
                return np.array(trunk, np.int64), hanging
            node = max(children, key=self.trie.size)
            hanging += [c for c in children if c != node]
            trunk.append(node)

    def hang(self, nodes: list[int], writing: list[int], top: int) -> None:
        """Forward the subtrees of ``nodes``, which hang off a trunk that ends at slot ``top``.

        Args:
            nodes: their parents are on the trunk or above it.
            writing: requests whose prompts end on the trunk.
            top: slots up to here are still needed after this.
        """
        quiet: list[int] = []
        writers: list[int] = []
        large: list[int] = []
        for node in nodes:
            writes, fits = bool(self.writers(node)), self.trie.size(node) <= self.budget
            # what writes and hangs off nothing is a trunk, too, however short
            (large if not fits or (writes and not top) else writers if writes else quiet).append(node)
        for pack in self.packs(quiet):
            self.pack(pack)
            self.crop(top)
        self.write(writing, writers, top)
        for node in sorted(large, key=lambda c: (-self.trie.depth[c], c)):
            need = self.trie.size(node) + self.longest(self.writers(node)) + self.longest(self.waiting)
            if self.slots + need > self.joint_slots:
                self.decode()
                self.crop(top)
            self.tree(node)

    def write(self, on_trunk: list[int], subtrees: list[int], top: int) -> None:
        """Forward prompts that hang off a trunk; their replies wait, or are decoded when too many do."""
        group: list[int] = []
        requests, used = [*on_trunk], self.longest(on_trunk)
        for child in sorted(subtrees):
            own = self.writers(child)
            need = self.trie.size(child) + self.longest(own)
            if requests and used + need > self.decode_slots:
                self.wait(group, requests)
                self.decode()
                self.crop(top)
                group, requests, used = [], [], 0
            group.append(child)
            requests += own
            used += need
        self.wait(group, requests)

    def wait(self, subtrees: list[int], requests: list[int]) -> None:
        for pack in self.packs(subtrees):
            self.pack(pack)
        if requests:
            self.waiting += requests
            self.held = self.slots

    def pack(self, subtrees: list[int]) -> None:
        self.forward(np.concatenate([np.arange(c, self.trie.end[c]) for c in subtrees]))

    def packs(self, subtrees: list[int]) -> list[list[int]]:
        """Put subtrees that leave the trunk at similar depths together, deepest first.

        With a dense mask, what hangs off the start of a long trunk is then not compared with all of it.
        """
        found: list[list[int]] = []
        used, depth = 0, self.trie.depth
        for node in sorted(subtrees, key=lambda c: (-depth[c], c)):
            size = self.trie.size(node)
            near = found and depth[node] >= self.similar * depth[found[-1][0]]
            if not near or used + size > self.budget:
                found.append([])
                used = 0
            found[-1].append(node)
            used += size
        return found
