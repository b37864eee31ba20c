"""What a model takes as attention mask, from "who may look at whom".

Shape letters: C tokens forwarded now   S cache slots shown
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from analysis.engine.attention import additive

Mask = torch.Tensor | dict[str, torch.Tensor]


class Masks:
    """Build what the model takes as attention mask from "who may look at whom".

    The mask holds 0 and the most negative number, to be added to the logits. Booleans would do for sdpa,
    which turns them into this at every layer again, but with eager attention they are silently wrong.
    Models that mix full and sliding attention take a dict with a mask for each.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.dtype = model.dtype
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if not kinds:
            kinds = {"sliding_attention" if window else "full_attention"}
        self.kinds = kinds
        self.window = window

    @property
    def supported(self) -> bool:
        """Whether all layers attend fully or in a sliding window."""
        return self.kinds <= {"full_attention", "sliding_attention"}

    def build(self, allowed: Bool[torch.Tensor, "C S"], distance: Int[torch.Tensor, "C S"]) -> Mask:
        """Return the mask(s) for one forward pass.

        Args:
            allowed: True where the slot is the token itself or an ancestor of it.
            distance: position of the token minus position of the slot's token.
        """
        masks = {}
        for kind in self.kinds:
            seen = allowed
            if kind == "sliding_attention" and self.window:
                seen = allowed & (distance < self.window)
            masks[kind] = self._as_argument(seen)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def none(self, rows: int, slots: int, device: torch.device) -> Float[torch.Tensor, "1 1 {rows} {slots}"]:
        """Return a mask of the shape that models expect, without memory, for attention that needs none."""
        return torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=device).expand(1, 1, rows, slots)

    def _as_argument(self, seen: Bool[torch.Tensor, "C S"]) -> Float[torch.Tensor, "1 1 C S"]:
        return additive(seen, self.dtype)[None, None]
