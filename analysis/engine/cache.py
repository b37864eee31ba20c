"""Keys and values of a prefix tree, in slots that are made once.

What a forward pass may do with them is no state of the cache: the pass is given a view that says to which
slots its tokens go and which slots it is shown.

    cache = TreeCache(n_layers, capacity)
    model(ids, past_key_values=cache.at((30, 42), shown=((0, 20), (30, 42))), ...)

Shape letters: C tokens forwarded now   S slots shown   H key/value heads   E, F head sizes
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from transformers.cache_utils import Cache, CacheLayerMixin

from analysis.engine.attention import Slots


class _Room:
    """The slots of one layer, made when its first keys and values come."""

    def __init__(self, capacity: int, dtype: torch.dtype | None) -> None:
        self.capacity, self.kept_as = capacity, dtype
        self.keys: torch.Tensor | None = None  # (1, H, capacity, E), as are the values
        self.values: torch.Tensor | None = None

    def hold(
        self, keys: Float[torch.Tensor, "1 H C E"], values: Float[torch.Tensor, "1 H C F"]
    ) -> tuple[Float[torch.Tensor, "1 H capacity E"], Float[torch.Tensor, "1 H capacity F"]]:
        """Return all keys and all values, in tensors made for some like these."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._empty(keys), self._empty(values)
        return self.keys, self.values

    def _empty(self, states: Float[torch.Tensor, "1 H C E"]) -> Float[torch.Tensor, "1 H capacity E"]:
        shape = (*states.shape[:2], self.capacity, states.shape[-1])
        return states.new_empty(shape, dtype=self.kept_as or states.dtype)


class _Layer(CacheLayerMixin):
    """One layer's room as one forward pass sees it."""

    is_sliding = False

    def __init__(
        self, room: _Room, places: Slots | Int[torch.Tensor, " C"], shown: tuple[Slots, ...]
    ) -> None:
        super().__init__()
        self.room, self.places, self.shown = room, places, shown

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.room.hold(key_states, value_states)

    def update(
        self,
        key_states: Float[torch.Tensor, "1 H C E"],
        value_states: Float[torch.Tensor, "1 H C F"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[torch.Tensor, "1 H S E"], Float[torch.Tensor, "1 H S F"]]:
        """Keep the new ones; return those that are shown."""
        keys, values = self.room.hold(key_states, value_states)
        self._write(keys, key_states)
        self._write(values, value_states)
        return self._shown(keys), self._shown(values)

    def _write(
        self, states: Float[torch.Tensor, "1 H capacity E"], new: Float[torch.Tensor, "1 H C E"]
    ) -> None:
        if isinstance(self.places, torch.Tensor):
            states.index_copy_(2, self.places.to(states.device), new.to(states.dtype))
        else:
            states[:, :, slice(*self.places)] = new

    def _shown(self, states: Float[torch.Tensor, "1 H capacity E"]) -> Float[torch.Tensor, "1 H S E"]:
        if len(self.shown) == 1:
            return states[:, :, slice(*self.shown[0])]
        return torch.cat([states[:, :, start:stop] for start, stop in self.shown], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return sum(stop - start for start, stop in self.shown), 0

    def get_seq_length(self) -> int:
        new = len(self.places) if isinstance(self.places, torch.Tensor) else self.places[1] - self.places[0]
        return self.get_mask_sizes(new)[0] - new

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class TreeCache:
    """Slots that hold tokens of many sequences; which is which is the caller's business."""

    def __init__(self, n_layers: int, capacity: int, dtype: torch.dtype | None = None) -> None:
        """Make room for ``capacity`` tokens; keys and values are kept in ``dtype``, None: as they come."""
        self.rooms = [_Room(capacity, dtype) for _ in range(n_layers)]

    def at(self, places: Slots | Int[torch.Tensor, " C"], shown: tuple[Slots, ...]) -> Cache:
        """Return the cache of one forward pass.

        Args:
            places: slots [start, stop) that its C tokens go to, or one slot for each.
            shown: the slots that it is given, those of its own tokens included.
        """
        return Cache(layers=[_Layer(room, places, shown) for room in self.rooms])

    def clear(self, slots: Slots) -> None:
        """Put zeros into slots that are shown before they are written: they could hold no numbers at all."""
        for room in self.rooms:
            for states in (room.keys, room.values):
                if states is not None:
                    states[:, :, slice(*slots)] = 0
