"""The forward passes of one read: each is governed by what it is handed.

Shape letters: C tokens forwarded now   n rows whose logits are wanted   V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

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
        ids: Int[np.ndarray, " C"],
        position: Int[np.ndarray, " C"],
        acting: Int[np.ndarray, " C"],
        places: Slots | Int[np.ndarray, " C"],
        sight: Sight,
        rows: Int[np.ndarray, " n"],
        sink: Sink,
    ) -> Float[torch.Tensor, "n V"]:
        """Forward one row.

        Args:
            ids: tokens.
            position: of each token in its sequence.
            acting: what steers each token, see Interventions.
            places: cache slots of the tokens, [start, stop) or one each.
            sight: what they see.
            rows: places in ``ids`` whose logits are wanted.
            sink: takes the states of each layer.

        Returns:
            Their logits: the head of the model sees these rows only.
        """
        context = self.context
        inputs: dict[str, object] = {
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
        return torch.empty(0, context.outputs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.context.device)
