"""Token sequences as a trie, and the order in which to forward it so that each token is computed once.

Nodes are numbered in preorder, so the subtree of node t is the range [t, end[t]) and "k is an ancestor of
q, or q itself" is ``k <= q < end[k]``: attention masks need no other bookkeeping.

Shape letters: M distinct tokens (nodes)   B sequences   T tokens of one sequence
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trie:
    """All distinct (prefix, token, variant) triples of a set of sequences."""

    token: np.ndarray
    """(M,) int64 token id."""
    variant: np.ndarray
    """(M,) int64, tells apart tokens that must not be shared although their ids are equal."""
    parent: np.ndarray
    """(M,) int64 node before this one, -1 at the start of a sequence."""
    depth: np.ndarray
    """(M,) int64 position in the sequence, from 0."""
    end: np.ndarray
    """(M,) int64, one past the last node of the subtree."""
    paths: list[np.ndarray]
    """B arrays (T,) int64: the node of each token of each sequence, in the order given."""

    def __len__(self) -> int:
        return len(self.token)

    def children(self, node: int) -> Iterator[int]:
        """Yield the nodes that follow ``node``, or the first nodes of all sequences for -1."""
        child, stop = (node + 1, int(self.end[node])) if node >= 0 else (0, len(self))
        while child < stop:
            yield child
            child = int(self.end[child])

    def size(self, node: int) -> int:
        """Number of nodes in the subtree of ``node``."""
        return int(self.end[node]) - node


def build_trie(
    sequences: Sequence[Sequence[int] | np.ndarray], variants: Sequence[np.ndarray] | None = None
) -> Trie:
    """Merge sequences of token ids where they begin alike.

    Args:
        sequences: B sequences of token ids, below 2^32.
        variants: B arrays (T,) of numbers from 0; tokens merge only if these are equal, too. None: all 0.

    Sorted sequences are inserted one by one: the part that a sequence shares with the one before it is
    there already, the rest is one run of new nodes. This gives preorder numbers without a search.
    """
    arrays = [np.asarray(seq, dtype=np.int64) for seq in sequences]
    number = ">u4"  # big-endian bytes of fixed width sort like the numbers themselves
    if variants is not None:
        number = ">u8"
        arrays = [ids + (kind << 32) for ids, kind in zip(arrays, variants, strict=True)]
    order = sorted(range(len(arrays)), key=lambda b: arrays[b].astype(number).tobytes())
    total = sum(len(a) for a in arrays)
    token, parent, depth, end = (np.empty(total, np.int64) for _ in range(4))
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(arrays)
    count, last, last_path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    for b in order:
        ids = arrays[b]
        shared = _common_prefix(last, ids)
        end[last_path[shared:]] = count
        new = slice(count, count + len(ids) - shared)
        token[new] = ids[shared:]
        depth[new] = np.arange(shared, len(ids))
        parent[new] = np.arange(count - 1, new.stop - 1)
        if new.stop > count:
            parent[count] = last_path[shared - 1] if shared else -1
        paths[b] = np.concatenate([last_path[:shared], np.arange(new.start, new.stop)])
        count, last, last_path = new.stop, ids, paths[b]
    end[last_path] = count
    token, variant = token[:count] & 0xFFFFFFFF, token[:count] >> 32
    return Trie(token, variant, parent[:count], depth[:count], end[:count], paths)


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


# ---------------------------------------------------------------- the plan

SIMILAR = 0.75
"""Subtrees are packed together if the trunk before one is at least this share of that before another."""


@dataclass(frozen=True)
class Forward:
    """Forward these nodes in one call; they are appended to the cache."""

    nodes: np.ndarray
    """(C,) int64; every ancestor is in the cache or earlier in this array."""
    prefix: int | None = None
    """Attend to the first ``prefix`` slots and these nodes only; None is all slots."""


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


def make_plan(trie: Trie, replies: dict[int, int], token_budget: int, decode_slots: int = 16384) -> Plan:
    """Order the work: a trunk is forwarded causally, what hangs off it in packed rows.

    Args:
        trie: the sequences.
        replies: request -> longest reply in tokens, for the requests that write.
        token_budget: most tokens in one forward call.
        decode_slots: most cache slots for prompts and replies of one group that is decoded together.
    """
    planner = _Planner(trie, replies, token_budget, decode_slots)
    planner.branches(-1, list(trie.children(-1)))
    return Plan(tuple(planner.steps), planner.most_slots)


class _Planner:
    def __init__(self, trie: Trie, replies: dict[int, int], budget: int, decode_slots: int) -> None:
        self.trie, self.replies, self.budget, self.decode_slots = trie, replies, budget, decode_slots
        self.steps: list[Step] = []
        self.slots = self.most_slots = 0
        ends = sorted((int(trie.paths[b][-1]), b) for b in replies)
        self.reply_nodes = np.array([node for node, _ in ends], np.int64)
        self.reply_requests = [b for _, b in ends]

    def writers(self, node: int, stop: int) -> list[int]:
        """Return the requests that write a reply after a node in [node, stop)."""
        low, high = np.searchsorted(self.reply_nodes, [node, stop])
        return self.reply_requests[low:high]

    def forward(self, nodes: np.ndarray) -> None:
        for start in range(0, len(nodes), self.budget):
            self.steps.append(Forward(nodes[start : start + self.budget]))
        self.grow(len(nodes))

    def grow(self, slots: int) -> None:
        self.slots += slots
        self.most_slots = max(self.most_slots, self.slots)

    def crop(self, length: int) -> None:
        if self.slots != length:
            self.steps.append(Crop(length))
            self.slots = length

    def tree(self, root: int) -> None:
        """Forward the subtree of ``root``; the cache holds the ancestors of ``root`` and nothing else."""
        trunk, hanging = self.heavy_path(root)
        self.forward(trunk)
        depth = self.slots
        ends = np.isin(self.reply_nodes, trunk)
        writing = [b for b, on_trunk in zip(self.reply_requests, ends, strict=True) if on_trunk]
        writers = [c for c in hanging if self.trie.size(c) <= self.budget and self.writes(c)]
        self.decode_groups(writing, writers, depth)
        done = set(writers)
        self.branches(root, [c for c in hanging if c not in done])

    def writes(self, node: int) -> bool:
        return bool(self.writers(node, int(self.trie.end[node])))

    def heavy_path(self, root: int) -> tuple[np.ndarray, list[int]]:
        """Return the path that follows the largest subtree, and the nodes that hang off it."""
        trunk, hanging, node = [root], [], root
        while True:
            children = list(self.trie.children(node))
            if not children:
                return np.array(trunk, np.int64), hanging
            node = max(children, key=self.trie.size)
            hanging += [c for c in children if c != node]
            trunk.append(node)

    def decode_groups(self, on_trunk: list[int], subtrees: list[int], depth: int) -> None:
        """Decode replies in groups that fit; their prompts stay in the cache until they are written."""
        group, requests, used = [], [*on_trunk], sum(self.replies[b] for b in on_trunk)
        for child in sorted(subtrees):
            own = self.writers(child, int(self.trie.end[child]))
            need = self.trie.size(child) + sum(self.replies[b] for b in own)
            if requests and used + need > self.decode_slots:
                self.decode(group, requests, depth)
                group, requests, used = [], [], 0
            group.append(child)
            requests += own
            used += need
        if requests:
            self.decode(group, requests, depth)

    def decode(self, subtrees: list[int], requests: list[int], depth: int) -> None:
        for pack in self.packs(subtrees):
            nodes = np.concatenate([np.arange(c, self.trie.end[c]) for c in pack])
            self.steps.append(Forward(nodes, int(self.trie.depth[pack[0]])))
            self.grow(len(nodes))
        self.steps.append(Decode(tuple(requests)))
        self.grow(sum(self.replies[b] for b in requests))
        self.crop(depth)

    def packs(self, subtrees: list[int]) -> list[list[int]]:
        """Put subtrees that leave the trunk at similar depths together, deepest first.

        What hangs off the start of a long trunk need not be compared with all of it.
        """
        found: list[list[int]] = []
        used, depth = 0, self.trie.depth
        for node in sorted(subtrees, key=lambda c: (-depth[c], c)):
            size = self.trie.size(node)
            near = found and depth[node] >= SIMILAR * depth[found[-1][0]]
            if not near or used + size > self.budget:
                found.append([])
                used = 0
            found[-1].append(node)
            used += size
        return found

    def branches(self, root: int, nodes: list[int]) -> None:
        """Forward subtrees that hang at any depth, deepest first, so that the cache only shrinks."""
        pack: list[int] = []
        packed = 0
        depth = self.trie.depth
        for node in sorted(nodes, key=lambda c: (-depth[c], c)):
            size = self.trie.size(node)
            large = size > self.budget or self.writes(node)
            if pack and (large or packed + size > self.budget):
                self.flush(pack)
                pack, packed = [], 0
            if large:
                self.crop(int(depth[node]))
                self.tree(node)
            else:
                pack.append(node)
                packed += size
        if pack:
            self.flush(pack)
        self.crop(int(depth[root]) if root >= 0 else 0)

    def flush(self, pack: list[int]) -> None:
        """Forward small subtrees in one packed row, on a cache cut to the deepest fork among them."""
        base = int(self.trie.depth[pack[0]])
        self.crop(base)
        self.forward(np.concatenate([np.arange(c, self.trie.end[c]) for c in pack]))
        self.crop(base)
