"""What a run will take, before any weight is loaded: tokens, floating-point operations, memory.

    shape = load_shape("smollm2")
    unit = work_of(requests, shape.n_layers, token_budget=512)         # of one unit
    print(describe("smollm2", shape, [Planned("control", unit, to_do=6)], "float32", 512))

Prompts are built and tokenized as the run does it, so the tokens of what is measured are exact; replies are
counted at their longest. Memory is a bound for tensors: the libraries' own (about 0.5 GiB for CUDA) is extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from analysis.engine.plan import make_plan
from analysis.engine.replies import HELD_BACK
from analysis.engine.request import Request
from analysis.engine.steering import Interventions
from analysis.engine.trie import build_trie
from analysis.models.shape import Shape

MEASURED = 3
"""Experiments whose prompts are built to learn what one unit takes; units differ a little."""


@dataclass(frozen=True)
class Work:
    """Counts of one or more calls of the engine; ``+`` adds them, ``* n`` repeats them (0: none)."""

    tokens: int = 0
    """Distinct prompt tokens, each forwarded once."""
    plain: int = 0
    """Prompt tokens that one forward pass per prompt takes."""
    replies: int = 0
    """Most reply tokens; replies may stop earlier."""
    rows: int = 0
    """Tokens, of prompts and replies, whose logits are computed."""
    pairs: int = 0
    """(token, token that it attends to), itself included, over ``tokens`` and ``replies``."""
    slots: int = 0
    states: int = 0
    answers: int = 0
    writers: int = 0
    """The most in one call: cache slots, means kept (spans x layers), prompt tokens with logits, replies."""
    longest: int = 0
    """Tokens of the longest prompt with its reply."""

    def __add__(self, other: Work) -> Work:
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(Work)}
        return Work(**{name: max(pair) if name in _PEAKS else sum(pair) for name, pair in pairs.items()})

    def __mul__(self, n: float) -> Work:
        counts = {f.name: getattr(self, f.name) for f in fields(Work)} if n else {}
        return Work(**{name: c if name in _PEAKS else round(c * n) for name, c in counts.items()})


_PEAKS = ("slots", "states", "answers", "writers", "longest")


def work_of(requests: Sequence[Request], n_layers: int, token_budget: int) -> Work:
    """Count what one call of PrefixTree.read, which reads ``n_layers`` layers, forwards and keeps."""
    steering = Interventions(nn.ModuleList(), [(request.steering, len(request.ids)) for request in requests])
    trie = build_trie([request.ids for request in requests], steering.prompts)
    length = [len(request.ids) for request in requests]
    most = {b: request.reply.max_new_tokens for b, request in enumerate(requests) if request.reply}
    at = [[*request.logits_at, *([-1] if request.reply else [])] for request in requests]
    answers = len(np.unique(np.concatenate([path[i] for path, i in zip(trie.paths, at, strict=True)])))
    written = sum(new * length[b] + new * (new + 1) // 2 for b, new in most.items())
    return Work(
        tokens=len(trie),
        plain=sum(length),
        replies=sum(most.values()),
        rows=answers + sum(most.values()),
        pairs=int((trie.depth + 1).sum()) + written,
        slots=make_plan(trie, most, token_budget).slots,
        states=n_layers * sum(len(request.spans) for request in requests),
        answers=answers,
        writers=len(most),
        longest=max(count + most.get(b, 0) for b, count in enumerate(length)),
    )


def flops(shape: Shape, work: Work) -> int:
    """Return the floating-point operations needed: a multiplication and an addition for each weight.

    Linear layers: 2 x weights per token, output embeddings only where logits are computed. Attention: 4 x
    layers x heads x head size per pair. Not counted: pairs that packed rows mask out, norms, activations.
    """
    linear = (work.tokens + work.replies) * shape.block_parameters + work.rows * shape.vocab * shape.hidden
    return 2 * linear + 4 * shape.n_layers * shape.heads * shape.head_dim * work.pairs


def memory(shape: Shape, work: Work, dtype: str, token_budget: int, on_cpu: bool = False) -> dict[str, int]:
    """Return bytes on the model's device, at the peak of ``work``; ``dtype`` such as ``bfloat16``.

    ``weights``; ``cache``: keys and values of all slots of all layers, allocated at once (a sliding window
    saves nothing), in float32 if ``on_cpu``; ``states``: span means, and what replies hold back; ``chunk``:
    a bound for one forward call, as if all of one block were alive at once: inputs, norms (float32), queries,
    keys, values, gate, up and their product; one layer's cache copied and expanded to all heads; the mask
    while it is built; the attention weights if eager; the logits of asked rows and of all replies, which are
    drawn in float64.
    """
    size = getattr(torch, dtype).itemsize
    tokens, slots = min(token_budget, work.tokens), work.slots
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    per_token = size * (6 * shape.hidden + 4 * wide + 4 * narrow + 3 * shape.intermediate) + 12 * shape.hidden
    per_pair = 11 + 2 * size  # int64 distances, three booleans, the additive mask and a copy
    per_pair += shape.eager * shape.heads * (2 * size + 4)  # softmax in float32
    logits = shape.vocab * (min(tokens, work.answers) * 2 * size + work.writers * (size + 24))
    held_back = work.writers * shape.n_layers * ((HELD_BACK + 1) * size + 4)
    return {
        "weights": shape.n_parameters * size,
        "cache": 2 * shape.n_layers * narrow * slots * (max(size, 4) if on_cpu else size),
        "states": shape.hidden * (4 * work.states + held_back),
        "chunk": tokens * per_token + slots * 2 * size * (wide + narrow) + tokens * slots * per_pair + logits,
    }


@dataclass(frozen=True)
class Planned:
    """Units of one stage; ``unit`` is the work of one."""

    name: str
    unit: Work
    to_do: int
    on_disk: int = 0


_WIDTHS = {"to do": 21, "on disk": 9, "tokens/unit": 13, "tokens": 16, "plain": 16, "saved": 9}
_HEAD = "".join(f"{name:>{width}}" for name, width in ({**_WIDTHS, "replies": 14, "TFLOP": 11}).items())


def describe(
    model: str, shape: Shape, stages: Sequence[Planned], dtype: str, token_budget: int, on_cpu: bool = False
) -> str:
    """Return lines for the terminal: ``model`` does all ``stages``, one after the other; see run_sizes."""
    work = sum((stage.unit * stage.to_do for stage in stages), Work())
    need = memory(shape, work, dtype, token_budget, on_cpu)
    parts = " + ".join(f"{size / 2**30:.2f} {name}" for name, size in need.items())
    context = "unknown" if shape.max_positions is None else f"{shape.max_positions:,} tokens"
    if work.longest > (shape.max_positions or work.longest):
        context += ": TOO LONG, use fewer examples (--n_train) or a model with a longer context"
    lines = [
        f"model    {model}: {shape.n_parameters:,} parameters, {shape.n_layers} layers, {dtype}",
        f"memory   at most {sum(need.values()) / 2**30:.2f} GiB: {parts} ({token_budget:,} tokens at once)",
        f"longest  {work.longest:,} tokens, a prompt with its reply; the context: {context}",
        f"work     about {work.tokens:,} prompt tokens, at most {work.replies:,} reply tokens, "
        f"{flops(shape, work) / 1e12:,.1f} TFLOP",
        _HEAD,
        *(_line(shape, stage) for stage in stages),
        f"plain: one forward pass per prompt. Sizes of units: mean of up to {MEASURED} experiments.",
    ]
    return "\n".join(lines)


def _line(shape: Shape, stage: Planned) -> str:
    work = stage.unit * stage.to_do
    saved = f"{work.plain / work.tokens:.1f} x" if work.tokens else "-"
    counts = f"{stage.to_do:9,}{stage.on_disk:9,}{stage.unit.tokens:13,}{work.tokens:16,}{work.plain:16,}"
    return f"{stage.name:12}{counts}{saved:>9}{work.replies:14,}{flops(shape, work) / 1e12:11,.1f}"
