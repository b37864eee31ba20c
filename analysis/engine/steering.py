"""Change the residual stream while it is computed: push it along an axis, hold it there, or remove the axis.

    push = Steering((15,), "add", directions, means, scales, alpha=2.0, start=40, stop=52)
    tree.read([Request(ids, spans=[(40, 52)], steering=[push])], layers=[15])

analysis/axes/steer.py makes one from fitted axes.

The engine forwards a token once for all requests that share it. A steered token is another token: a number
says what acts on it, the trie branches where the numbers differ, and the hooks look the numbers up. So
requests share what is steered alike, and nothing after the first difference. What is read at a steered layer
is the state after the intervention.

Shape letters: T tokens of one request   C tokens forwarded now   L layers steered   D hidden size
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from analysis.base.seeds import fingerprint

KINDS = ("add", "clamp", "ablate")
_UNIT = 1e-3  # how far from 1 the length of a direction may be


@dataclass(frozen=True, eq=False)
class Steering:
    """One intervention on some tokens of one request.

    With h the residual stream after a block, v the direction and s the scale of that layer:

        add     h + alpha s v                        the score moves by alpha
        clamp   h + (alpha s - (h - mean) v) v       the score is alpha
        ablate  h - ((h - mean) v) v                 the score is 0, the training mean

    With a mean of zeros, ``ablate`` takes the direction itself out (Arditi et al. 2024, arXiv 2406.11717).
    """

    layers: tuple[int, ...]
    """(L,) blocks after which it acts, from 0."""
    kind: str
    """One of ``KINDS``."""
    directions: np.ndarray
    """(L, D) float32, unit rows."""
    means: np.ndarray
    """(L, D) float32, training means; not used by ``add``."""
    scales: np.ndarray
    """(L,) float32, training standard deviations, > 0."""
    alpha: float = 0.0
    """Strength in training standard deviations; 0 for ``ablate``."""
    start: int = 0
    """First token of the request at which it acts."""
    stop: int | None = None
    """One past the last token; None is all that follow, the reply included."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of steering {self.kind!r}: choose from {', '.join(KINDS)}")
        if not np.isfinite(self.alpha) or (self.kind == "ablate" and self.alpha):
            raise ValueError(f"{self.kind} with alpha {self.alpha}: give a finite number, and none to ablate")
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ValueError(f"steering from token {self.start} to {self.stop}: give 0 <= start <= stop")
        self._check_arrays()

    def _check_arrays(self) -> None:
        n_layers, shape = len(self.layers), np.shape(self.directions)
        if not n_layers or len(set(self.layers)) < n_layers or len(shape) != 2 or shape[0] != n_layers:
            raise ValueError(
                f"steering of layers {self.layers} with directions {shape}: give one row per layer"
            )
        if np.shape(self.means) != shape or np.shape(self.scales) != (n_layers,):
            raise ValueError(
                f"steering with directions {shape}, means {np.shape(self.means)} and scales "
                f"{np.shape(self.scales)}: give (L, D), (L, D) and (L,)"
            )
        lengths = np.linalg.norm(self.directions, axis=1)
        if not (np.abs(lengths - 1) < _UNIT).all():
            raise ValueError(f"directions have lengths {lengths.tolist()}: divide each by its length")
        if not np.isfinite(self.means).all() or not (np.isfinite(self.scales) & (self.scales > 0)).all():
            raise ValueError("steering needs finite means, and scales that are finite and above 0")

    @cached_property
    def action(self) -> str:
        """What is done, leaving out at which tokens: tokens share a cache only where it is the same."""
        arrays = (self.directions, self.means, self.scales)
        return fingerprint(self.kind, float(self.alpha), list(self.layers), *arrays)

    def acts_on(self, token: int) -> bool:
        return self.start <= token and (self.stop is None or token < self.stop)


