"""Keys and values of a prefix tree in preallocated slots, and the masks that let it be packed in one row.

Shape letters: C tokens forwarded now   S cache slots in use   H key/value heads   E head size
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from analysis.engine.attention import Slots

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

    def __init__(self, capacity: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.capacity, self.kept_as, self.length = capacity, dtype, 0
        self.shown: tuple[Slots, ...] | None = None
        self.places: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def empty(states: torch.Tensor) -> torch.Tensor:
            shape = (*states.shape[:2], self.capacity, states.shape[-1])
            return states.new_empty(shape, dtype=self.kept_as or states.dtype)

        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep (1, H, C, E); return (1, H, S, E) of all slots in use, or of those that are shown."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.places is not None:
            self.keys.index_copy_(2, self.places, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, self.places, value_states.to(self.values.dtype))
        else:
            start, self.length = self.length, self.length + key_states.shape[-2]
            self.keys[:, :, start : self.length] = key_states
            self.values[:, :, start : self.length] = value_states
        return self._shown(self.keys), self._shown(self.values)

    def _shown(self, states: torch.Tensor) -> torch.Tensor:
        if self.shown is None:
            return states[:, :, : self.length]
        if len(self.shown) == 1:
            return states[:, :, slice(*self.shown[0])]
        return torch.cat([states[:, :, start:stop] for start, stop in self.shown], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class TreeCache(Cache):
    """A cache whose slots hold tokens of many sequences; which is which is the caller's business."""

    def __init__(self, n_layers: int, capacity: int, dtype: torch.dtype | None = None) -> None:
        """Make room for ``capacity`` tokens; keys and values are kept in ``dtype``, None: as they come."""
        super().__init__(layers=[_Slots(capacity, dtype) for _ in range(n_layers)])

    def show(self, slots: tuple[Slots, ...] | None) -> None:
        """Until told otherwise, new tokens get these slots, theirs included; None: all in use."""
        for layer in self.layers:
            layer.shown = slots

    @contextmanager
    def writing_to(self, places: torch.Tensor) -> Iterator[None]:
        """Put new tokens to these slots, which were reserved, not to the end."""
        for layer in self.layers:
            layer.places = places.to(layer.keys.device)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.places = None

    def reserve(self, count: int) -> None:
        """Append slots with zeros, for tokens to come: what they held before could be no number at all."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[:, :, layer.length : layer.length + count] = 0
            layer.length += count

    def crop(self, length: int) -> None:
        """Keep the first ``length`` slots."""
        for layer in self.layers:
            layer.length = min(layer.length, length)
