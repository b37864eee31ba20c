"""Sums of hidden states over token spans, without keeping the states of all tokens.

Shape letters: C tokens forwarded now   P spans   L layers   D hidden size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from analysis.engine.request import Request
from analysis.process_hidden import Sink


class SpanMeans:
    """Mean states over the spans of all requests, added up token by token as these are forwarded."""

    def __init__(
        self, paths: Sequence[Int[np.ndarray, " _"]], requests: Sequence[Request], n_layers: int
    ) -> None:
        """List (node, span) pairs sorted by node, so that a step finds its own by bisection."""
        nodes: list[np.ndarray] = []
        spans: list[np.ndarray] = []
        lengths: list[int] = []
        for request, path in zip(requests, paths, strict=True):
            for start, stop in request.spans:
                nodes.append(path[start:stop])
                spans.append(np.full(stop - start, len(lengths)))
                lengths.append(stop - start)
        flat = np.concatenate([*nodes, np.empty(0, np.int64)])
        order = np.argsort(flat, kind="stable")
        self.nodes = flat[order]
        self.ids = np.concatenate([*spans, np.empty(0, np.int64)])[order]
        self.lengths = np.array(lengths, np.float32)
        self.n_layers = n_layers
        self.whole: np.ndarray | None = None  # (P, L, D) float32
        self.sums: list[torch.Tensor | None] = [
            None
        ] * n_layers  # (P, D) each; on the CPU, parts of ``whole``

    def step(self, nodes: Int[np.ndarray, " C"]) -> Sink:
        """Return what adds the states (1, C, D) of a layer, for the ``nodes`` (C,) that are forwarded now.

        Two requests with three tokens in common, a span over the last two of these, and one over the last
        of them and what follows. The first step has the common tokens: of its rows, the matrix of members
        takes 1 and 2 to span 0, and 2 to span 1; of the second step's nodes 3 and 4, span 1 takes the latter:

            >>> from analysis.engine.trie import build_trie
            >>> one, other = Request([7, 8, 9, 1], [(1, 3)]), Request([7, 8, 9, 2], [(2, 4)])
            >>> means = SpanMeans(build_trie([one.ids, other.ids]).paths, [one, other], n_layers=1)
            >>> states = torch.tensor([[[0.0], [1.0], [2.0], [30.0], [4.0]]])  # of nodes 0 to 4
            >>> means.step(np.arange(3))(0, states[:, :3])  # layer 0
            >>> means.step(np.arange(3, 5))(0, states[:, 3:])
            >>> means.means(1).tolist()  # (1 + 2) / 2, and (2 + 4) / 2
            [[[1.5]], [[3.0]]]

        The tokens of a span are added up by a product with a matrix of zeros and ones: exact, in the same
        order on every device, and a small part of the work of a block.
        """
        low = np.searchsorted(self.nodes, nodes, "left")
        count = np.searchsorted(self.nodes, nodes, "right") - low
        rows = np.repeat(np.arange(len(nodes)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        here, local = np.unique(self.ids[np.repeat(low, count) + within], return_inverse=True)
        members = torch.zeros(len(here), len(nodes))
        members[torch.from_numpy(local), torch.from_numpy(rows)] = 1.0
        spans, moved = torch.from_numpy(here), dict[torch.device, tuple[torch.Tensor, torch.Tensor]]()

        def add(slot: int, hidden: torch.Tensor) -> None:
            total = self.sums[slot]
            if total is None:
                total = self.sums[slot] = self._room(slot, hidden)
            if len(here):
                at = hidden.device
                if at not in moved:
                    moved[at] = (members.to(at), spans.to(at))
                matrix, places = moved[at]
                total.index_add_(0, places, matrix @ hidden[0].float())

        return add

    def _room(self, slot: int, hidden: Float[torch.Tensor, "1 C D"]) -> Float[torch.Tensor, "P D"]:
        """Return zeros (P, D) for one layer: on the CPU those of the result, so that it is there once."""
        shape = (len(self.lengths), hidden.shape[-1])
        if hidden.device.type != "cpu":
            return torch.zeros(shape, dtype=torch.float32, device=hidden.device)
        if self.whole is None:
            self.whole = np.zeros((shape[0], self.n_layers, shape[1]), np.float32)
        return torch.from_numpy(self.whole[:, slot])

    def means(self, width: int) -> Float[np.ndarray, "P L {width}"]:
        """Return (P, L, D) float32 for D = ``width``."""
        if self.whole is None:
            self.whole = np.zeros((len(self.lengths), self.n_layers, width), np.float32)
        for slot, total in enumerate(self.sums):
            if total is not None and total.device.type != "cpu":
                self.whole[:, slot] = total.cpu().numpy()
            self.sums[slot] = total = None
        self.whole /= self.lengths[:, None, None]
        return self.whole
