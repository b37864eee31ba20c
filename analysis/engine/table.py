"""Which token of the trie lies in which slot of the cache.

Shape letters: C tokens forwarded now   S cache slots in use   M nodes of the trie
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int

from analysis.engine.attention import Slots, is_chain, runs_of
from analysis.engine.trie import Trie


class SlotTable:
    """The slots in use, from the first on."""

    def __init__(self, trie: Trie, capacity: int) -> None:
        """Start with no slot in use, of ``capacity``."""
        self.trie = trie
        self.used = 0
        self._slots = np.empty(capacity, np.int64)  # node in each slot, -1 for a reply's token
        self._root = np.full(len(trie), -1)  # subtree that a node was packed in, -1 for nodes of a chain

    @property
    def nodes(self) -> Int[np.ndarray, " S"]:
        """Node in each slot, -1 for a token of a reply."""
        return self._slots[: self.used]

    def append(self, nodes: Int[np.ndarray, " C"]) -> tuple[Slots, dict[int, tuple[Slots, ...]]]:
        """Put nodes into the next slots: subtrees in preorder, whose ancestors are there.

        Returns:
            Their slots; and for each parent of a subtree the slots of that parent and its ancestors.
        """
        parents = np.unique(self.trie.parent[nodes])
        runs = {int(node): runs_of(self.path(int(node))) for node in parents[~np.isin(parents, nodes)]}
        if not is_chain(nodes, self.trie.parent):
            roots = np.isin(self.trie.parent[nodes], list(runs))
            self._root[nodes] = nodes[roots][np.cumsum(roots) - 1]
        places = self.reserve(len(nodes))
        self._slots[slice(*places)] = nodes
        return places, runs

    def reserve(self, count: int) -> Slots:
        """Take the next slots for tokens that are no nodes; return which."""
        first, self.used = self.used, self.used + count
        self._slots[first : self.used] = -1
        return first, self.used

    def crop(self, length: int) -> None:
        """Keep the first ``length`` slots."""
        self.used = length

    def path(self, node: int) -> Int[np.ndarray, " n"]:
        """Return the slots of a node and its ancestors; none for -1."""
        cached = self.nodes
        return np.flatnonzero((0 <= cached) & (cached <= node) & (node < self.trie.end[cached]))

    def fork(self, node: int) -> int:
        """Return the node at which the path to ``node`` leaves the chain it hangs off; -1 above the first."""
        return int(self.trie.parent[self._root[node]]) if self._root[node] >= 0 else node

    def distances(
        self, nodes: Int[np.ndarray, " C"], shown: Int[np.ndarray, " S"], device: torch.device
    ) -> tuple[Bool[torch.Tensor, "C S"], Int[torch.Tensor, "C S"]]:
        """Compare nodes with those in slots.

        Args:
            nodes: forwarded now.
            shown: nodes.
            device: of what is returned.

        Returns:
            Whether a shown node is the node itself or its ancestor; and how many tokens lie between them.
        """
        trie = self.trie
        now, slots = (torch.from_numpy(a).to(device) for a in (nodes, shown))
        ends, depth, position = (
            torch.from_numpy(a).to(device) for a in (trie.end[shown], trie.depth[shown], trie.depth[nodes])
        )
        allowed = (slots <= now[:, None]) & (now[:, None] < ends)  # preorder intervals that contain the token
        return allowed, position[:, None] - depth
