"""Token sequences as a trie: what they share is there once.

Nodes are numbered in preorder, so the subtree of node t is the range [t, end[t]) and "k is an ancestor of
q, or q itself" is ``k <= q < end[k]``: attention masks need no other bookkeeping.

Shape letters: M distinct tokens (nodes)   B sequences   T tokens of one sequence
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Trie:
    """All distinct (prefix, token, variant) triples of a set of sequences."""

    token: Int[np.ndarray, " M"]
    """(M,) int64 token id."""
    variant: Int[np.ndarray, " M"]
    """(M,) int64, tells apart tokens that must not be shared although their ids are equal."""
    parent: Int[np.ndarray, " M"]
    """(M,) int64 node before this one, -1 at the start of a sequence."""
    depth: Int[np.ndarray, " M"]
    """(M,) int64 position in the sequence, from 0."""
    end: Int[np.ndarray, " M"]
    """(M,) int64, one past the last node of the subtree."""
    paths: list[Int[np.ndarray, " _"]]
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
    sequences: Sequence[Sequence[SupportsIndex] | Int[np.ndarray, " _"]],
    variants: Sequence[np.ndarray] | None = None,
) -> Trie:
    """Merge sequences of token ids where they begin alike.

    Args:
        sequences: B sequences of token ids, below 2^32.
        variants: B arrays (T,) of numbers from 0; tokens merge only if these are equal, too. None: all 0.

    A trunk of three tokens with two branches, of one token and of two; node 3 is the short branch:

        >>> trie = build_trie([[7, 8, 9, 1], [7, 8, 9, 2, 3]])
        >>> trie.token.tolist(), trie.parent.tolist()
        ([7, 8, 9, 1, 2, 3], [-1, 0, 1, 2, 2, 4])
        >>> trie.end.tolist()  # the subtree of node 4 is [4, 6)
        [6, 6, 6, 4, 6, 6]
        >>> [path.tolist() for path in trie.paths]
        [[0, 1, 2, 3], [0, 1, 2, 4, 5]]

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


def _common_prefix(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
