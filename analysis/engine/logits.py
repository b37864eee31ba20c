"""Which logits a read needs: those of answer tokens are kept, those after prompts begin the replies.

Shape letters: A answers   V vocabulary   P answer positions, each node once
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from analysis.engine.request import Request


class Logits:
    """The logits of all requests of a read."""

    def __init__(
        self, paths: Sequence[Int[np.ndarray, " _"]], requests: Sequence[Request], answers: Sequence[int]
    ) -> None:
        """List the nodes whose logits are wanted: answer positions and the ends of prompts with replies."""
        self.paths, self.requests = paths, requests
        self.answers = torch.tensor(list(answers), dtype=torch.long)  # on the CPU, which indexes any device
        at = [path[list(request.logits_at)] for request, path in zip(requests, paths, strict=True)]
        self.nodes = np.unique(np.concatenate([*at, np.empty(0, np.int64)]))
        """(P,) at which the answers are asked for."""
        self.ends = {b: int(paths[b][-1]) for b, r in enumerate(requests) if r.reply}
        """Request that writes -> last node of its prompt."""
        self.wanted = np.union1d(self.nodes, np.array(list(self.ends.values()), np.int64))
        self.after: dict[int, torch.Tensor] = {}
        """Last node of a prompt -> (V,) logits of what comes next."""
        self._found: list[tuple[np.ndarray, torch.Tensor]] = []
        """Places in ``nodes``, and their logits (count, A) on the model's device."""

    def keep(self, nodes: Int[np.ndarray, " n"], logits: Float[torch.Tensor, "n V"]) -> None:
        """Keep what is asked for of the logits after nodes, without waiting for the device."""
        places = np.searchsorted(self.nodes, nodes)
        asked = np.flatnonzero(np.isin(nodes, self.nodes))
        if len(asked) and len(self.answers):
            picked = logits[asked][:, self.answers.to(logits.device)]
            self._found.append((places[asked], picked.float()))
        ends = set(self.ends.values())
        for row, node in enumerate(nodes.tolist()):
            if node in ends:
                self.after[node] = logits[row]

    def answered(self) -> list[Float32[np.ndarray, "positions A"]]:
        """Return the answers' logits at ``logits_at`` for each request."""
        table = np.empty((len(self.nodes), len(self.answers)), np.float32)
        for places, found in self._found:
            table[places] = found.cpu().numpy()
        pairs = zip(self.requests, self.paths, strict=True)
        return [table[np.searchsorted(self.nodes, path[list(r.logits_at)])] for r, path in pairs]
