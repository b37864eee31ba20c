"""The forward passes of one read: each is governed by what it is handed.

Shape letters: C tokens forwarded now   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analysis.engine.attention import Slots
from analysis.engine.cache import TreeCache
from analysis.engine.context import Context
from analysis.engine.sight import Sight
from analysis.engine.steering import Interventions
from analysis.process_hidden import Sink, StopForward, read_layers


@dataclass
class Passes:
    """Runs a model on one packed row after the other."""

    context: Context
    cache: TreeCache
    steering: Interventions
    layers: Sequence[int]
    """Blocks that are read."""
    stop_early: bool = False
    """Stop after the last of ``layers``: nobody wants logits."""

    def run(
        self,
        ids: np.ndarray,
        position: np.ndarray,
        acting: np.ndarray,
        places: Slots | np.ndarray,
        sight: Sight,
        rows: np.ndarray,
        sink: Sink,
    ) -> torch.Tensor | None:
        """Forward one row.

        Args:
            ids: (C,) int64 tokens.
            position: (C,) int64 of each token in its sequence.
            acting: (C,) what steers each token, see Interventions.
            places: cache slots of the tokens, [start, stop) or one each.
            sight: what they see.
            rows: places in ``ids`` whose logits are wanted.
            sink: takes the states of each layer.

        Returns:
            Logits (len(rows), V), None without rows: the head of the model sees these rows only.
        """
        context = self.context
        inputs = {
            "input_ids": self._tensor(ids)[None],
            "position_ids": self._tensor(position)[None],
            "attention_mask": sight.mask,
            "past_key_values": self.cache.at(
                self._tensor(places) if isinstance(places, np.ndarray) else places, sight.shown
            ),
            "use_cache": True,
        }
        if sight.layout is not None:
            inputs["tree_layout"] = sight.layout
        context.total.calls += 1
        with self.steering.acting(acting), read_layers(context.model, self.layers, sink, self.stop_early):
            if len(rows):
                return context.model(**inputs, logits_to_keep=torch.from_numpy(rows)).logits[0]
            try:
                context.model.base_model(**inputs)
            except StopForward:
                pass
        return None

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.context.device)
