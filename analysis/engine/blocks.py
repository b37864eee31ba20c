"""Attention for many short branches on one short prefix, as a batch of blocks; for devices with fast kernels.

A dense mask makes 4,000 packed tokens look at all 4,000, of which a sentence sees a hundred. In blocks each
token looks at the prefix and at its own block: that is little work next to the linear layers.

Shape letters: C tokens forwarded now   B blocks   W places of a block   P slots before   H query heads
G key/value heads   E head size
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

WIDTH = 128
"""Places of a block, unless a subtree has more."""
WIDEST = 512
LONGEST = 1024
"""Largest blocks, and longest prefix, which every block gets a copy of."""


@dataclass(frozen=True)
class Blocks:
    """Rows of one forward call in blocks that see nothing of each other."""

    rows: Int[torch.Tensor, "B W"]
    """Row at each place; places that stay empty hold row 0."""
    places: Int[torch.Tensor, " C"]
    """Where each row stands in the flattened blocks."""
    seen: Bool[torch.Tensor, "B 1 W PW"]
    """Whether a place sees each of the P slots before and the W places of its block."""

    def on(self, device: torch.device) -> Blocks:
        """Return the same on a device: the blocks of a model may lie on several."""
        if self.rows.device == device:
            return self
        return Blocks(*(part.to(device) for part in (self.rows, self.places, self.seen)))


def make_blocks(
    nodes: Int[np.ndarray, " C"],
    parent: Int[np.ndarray, " M"],
    end: Int[np.ndarray, " M"],
    before: Int[np.ndarray, " P"],
    device: torch.device,
) -> Blocks | None:
    """Return blocks of whole subtrees, or None where blocks would be large or their prefix long.

    Args:
        nodes: (C,) int64 trie nodes forwarded now: subtrees in preorder, one after the other.
        parent: (M,) of the trie.
        end: (M,) of the trie.
        before: (P,) int64 nodes in the slots shown before them.
        device: of the model.
    """
    cuts = cut_subtrees(np.flatnonzero(~np.isin(parent[nodes], nodes)), len(nodes), WIDTH)
    sizes = np.diff(cuts)
    if len(before) > LONGEST or sizes.max() > WIDEST or len(sizes) < 2:
        return None
    block = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(nodes)) - np.repeat(cuts[:-1], sizes)
    rows = np.zeros((len(sizes), sizes.max()), np.int64)
    rows[block, place] = np.arange(len(nodes))
    own, shared = nodes[rows], np.broadcast_to(before, (len(sizes), len(before)))
    others = np.concatenate([shared, own], axis=1)[:, None]  # (B, 1, P + W)
    seen = (others <= own[:, :, None]) & (own[:, :, None] < end[others])
    filled = np.arange(rows.shape[1]) < sizes[:, None]
    seen[:, :, len(before) :] &= filled[:, None]
    seen[~filled] = True  # what stands at an empty place is not used, but it shall be a number
    tensors = (torch.from_numpy(a).to(device) for a in (rows, block * rows.shape[1] + place, seen[:, None]))
    return Blocks(*tensors)


def cut_subtrees(
    roots: Int[np.ndarray, " n"], count: int, most: int, parents: Int[np.ndarray, " {count}"] | None = None
) -> list[int]:
    """Return where to cut rows between subtrees, from 0 to the end: as many of them together as fit.

    Args:
        roots: rows at which subtrees begin, the first of them 0.
        count: number of rows.
        most: rows between two cuts, unless a subtree has more.
        parents: (count,) parent of each row's node; given, subtrees of different parents are kept apart.
    """
    cuts = [0]
    for here, following in zip(roots[1:], [*roots, count][2:], strict=True):
        apart = parents is not None and parents[here] != parents[cuts[-1]]
        if apart or following - cuts[-1] > most:
            cuts.append(int(here))
    return [*cuts, count]


def attend_in_blocks(
    query: Float[torch.Tensor, "1 H C E"],
    key: Float[torch.Tensor, "1 G S E"],
    value: Float[torch.Tensor, "1 G S E"],
    blocks: Blocks,
    scale: float,
) -> Float[torch.Tensor, "1 C H E"]:
    """Attend in blocks; the S slots are P before and the C own ones."""
    count, places = query.shape[2], blocks.rows.shape
    keys, values = (_own_and_before(states, blocks.rows, count, query.shape[1]) for states in (key, value))
    rows = query[0][:, blocks.rows].transpose(0, 1)
    found = scaled_dot_product_attention(rows, keys, values, attn_mask=blocks.seen, scale=scale)
    return found.transpose(1, 2).reshape(places.numel(), *found.shape[1:2], -1)[blocks.places][None]


def _own_and_before(
    states: Float[torch.Tensor, "1 G S E"], rows: Int[torch.Tensor, "B W"], count: int, heads: int
) -> Float[torch.Tensor, "B {heads} PW E"]:
    """Return P before and W own slots, PW in all: what each block looks at."""
    length = states.shape[2] - count
    own = states[0][:, length + rows].transpose(0, 1)
    before = states[:, :, :length].expand(len(rows), -1, -1, -1)
    return repeat_kv(torch.cat([before, own], dim=2), heads // states.shape[1])
