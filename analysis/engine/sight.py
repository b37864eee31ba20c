"""Who sees what in each forward pass, in each way to attend.

    slots   runs of slots and small masks, group by group, in float32: for models on a CPU
    chain   rows that go on one path are causal and need no mask (flash attention), short branches are a batch
            of blocks (analysis/engine/blocks.py), others get a dense mask: for models on a GPU
    mask    the model's own attention with a dense mask: for everything else, such as sliding windows

Shape letters: C tokens forwarded now   S cache slots in use   R replies   n replies of a group
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel

from analysis.engine.attention import (
    Dense,
    Group,
    Groups,
    Layout,
    Path,
    Slots,
    additive,
    is_chain,
    prompt_layout,
    runs_of,
)
from analysis.engine.blocks import make_blocks
from analysis.engine.masks import Mask, Masks
from analysis.engine.plan import SIMILAR
from analysis.engine.table import SlotTable

NEAR = 64
"""Slots between two runs that are computed and masked rather than left out, to have fewer products."""


@dataclass(frozen=True)
class Sight:
    """What the tokens of one forward pass may look at."""

    shown: tuple[Slots, ...]
    """Cache slots that they are given, their own included."""
    mask: Mask
    """For the model; where there is a layout that does without, of the right shape and without memory."""
    layout: Layout | None = None
    """For analysis/engine/attention.py; None: the model attends by itself."""


class ReplySight(ABC):
    """What replies that are written together see, token by token."""

    @abstractmethod
    def step(
        self, rows: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"], position: Int[np.ndarray, " n"]
    ) -> Sight:
        """Return what the newest tokens see, which are seen by their own replies from now on.

        Args:
            rows: numbers of the replies that go on, rising.
            places: cache slots of their newest tokens.
            position: of these tokens in their sequences.
        """


class Attending(ABC):
    """One way to attend."""

    by_layout: ClassVar[bool]
    """Attention is computed by a layout, not by the model's own function."""
    similar: ClassVar[float] = SIMILAR
    """See analysis/engine/plan.py."""
    kept_as: ClassVar[torch.dtype | None] = None
    """Of keys and values in the cache; None: as they come."""

    def __init__(self, masks: Masks, table: SlotTable, device: torch.device) -> None:
        self.masks, self.table, self.device = masks, table, device

    @abstractmethod
    def prompt(
        self, nodes: Int[np.ndarray, " C"], places: Slots, runs: dict[int, tuple[Slots, ...]]
    ) -> Sight:
        """Return what nodes see; see SlotTable.append for the rest."""

    @abstractmethod
    def replies(
        self, ends: Int[np.ndarray, " R"], first: Int[np.ndarray, " R"], longest: Int[np.ndarray, " R"]
    ) -> ReplySight:
        """Return what replies see, whose slots follow those in use.

        Args:
            ends: last node of each prompt.
            first: slot of each reply's first token.
            longest: most tokens of each.
        """


class ByMask(Attending):
    """A dense mask, for the model's own attention."""

    by_layout = False

    def prompt(
        self, nodes: Int[np.ndarray, " C"], places: Slots, runs: dict[int, tuple[Slots, ...]]
    ) -> Sight:
        shown = self.shown(places, runs)
        return Sight(runs_of(shown), self.dense(nodes, shown))

    def replies(
        self, ends: Int[np.ndarray, " R"], first: Int[np.ndarray, " R"], longest: Int[np.ndarray, " R"]
    ) -> ReplySight:
        return _DenseReplies(self, ends, int(longest.sum()), None)

    def shown(self, places: Slots, runs: dict[int, tuple[Slots, ...]]) -> Int[np.ndarray, " S"]:
        """Return the slots that any of the new tokens sees, and theirs."""
        seen_by_any = np.zeros(places[0], bool)
        for start, stop in itertools.chain.from_iterable(runs.values()):
            seen_by_any[start:stop] = True
        return np.concatenate([np.flatnonzero(seen_by_any), np.arange(*places)])

    def dense(self, nodes: Int[np.ndarray, " C"], shown: Int[np.ndarray, " S"]) -> Mask:
        """Return the mask of nodes before these slots."""
        return self.masks.build(*self.table.distances(nodes, self.table.nodes[shown], self.device))


