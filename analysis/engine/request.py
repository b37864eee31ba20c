"""What the engine is asked for, what it returns, and the work that it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float32, Int

from analysis.engine.replies import Reply, Sampling
from analysis.engine.steering import Steering


@dataclass(frozen=True)
class Request:
    """One token sequence and what to read from it."""

    ids: Sequence[SupportsIndex] | Int[np.ndarray, " T"]
    """Token ids."""
    spans: Sequence[tuple[int, int]] = ()
    """Token ranges [start, stop) whose mean residual stream is wanted."""
    logits_at: Sequence[int] = ()
    """Positions whose next-token logits are wanted, for the answer tokens of ``read``."""
    reply: Sampling | None = None
    """Write a reply after the last token."""
    steering: Sequence[Steering] = ()
    """Interventions on the residual stream, applied in this order."""


@dataclass
class Reading:
    """What was read from one request."""

    pooled: Float32[np.ndarray, "spans L D"]
    """Means over each span, at each layer."""
    logits: Float32[np.ndarray, "positions A"]
    """Of the answers, at each of ``logits_at``."""
    reply: Reply | None = None
    """The reply, if one was asked for."""
    reply_pooled: Float32[np.ndarray, "L D"] | None = None
    """Mean over the reply's sentence; NaN if it is empty."""

    def reply_mean(self) -> Float32[np.ndarray, "L D"]:
        """Return ``reply_pooled`` of a request that asked for a reply."""
        if self.reply_pooled is None:
            raise ValueError("no reply was asked for")
        return self.reply_pooled


def stack_pooled(readings: Sequence[Reading]) -> Float32[np.ndarray, "B L D"]:
    """Return the means for requests of one span each, without a copy where they are in one array."""
    whole = readings[0].pooled.base
    if whole is not None and len(whole) == len(readings) and all(r.pooled.base is whole for r in readings):
        return whole
    return np.concatenate([reading.pooled for reading in readings])


@dataclass
class Counters:
    """Work done, in tokens."""

    prompt: int = 0
    """Prompt tokens forwarded."""
    reply: int = 0
    """Reply tokens forwarded."""
    calls: int = 0
    """Forward passes."""
    asked: int = 0
    """Prompt tokens that one forward pass per request would take."""
