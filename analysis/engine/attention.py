"""Attention for the rows of a prefix tree: each token attends to its own ancestors, nothing else is computed.

A dense mask makes every token of a packed row look at every slot of the cache, most of which it may not see.
Who sees what in a forward pass is its ``Layout``, a keyword of the pass: ``model(..., tree_layout=layout)``.
transformers hands keywords that it does not know down to the function that computes attention, which is the
one below while the engine reads (analysis/engine/patches.py). Blocks that drop it (StableLM, Nemotron) meet
an error here, and their models are read with dense masks instead.

Shape letters: C tokens forwarded now   S cache slots
H query heads   G key/value heads   E head size   n rows of a group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from analysis.engine.blocks import Blocks, attend_in_blocks, cut_subtrees
from analysis.engine.kernels import product

NAME = "prefix_tree"
LARGE = 2**18  # attention weights of one head from which its own products pay; oneDNN keeps every new shape
SCORES = 2**20  # attention weights of one head computed at once: they stay in the processor's cache
BLOCK = 128  # rows of a packed group: what its subtrees may not see of each other is computed in vain

Slots = tuple[int, int]
"""Cache slots [start, stop)."""


@dataclass(frozen=True)
class Group:
    """Rows of one forward call that see the same."""

    rows: tuple[int, int]
    """Rows [start, stop) of the call."""
    runs: tuple[Slots, ...]
    """Every row sees all of these."""
    own: tuple[Slots, ...]
    """Some rows see some of these."""
    mask: Float[torch.Tensor, "n own"]
    """Over the slots of ``own``: 0 where the row sees the slot, else the most negative number."""
    in_order: bool = False
    """The own slots are those of the rows, which see none after their own."""

    @property
    def slots(self) -> int:
        """Number of slots that a row is compared with."""
        return sum(stop - start for start, stop in (*self.runs, *self.own))


@dataclass(frozen=True)
class Groups:
    """The rows come in groups, each of which sees the same slots but for a mask."""

    groups: tuple[Group, ...]
    """They hold every row once."""


@dataclass(frozen=True)
class Path:
    """The rows are one path after all slots that are shown."""


@dataclass(frozen=True)
class Dense:
    """The mask that the model is given says who sees what, as in its own attention."""


Layout = Groups | Path | Blocks | Dense
"""Who sees what in one forward pass."""


# ---------------------------------------------------------------- the layout of prompts


def prompt_layout(
    nodes: Int[np.ndarray, " C"],
    parent: Int[np.ndarray, " M"],
    end: Int[np.ndarray, " M"],
    first: int,
    runs_to: dict[int, tuple[Slots, ...]],
) -> list[Group]:
    """Return the layout of trie nodes that are forwarded now, into the slots from ``first`` on.

    Args:
        nodes: (C,) int64 subtrees in preorder, one after the other.
        parent: (M,) of the trie.
        end: (M,) of the trie.
        first: slot of the first node.
        runs_to: parent of a subtree -> slots of that parent and its ancestors.
    """
    count = len(nodes)
    if is_chain(nodes, parent):
        mask = additive(torch.ones(count, count, dtype=torch.bool).tril_(), torch.float32)
        return [Group((0, count), runs_to[int(parent[nodes[0]])], ((first, first + count),), mask, True)]
    groups = []
    roots = np.flatnonzero(np.isin(parent[nodes], list(runs_to)))
    for start, stop in pairwise(cut_subtrees(roots, count, BLOCK, parent[nodes])):
        own = nodes[start:stop]
        seen = (own <= own[:, None]) & (own[:, None] < end[own])
        mask = additive(torch.from_numpy(seen), torch.float32)
        runs = runs_to[int(parent[own[0]])]
        groups.append(Group((start, stop), runs, ((first + start, first + stop),), mask, True))
    return groups


def is_chain(nodes: Int[np.ndarray, " C"], parent: Int[np.ndarray, " M"]) -> bool:
    """Return whether each of ``nodes`` follows the one before it."""
    return bool((parent[nodes[1:]] == nodes[:-1]).all())


def runs_of(slots: Int[np.ndarray, " n"]) -> tuple[Slots, ...]:
    """Return increasing slot numbers as runs."""
    if not len(slots):
        return ()
    cuts = np.flatnonzero(np.diff(slots) > 1) + 1
    return tuple((int(part[0]), int(part[-1]) + 1) for part in np.split(slots, cuts))


def additive(seen: Bool[torch.Tensor, "*shape"], dtype: torch.dtype) -> Float[torch.Tensor, "*shape"]:
    """Return 0 where ``seen`` is True and the most negative number of ``dtype`` elsewhere."""
    zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return zeros.masked_fill_(~seen, torch.finfo(dtype).min)


# ---------------------------------------------------------------- attention


def _attention(
    module: torch.nn.Module,
    query: Float[torch.Tensor, "1 H C E"],
    key: Float[torch.Tensor, "1 G S E"],
    value: Float[torch.Tensor, "1 G S F"],
    attention_mask: Float[
        torch.Tensor,
        (
            1  # H C S
        ),
    ]
    | None,
    scaling: float | None = None,
    tree_layout: Layout | None = None,
    **options: Any,
) -> tuple[Float[torch.Tensor, "1 C H F"], None]:
    """Attend as transformers asks."""
    if tree_layout is None:
        raise RuntimeError(
            "attention was not told who sees what: this model does not pass keywords on to it, or it was "
            "called directly while another thread reads it"
        )
    if isinstance(tree_layout, Dense):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(tree_layout, Blocks):
        return attend_in_blocks(query, key, value, tree_layout.on(query.device), scale), None
    if isinstance(tree_layout, Groups):
        found = attend(query[0].float() * scale, key[0], value[0], tree_layout.groups)
        return found.to(query.dtype)[None], None
    return _attend_along(query, key, value, scale), None


def _attend_along(
    query: Float[torch.Tensor, "1 H C E"],
    key: Float[torch.Tensor, "1 G S E"],
    value: Float[torch.Tensor, "1 G S F"],
    scale: float,
) -> Float[torch.Tensor, "1 C H F"]:
    """Attend from rows that are one path after the other slots."""
    times = query.shape[1] // key.shape[1]
    bias = causal_lower_right(query.shape[2], key.shape[2])
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale).transpose(1, 2)


AttentionInterface.register(NAME, _attention)


def attend(
    query: Float[torch.Tensor, "H C E"],
    keys: Float[torch.Tensor, "G S E"],
    values: Float[torch.Tensor, "G S E"],
    groups: Sequence[Group],
) -> Float[torch.Tensor, "C H E"]:
    """Return the mean values of what each row sees, weighted by the softmax of query times key.

    Args:
        query: float32, scaled.
        keys, values: float32, of every slot.
        groups: they hold every row once.
    """
    out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
    folded = query.unflatten(0, (len(keys), -1))  # (G, H / G, C, E): heads that share keys together
    for group in groups:
        rows = slice(*group.rows)
        part = folded[:, :, rows]
        many = group.in_order and part.shape[1] * part.shape[2] * group.slots >= LARGE
        found = _many_rows(part, keys, values, group) if many else _few_rows(part, keys, values, group)
        out[rows] = found.flatten(0, 1).transpose(0, 1)
    return out


def _few_rows(
    query: Float[torch.Tensor, "G shared n E"],
    keys: Float[torch.Tensor, "G S E"],
    values: Float[torch.Tensor, "G S E"],
    group: Group,
) -> Float[torch.Tensor, "G shared n E"]:
    """Attend from some rows, whose heads are in groups that share keys: all at once, keys where they lie."""
    flat, spans = query.flatten(1, 2), (*group.runs, *group.own)
    weights = torch.cat([flat @ keys[:, start:stop].transpose(1, 2) for start, stop in spans], dim=2)
    weights.unflatten(1, query.shape[1:3])[..., -group.mask.shape[1] :] += group.mask
    torch.softmax(weights, -1, out=weights)
    parts = weights.split([stop - start for start, stop in spans], dim=2)
    out = sum(part @ values[:, start:stop] for part, (start, stop) in zip(parts, spans, strict=True))
    return out.unflatten(1, query.shape[1:3])


def _many_rows(
    query: Float[torch.Tensor, "G shared n E"],
    keys: Float[torch.Tensor, "G S E"],
    values: Float[torch.Tensor, "G S E"],
    group: Group,
) -> Float[torch.Tensor, "G shared n E"]:
    """Attend from rows in order: head by head, in blocks, without slots after a block."""
    keys, values = _gather(keys, group), _gather(values, group)
    shared, count = query.shape[1:3]
    before = keys.shape[1] - count
    block = max(32, SCORES // (shared * keys.shape[1]))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for start in range(0, count, block):
        stop = min(start + block, count)
        last, mask = before + stop, group.mask[start:stop, :stop]
        for head in range(len(keys)):
            weights = product(query[head, :, start:stop].flatten(0, 1), keys[head, :last])
            weights.unflatten(0, (shared, -1))[..., before:] += mask
            torch.softmax(weights, -1, out=weights)
            mean = product(weights, values[head, :last].T)
            out[head, :, start:stop] = mean.unflatten(0, (shared, -1))
    return out


def _gather(states: Float[torch.Tensor, "G S E"], group: Group) -> Float[torch.Tensor, "G own E"]:
    """Return the slots of the group, without a copy where these slots follow each other."""
    spans = (*group.runs, *group.own)
    if all(stop == start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)):
        return states[:, spans[0][0] : spans[-1][1]]
    return torch.cat([states[:, start:stop] for start, stop in spans], dim=1)