class ByChain(ByMask):
    """No mask on trunks, blocks for short branches, a dense mask for the rest."""

    by_layout = True

    def prompt(
        self, nodes: Int[np.ndarray, " C"], places: Slots, runs: dict[int, tuple[Slots, ...]]
    ) -> Sight:
        shown = self.shown(places, runs)
        layout = self.layout(nodes, shown)
        if isinstance(layout, Dense):
            return Sight(runs_of(shown), self.dense(nodes, shown), layout)
        return Sight(runs_of(shown), self.masks.none(len(nodes), len(shown), self.device), layout)

    def replies(
        self, ends: Int[np.ndarray, " R"], first: Int[np.ndarray, " R"], longest: Int[np.ndarray, " R"]
    ) -> ReplySight:
        return _DenseReplies(self, ends, int(longest.sum()), Dense())

    def layout(self, nodes: Int[np.ndarray, " C"], shown: Int[np.ndarray, " S"]) -> Layout:
        """Return the layout of nodes that are shown these slots, their own the last of them."""
        trie, before = self.table.trie, self.table.nodes[shown[: -len(nodes)]]
        if is_chain(nodes, trie.parent):
            return Path()
        return make_blocks(nodes, trie.parent, trie.end, before, self.device) or Dense()


class BySlots(Attending):
    """Runs of slots that a group of rows sees, and a small mask for the rest."""

    by_layout = True
    similar = 0.0
    kept_as = torch.float32

    def prompt(
        self, nodes: Int[np.ndarray, " C"], places: Slots, runs: dict[int, tuple[Slots, ...]]
    ) -> Sight:
        trie = self.table.trie
        groups = prompt_layout(nodes, trie.parent, trie.end, places[0], runs)
        return self.sight(len(nodes), groups)

    def replies(
        self, ends: Int[np.ndarray, " R"], first: Int[np.ndarray, " R"], longest: Int[np.ndarray, " R"]
    ) -> ReplySight:
        return _GroupedReplies(self, ends, first, longest)

    def sight(self, rows: int, groups: Sequence[Group]) -> Sight:
        """Return what so many rows see, of all slots in use."""
        used = self.table.used
        return Sight(((0, used),), self.masks.none(rows, used, self.device), Groups(tuple(groups)))


MODES: dict[str, type[Attending]] = {"slots": BySlots, "chain": ByChain, "mask": ByMask}
"""Ways to attend, by name."""


def possible_modes(model: PreTrainedModel, kinds: set[str]) -> tuple[str, ...]:
    """Return the modes that may suit a model whose blocks use these kinds of attention, the fastest first."""
    sdpa = model.config.get_text_config()._attn_implementation == "sdpa"
    if not sdpa or kinds != {"full_attention"}:
        return ("mask",)
    on_cpu = {weight.device.type for weight in model.parameters()} == {"cpu"}
    return ("slots" if on_cpu else "chain", "mask")


# ---------------------------------------------------------------- replies


