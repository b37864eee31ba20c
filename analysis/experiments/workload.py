"""What a run will take, before any weight is loaded: tokens, floating-point operations, memory.

    shape = load_shape("smollm2")
    texts = load_texts("smollm2", "commonsense", settings, load_tokenizer("smollm2"), token_budget=512)
    unit = control_work(texts, shape, range(6))
    print(describe("smollm2", shape, [Stage("control", unit, to_do=6)], "float32", 512))

Prompts are built and tokenized as the run does it, so the tokens of what is measured are exact; replies are
counted at their longest. Memory is a bound for tensors: the libraries' own (about 0.5 GiB for CUDA) is extra.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from analysis.engine.plan import make_plan
from analysis.engine.replies import HELD_BACK, Sampling
from analysis.engine.request import Request
from analysis.engine.trie import build_trie
from analysis.experiments.preparation import BYTES_AT_ONCE
from analysis.experiments.trials import axis_turns, control_trials, control_turns, draw_order, report_turns
from analysis.models.shape import Shape
from analysis.process_prompts import Prompter, Prompts, load_prompts
from configs.settings import ACTIVE, Settings
from data.load import Split, load_dataset
from utils import model_name

MEASURED = 3  # experiments whose prompts are built to learn what one unit takes; units differ a little


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
    trie = build_trie([request.ids for request in requests])
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
class Texts:
    """Real sentences in a model's real prompts."""

    settings: Settings
    prompts: Prompts
    prompter: Prompter
    split: Split
    token_budget: int

    def drawn(self, exp: int, length: int) -> tuple[list[str], np.ndarray]:
        """Return the sentences of an experiment with the dataset's labels: tokens are the same for any."""
        rows = draw_order(self.settings.seed, exp, self.split.trial_rows, length)
        return [self.split.dataset.sentences[row] for row in rows], self.split.dataset.labels[rows]


def load_texts(
    model: str, dataset: str, settings: Settings, tokenizer: PreTrainedTokenizerBase, token_budget: int
) -> Texts:
    """Read the dataset and the prompts for ``model``, the one that reads; bad ones raise UserError."""
    split = load_dataset(dataset, settings.seed, settings.n_axis, settings.n_trial).compact()
    return Texts(settings, load_prompts(dataset), Prompter(tokenizer, model_name(model)), split, token_budget)


def preparation_work(texts: Texts, shape: Shape, method: str = "pcascore") -> Work:
    """Return the work of the whole preparation; ``each`` takes several passes, all counted in full."""
    turns = (axis_turns(texts.prompts, sentence) for sentence in texts.split.dataset.sentences)
    requests = [Request(e.ids, e.spans) for e in map(texts.prompter.encode, turns)]
    if method != "each":
        return work_of(requests, shape.n_layers, texts.token_budget)
    requests = [Request(r.ids, [(t, t + 1) for t in range(*r.spans[0])]) for r in requests]
    spans = sum(len(request.spans) for request in requests)
    at_once = min(shape.n_layers, max(1, BYTES_AT_ONCE // (spans * shape.hidden * 4)))
    return work_of(requests, at_once, texts.token_budget) * -(-shape.n_layers // at_once)


def control_work(texts: Texts, shape: Shape, exps: Sequence[int]) -> Work:
    """Return the work of one control unit: the mean over the first experiments and all ``levels``."""
    return _mean_unit(texts, control_requests, exps, shape.n_layers)


def report_work(texts: Texts, exps: Sequence[int]) -> Work:
    """Return the work of one report unit: the mean over the first experiments and all ``levels``."""
    return _mean_unit(texts, report_requests, exps, 0)


def control_requests(texts: Texts, exp: int, levels: int = 2) -> list[Request]:
    """Return the requests of one control unit."""
    settings = texts.settings
    sentences, labels = texts.drawn(exp, settings.shots[-1] + 1)
    requests = []
    for trial in control_trials(settings.shots, settings.modes, levels):
        turns = control_turns(trial, texts.prompts, sentences, labels)
        reply = Sampling(settings.max_new_tokens) if trial.mode == ACTIVE else None
        encoded = texts.prompter.encode(turns, reply=reply is not None)
        requests.append(Request(encoded.ids, encoded.spans, reply=reply))
    return requests


def report_requests(texts: Texts, exp: int, levels: int = 2) -> list[Request]:
    """Return the requests of one report unit."""
    sentences, labels = texts.drawn(exp, texts.settings.report_examples)
    turns = (report_turns(texts.prompts, sentences, labels, flip, levels) for flip in (False, True))
    encoded = map(texts.prompter.encode, turns)
    return [Request(e.ids, logits_at=[place - 1 for place in e.labels]) for e in encoded]


def _mean_unit(texts: Texts, make: Callable[..., list[Request]], exps: Sequence[int], n_layers: int) -> Work:
    units = list(itertools.product(exps[:MEASURED], texts.settings.levels))
    works = (work_of(make(texts, *unit), n_layers, texts.token_budget) for unit in units)
    return sum(works, Work()) * (1 / max(1, len(units)))


@dataclass(frozen=True)
class Stage:
    """Units of one kind; ``unit`` is the work of one."""

    name: str
    unit: Work
    to_do: int
    on_disk: int = 0


_WIDTHS = {"to do": 21, "on disk": 9, "tokens/unit": 13, "tokens": 16, "plain": 16, "saved": 9}
_HEAD = "".join(f"{name:>{width}}" for name, width in ({**_WIDTHS, "replies": 14, "TFLOP": 11}).items())


def describe(
    model: str, shape: Shape, stages: Sequence[Stage], dtype: str, token_budget: int, on_cpu: bool = False
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


def _line(shape: Shape, stage: Stage) -> str:
    work = stage.unit * stage.to_do
    saved = f"{work.plain / work.tokens:.1f} x" if work.tokens else "-"
    counts = f"{stage.to_do:9,}{stage.on_disk:9,}{stage.unit.tokens:13,}{work.tokens:16,}{work.plain:16,}"
    return f"{stage.name:12}{counts}{saved:>9}{work.replies:14,}{flops(shape, work) / 1e12:11,.1f}"