class Interventions:
    """The steering of one read: what acts on each token, as a number, and hooks that do it."""

    def __init__(
        self, blocks: nn.ModuleList, requests: Sequence[tuple[Sequence[Steering], int]] = ()
    ) -> None:
        """Number what the requests ask for.

        Args:
            blocks: of the model, which may be spread over several devices.
            requests: (steering, T) of each request; it fits the model, see analysis/engine/refuse.py.
        """
        self.blocks = blocks
        self.table: list[tuple[Steering, ...]] = [()]
        """What each number stands for; 0 is nothing."""
        self.prompts: list[np.ndarray] | None = None
        """(T,) int64 numbers of each request's tokens; None if no request is steered."""
        self.replies = [0] * len(requests)
        """Number of each request's reply, the same for all of its tokens."""
        self._numbers: dict[tuple[str, ...], int] = {(): 0}
        self._vectors: dict[tuple[Steering, int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        if any(steering for steering, _ in requests):
            self.prompts = [self._prompt(steering, length) for steering, length in requests]
            self.replies = [self._number(s for s in steering if s.stop is None) for steering, _ in requests]

    def _prompt(self, steering: Sequence[Steering], length: int) -> Int[np.ndarray, " T"]:
        numbers = np.zeros(length, np.int64)
        bounds = {0, length, *(s.start for s in steering), *(s.stop for s in steering if s.stop is not None)}
        for start, stop in pairwise(sorted(bounds)):
            numbers[start:stop] = self._number(s for s in steering if s.acts_on(start))
        return numbers

    def _number(self, steering: Iterable[Steering]) -> int:
        acting = tuple(steering)
        key = tuple(one.action for one in acting)
        if key not in self._numbers:
            self._numbers[key] = len(self.table)
            self.table.append(acting)
        return self._numbers[key]

    def tokens(self, request: int, count: int) -> Int[np.ndarray, " count"]:
        """Return the numbers (count,) of the first tokens of a request and, after them, of its reply."""
        numbers = np.full(count, self.replies[request], np.int64)
        if self.prompts is not None:
            prompt = self.prompts[request][:count]
            numbers[: len(prompt)] = prompt
        return numbers

    @contextmanager
    def acting(self, numbers: Int[np.ndarray, " C"]) -> Iterator[None]:
        """Intervene in forward passes of one row of C tokens; enter before what reads the states.

        Args:
            numbers: (C,) what acts on each token of the row.
        """
        by_layer: dict[int, list[tuple[torch.Tensor, Steering, int]]] = {}
        for number in np.unique(numbers[numbers > 0]):
            rows = torch.from_numpy(np.flatnonzero(numbers == number))
            for one in self.table[number]:
                for slot, layer in enumerate(one.layers):
                    by_layer.setdefault(layer, []).append((rows, one, slot))
        handles = []
        try:
            for layer, work in by_layer.items():
                handles.append(self.blocks[layer].register_forward_hook(self._hook(work)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, work: Sequence[tuple[torch.Tensor, Steering, int]]) -> Callable[..., object]:
        reader = threading.get_ident()

        def hook(
            module: nn.Module, inputs: object, output: torch.Tensor | tuple
        ) -> torch.Tensor | tuple | None:
            if threading.get_ident() != reader:
                return None  # somebody else calls the same model
            # transformers 5 returns a tensor, 4 a tuple
            hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
            for rows, one, slot in work:
                rows = rows.to(hidden.device)
                moved = self._move(hidden[0, rows].float(), one, slot)
                hidden[0, rows] = moved.to(hidden.dtype)
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        return hook

    def _move(
        self, states: Float[torch.Tensor, "C D"], one: Steering, slot: int
    ) -> Float[torch.Tensor, "C D"]:
        """Return float32 states (C, D) after the intervention, see Steering."""
        key = (one, slot, states.device)
        if key not in self._vectors:
            arrays = (one.directions[slot], one.means[slot])
            vectors = [torch.tensor(a, dtype=torch.float32, device=states.device) for a in arrays]
            self._vectors[key] = (vectors[0], vectors[1])
        direction, mean = self._vectors[key]
        target = float(one.alpha) * float(one.scales[slot])
        if one.kind == "add":
            return states + target * direction
        return states + (target - (states - mean) @ direction)[:, None] * direction
