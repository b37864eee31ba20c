"""Keys and values of a prefix tree in preallocated slots, and the masks that let it be packed in one row.

Shape letters: C tokens forwarded now   S cache slots in use   H key/value heads   E head size
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

Mask = torch.Tensor | dict[str, torch.Tensor]


_SHARE_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def shared_heads(device: torch.device) -> Iterator[None]:
    """On a CPU, let attention share key/value heads between query heads instead of copying them.

    transformers copies where there is a mask, since CUDA kernels need it; on a CPU that is a seventh of the
    time of a control unit. Versions that do not know the variable copy as before.
    """
    before = os.environ.get(_SHARE_HEADS)
    if device.type == "cpu":
        os.environ[_SHARE_HEADS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SHARE_HEADS, None)
        if before is not None:
            os.environ[_SHARE_HEADS] = before


class _Slots(CacheLayerMixin):
    """One layer's keys and values; appending writes in place, cropping only moves the length."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.prefix: int | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        shape = (*key_states.shape[:2], self.capacity)
        self.keys = key_states.new_empty(*shape, key_states.shape[-1])
        self.values = value_states.new_empty(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (1, H, C, E); return all (1, H, S + C, E), or the first ``prefix`` and these."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        if self.prefix is None:
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]
        before = slice(0, self.prefix)
        keys = torch.cat([self.keys[:, :, before], key_states], dim=2)
        return keys, torch.cat([self.values[:, :, before], value_states], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class TreeCache(Cache):
    """A cache whose slots hold tokens of many sequences; which is which is the caller's business."""

    def __init__(self, n_layers: int, capacity: int) -> None:
        super().__init__(layers=[_Slots(capacity) for _ in range(n_layers)])

    def attend_to(self, prefix: int | None) -> None:
        """Until told otherwise, new tokens see the first ``prefix`` slots and each other; None: all."""
        for layer in self.layers:
            layer.prefix = prefix

    def crop(self, length: int) -> None:
        """Keep the first ``length`` slots."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


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

    def build(self, allowed: torch.Tensor, distance: torch.Tensor) -> Mask:
        """Return the mask(s) for one forward pass.

        Args:
            allowed: (C, S) bool, True where the slot is the token itself or an ancestor of it.
            distance: (C, S) int64, position of the token minus position of the slot's token.
        """
        masks = {}
        for kind in self.kinds:
            seen = allowed
            if kind == "sliding_attention" and self.window:
                seen = allowed & (distance < self.window)
            masks[kind] = self._as_argument(seen)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _as_argument(self, seen: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(self.dtype).min
        additive = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
        return additive.masked_fill(~seen, lowest)[None, None]