class _DenseReplies(ReplySight):
    """Every reply is compared with every slot in use, and a mask tells which it sees."""

    def __init__(
        self, attending: Attending, ends: Int[np.ndarray, " R"], longest: int, layout: Layout | None
    ) -> None:
        self.attending, self.layout, device = attending, layout, attending.device
        table, cached = attending.table, attending.table.nodes
        seen = (0 <= cached) & (cached <= ends[:, None]) & (ends[:, None] < table.trie.end[cached])
        self.stop = table.used + longest
        self.allowed = torch.zeros(len(ends), self.stop, dtype=torch.bool, device=device)
        self.allowed[:, : table.used] = torch.from_numpy(seen).to(device)
        self.depth = torch.zeros(self.stop, dtype=torch.long, device=device)
        self.depth[: table.used] = torch.from_numpy(table.trie.depth[cached]).to(device)

    def step(
        self, rows: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"], position: Int[np.ndarray, " n"]
    ) -> Sight:
        device = self.attending.device
        which, where, depth = (torch.from_numpy(a).to(device) for a in (rows, places, position))
        self.allowed[which, where] = True
        self.depth[where] = depth
        mask = self.attending.masks.build(self.allowed[which], depth[:, None] - self.depth)
        return Sight(((0, self.stop),), mask, self.layout)


@dataclass
class _Fork:
    """Replies to prompts that leave a trunk at the same token."""

    rows: Int[np.ndarray, " n"]
    """Numbers of the replies, one after the other."""
    runs: tuple[Slots, ...]
    """Slots of the trunk up to there."""
    own: tuple[Slots, ...]
    """Slots of the prompts from there on, and of the replies."""
    mask: Float[torch.Tensor, "n own"]
    """Over the slots of ``own``, to be added to the logits of attention."""
    column: dict[int, int] = field(default_factory=dict)
    """Slot -> its column of ``mask``."""


class _GroupedReplies(ReplySight):
    """Every reply is compared with what its group sees.

    A trunk of three tokens with three branches of one token, each with a reply of at most two tokens. Slots 0
    to 3 hold the trunk, which went on into branch a; slots 4 and 5 branches b and c, which were packed. The
    replies to b and c leave the trunk at the same token, so they are one group:

        replies to   all see   a mask tells apart
        b, c         0..2      4, 5 and 6..9: b's reply sees 4, then 6 and 7 as it writes them, c's 5, 8, 9
        a            0..3      10, 11
    """

    def __init__(
        self,
        attending: BySlots,
        ends: Int[np.ndarray, " R"],
        first: Int[np.ndarray, " R"],
        longest: Int[np.ndarray, " R"],
    ) -> None:
        self.attending, self.table = attending, attending.table
        forks = np.array([self.table.fork(int(end)) for end in ends])
        self.forks = []
        for node in dict.fromkeys(forks.tolist()):
            rows = np.flatnonzero(forks == node)
            area = (int(first[rows[0]]), int(first[rows[-1]] + longest[rows[-1]]))
            self.forks.append(self._fork(node, rows, ends[rows], area))

    def _fork(
        self, node: int, rows: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"], area: Slots
    ) -> _Fork:
        trunk = self.table.path(node)
        paths = [np.setdiff1d(self.table.path(int(end)), trunk) for end in ends]
        own = (*_joined(runs_of(np.unique(np.concatenate(paths)))), area)
        slots = np.concatenate([np.arange(*span) for span in own])
        seen = np.stack([np.isin(slots, path) for path in paths])
        mask = additive(torch.from_numpy(seen), torch.float32)
        return _Fork(rows, runs_of(trunk), own, mask, {int(s): k for k, s in enumerate(slots)})

    def step(
        self, rows: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"], position: Int[np.ndarray, " n"]
    ) -> Sight:
        groups, start = [], 0
        for fork in self.forks:
            here = np.flatnonzero((fork.rows[0] <= rows) & (rows <= fork.rows[-1]))
            if len(here):
                local = rows[here] - fork.rows[0]
                fork.mask[local, [fork.column[int(place)] for place in places[here]]] = 0.0
                stop = start + len(here)
                groups.append(Group((start, stop), fork.runs, fork.own, fork.mask[local]))
                start = stop
        return self.attending.sight(len(rows), groups)


def _joined(runs: Sequence[Slots]) -> list[Slots]:
    """Return the runs with those that lie near each other made one."""
    found: list[Slots] = []
    for start, stop in runs:
        if found and start - found[-1][1] <= NEAR:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
