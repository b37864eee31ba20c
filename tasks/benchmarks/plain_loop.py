"""The loop that people write: one prompt at a time, ``model.generate`` for replies, all states returned.

This is the baseline of bench_engine.py and is kept as it is usually written: every prompt is forwarded from
its first token, ``output_hidden_states=True`` returns every layer's states of every token, and a reply is
read with a second forward pass over prompt and reply, since ``generate`` gives no activations of its own.

The second half counts the work of both sides, measures memory, and compares what they gave.

Shape letters: T tokens of one prompt   L layers   D hidden size
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from analysis.engine.replies import Reply, Sampling
from analysis.engine.request import Request

Decode = Callable[[Sequence[int]], str]
Outcome = tuple[np.ndarray, list[list[int]], int]
"""(prompts, L, D) means, reply tokens per prompt, tokens written; the fields of PlainReading, stacked."""


@dataclass
class PlainReading:
    """What was read from one prompt."""

    pooled: np.ndarray
    """(L, D) float32 mean over the sentence; the last row is after the final norm, as transformers has it.
    NaN if the reply is empty."""
    reply_ids: list[int] = field(default_factory=list)
    """Tokens up to where the engine's rule ends a reply, to compare."""
    written: int = 0
    """Tokens that ``generate`` wrote, without the stop token."""


class PlainLoop:
    """Reads and writes with one model, one prompt at a time."""

    def __init__(self, model: PreTrainedModel, decode: Decode, stops: frozenset[int]) -> None:
        self.model, self.decode, self.stops = model, decode, stops

    def __call__(self, requests: Sequence[Request], progress: Callable[[int], object]) -> Outcome:
        """Do each request on its own; ``progress`` is called with the prompt tokens that it asked for."""
        readings = []
        with torch.inference_mode():
            for request in requests:
                readings.append(self.write(request, request.reply) if request.reply else self.read(request))
                progress(len(request.ids))
        return outcome(readings)

    def read(self, request: Request) -> PlainReading:
        """Forward a prompt and average the states of its first span."""
        return PlainReading(span_mean(self.states(request.ids), request.spans[0]))

    def write(self, request: Request, sampling: Sampling) -> PlainReading:
        """Write a greedy reply, forward prompt and reply again, average its sentence's states."""
        ids = torch.as_tensor(request.ids, device=self.model.device)[None]
        whole = cast(Any, self.model).generate(  # a mix-in that its type does not show

            ids, attention_mask=torch.ones_like(ids), max_new_tokens=sampling.max_new_tokens,
            do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            eos_token_id=sorted(self.stops), pad_token_id=min(self.stops),
        )[0].tolist()  # fmt: skip
        states = self.states(whole)
        first, new = len(request.ids), whole[len(request.ids) :]
        reply = Reply(sampling)  # finds the sentence in the reply, by the rule of the engine
        for token in new:
            if not reply.done:
                reply.append(token, self.decode, self.stops)
        pooled = span_mean(states, (first + reply.start, first + reply.stop))
        return PlainReading(pooled, reply.ids, len(new) - int(new[-1] in self.stops))

    def prompts(self, requests: Sequence[Request], progress: Callable[[int], object]) -> Outcome:
        """Forward every prompt for its own states, which nothing is made of: one pass more over each."""
        readings = []
        with torch.inference_mode():
            for request in requests:
                readings.append(PlainReading(span_mean(self.states(request.ids), (0, 1))))
                progress(len(request.ids))
        return outcome(readings)

    def states(self, ids: Sequence[SupportsIndex] | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Return L tensors (1, T, D); the last is after the final norm."""
        inputs = torch.as_tensor(ids, device=self.model.device)[None]
        return self.model(inputs, output_hidden_states=True).hidden_states[1:]

    def keep_all(self, requests: Sequence[Request], progress: Callable[[int], object]) -> Outcome:
        """Keep the states of every token of every prompt, and average when all are there."""
        kept = []
        with torch.inference_mode():
            for request in requests:
                kept.append(self.states(request.ids))
                progress(len(request.ids))
        pairs = zip(kept, requests, strict=True)
        return outcome([PlainReading(span_mean(states, request.spans[0])) for states, request in pairs])


def outcome(readings: Sequence[PlainReading]) -> Outcome:
    """Stack what was read from each prompt."""
    pooled, replies = [r.pooled for r in readings], [r.reply_ids for r in readings]
    return np.stack(pooled), replies, sum(r.written for r in readings)


def span_mean(states: Sequence[torch.Tensor], span: tuple[int, int]) -> np.ndarray:
    """Return (L, D) float32: the mean of L tensors (1, T, D) over tokens [start, stop), NaN for none."""
    start, stop = span
    return torch.stack([layer[0, start:stop].float().mean(0) for layer in states]).cpu().numpy()


# ---------------------------------------------------------------- measuring and comparing


@dataclass
class Count:
    """Work seen by the embedding layer."""

    tokens: int = 0
    calls: int = 0


@contextmanager
def count_work(embeddings: nn.Module) -> Iterator[Count]:
    """Count the tokens and the calls that reach the embedding layer."""
    count = Count()

    def hook(module: object, inputs: tuple, output: object) -> None:
        count.tokens += inputs[0].numel()
        count.calls += 1

    handle = embeddings.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def forget_peak() -> int:
    """Forget the peak of loading where the system can (Linux); return the memory that growth counts from."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """Return the largest resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Gave(Protocol):
    """What a side gave: a row and a reply per prompt."""

    pooled: np.ndarray
    replies: list[list[int]]


def agreement(engine: Gave, plain: Gave) -> tuple[int, float]:
    """Compare what the two sides gave.

    Returns:
        Replies with the same tokens; and the largest |a - b| / |b| of the mean states (Euclidean norms, each
        prompt and layer but the last layer, which the plain loop has after the final norm) where both sides
        read the same tokens.
    """
    same = [a == b for a, b in zip(engine.replies, plain.replies, strict=True)]
    a, b = engine.pooled[same, :-1], plain.pooled[same, :-1]
    relative = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    matched = sum(equal and bool(reply) for equal, reply in zip(same, plain.replies, strict=True))
    return matched, float(np.nanmax(relative, initial=0.0))
