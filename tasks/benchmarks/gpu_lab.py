"""What bench_gpu.py measures with: prompts of drawn tokens, clocks, ceilings, one model with its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from analysis.base.seeds import generator
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request
from analysis.experiments.trials import control_trials
from analysis.experiments.workload import flops, work_of
from analysis.models.shape import Shape
from configs.settings import ACTIVE, MODES
from tasks.benchmarks.bench_engine import SEED
from tasks.benchmarks.markdown import table
from tasks.benchmarks.plain_loop import count_work

NO_GPU = "not measured (no GPU)"
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
           "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
SHAPES = {
    "8b": (4096, 32, 32, 8, 14336, 128256, False),
    "1b": (2048, 16, 32, 8, 8192, 128256, True),
    "tiny": (64, 2, 4, 2, 128, 512, False),
}
LIMIT = {"prep": 40, "trunk": 20, "branches": 110, "plain": 100, "report": 40}
"""Seconds after which a part starts no further run; at least one is measured."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    sentences: int = 1200
    examples: int = 256
    new_tokens: int = 50
    report: int = 600
    repeats: int = 3
    plain_shots: int = 5
    """Values of N at which the plain loop runs."""
    matrix: int = 8192
    copied: int = 2**31
    """Bytes that one copy reads."""


QUICK = Sizes(40, 8, 6, 12, 1, 3, 256, 2**22)


# ---------------------------------------------------------------- prompts of drawn tokens


def words(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are words of letters; the last id ends a reply."""
    digits = str.maketrans("0123456789", "abcdefghij")
    names = {str(number).translate(digits): number for number in range(vocab)}
    core = Tokenizer(WordLevel(names))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=str(vocab - 1).translate(digits))


@dataclass
class Drawn:
    """Draws token ids below the vocabulary's last three, which are the labels 0 and 1 and the stop token."""

    vocab: int

    def ids(self, count: int, *name: str | int) -> list[int]:
        """Return ``count`` ids, equal for equal names."""
        return generator(SEED, *name).integers(0, self.vocab - 3, count).tolist()

    def sentences(self, count: int, shortest: int, longest: int) -> list[list[int]]:
        """Return sentences of ``shortest`` to ``longest`` tokens."""
        lengths = generator(SEED, "lengths").integers(shortest, longest + 1, count)
        return [self.ids(length, "sentence", n) for n, length in enumerate(lengths)]

    def star(self, count: int) -> list[Request]:
        """Return sentences of 12 to 28 tokens after the same 35."""
        shared = self.ids(35, "prefix")
        return [Request(shared + own, [(35, 35 + len(own))]) for own in self.sentences(count, 12, 28)]

    def conversation(self, sentences: Sequence[list[int]], flip: bool) -> tuple[list[int], list[int]]:
        """Return the ids of labelled examples after a system turn, and the position of every label."""
        labels = generator(SEED, "labels").integers(0, 2, len(sentences)) ^ flip
        ids, places = self.ids(60, "system"), []
        for sentence, label in zip(sentences, labels.tolist(), strict=True):
            ids += [*self.ids(5, "user"), *sentence, *self.ids(3, "score")]
            places.append(len(ids))
            ids += [self.vocab - 3 + label, *self.ids(1, "end")]
        return ids, places

    def control_unit(self, shots: Sequence[int], new_tokens: int) -> list[Request]:
        """Return the trials of experiments.trials.control_trials, hanging off two chains of examples."""
        sentences, requests = self.sentences(max(shots) + 1, 8, 18), []
        chains = [self.conversation(sentences, flip) for flip in (False, True)]
        for trial in control_trials(shots, MODES):
            ids, places = chains[trial.flip]
            stop = places[trial.n - 1] + 2 if trial.n else 60
            ask = [*self.ids(20, "ask"), self.vocab - 3 + trial.target, *self.ids(12, trial.mode)]
            prompt = ids[:stop] + ask
            if trial.mode == ACTIVE:
                requests.append(Request(prompt, reply=Sampling(new_tokens)))
            else:
                whole = prompt + sentences[trial.n]
                requests.append(Request(whole, [(len(prompt), len(whole))]))
        return requests

    def report(self, count: int) -> list[Request]:
        """Return both conversations of a report unit."""
        sentences = self.sentences(count, 8, 18)
        pairs = [self.conversation(sentences, flip) for flip in (False, True)]
        return [Request(ids, logits_at=[place - 1 for place in places]) for ids, places in pairs]


# ---------------------------------------------------------------- measuring


def clock(run: Callable[[], object]) -> float:
    """Return the seconds of one run, with the device idle before and after it."""
    finish()
    start = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - start


def finish() -> None:
    """Wait until the device has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def rate(run: Callable[[], object], work: float) -> float:
    """Return ``work`` per second: the median of 5 times of 10 runs, after 3 runs to warm up."""
    for _ in range(3):
        run()
    return work * 10 / float(np.median([clock(lambda: [run() for _ in range(10)]) for _ in range(5)]))


def products(shape: Shape, sizes: Sizes, rows: int) -> dict[str, tuple[int, int, int]]:
    """Return the matrix products to measure as name -> (m, k, n): (m, k) times (k, n)."""
    d, wide, narrow = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "square": (sizes.matrix,) * 3,
        "smaller square": (sizes.matrix // 2,) * 3,
        "model, queries": (rows, d, wide),
        "model, keys or values": (rows, d, narrow),
        "model, MLP up": (rows, d, shape.intermediate),
        "model, MLP down": (rows, shape.intermediate, d),
    }


def ceilings(
    shape: Shape, sizes: Sizes, rows: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float, list[str]]:
    """Measure the device: return FLOP/s of the fastest product, bytes/s of a copy, and the section."""
    found, lines = {}, []
    for name, (m, k, n) in products(shape, sizes, rows).items():
        a, b = (torch.randn(pair, device=device, dtype=dtype) for pair in ((m, k), (k, n)))
        out = a @ b
        found[name] = rate(partial(torch.mm, a, b, out=out), 2.0 * m * k * n)
        lines.append([f"{name}, {m:,} x {k:,} x {n:,}", f"{found[name] / 1e12:,.3f} TFLOP/s"])
        del a, b, out
    source = torch.ones(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = rate(lambda: target.copy_(source), 2.0 * sizes.copied)
    lines.append([f"copy of {sizes.copied / 2**20:,.0f} MiB, read and written", f"{copy / 1e9:,.1f} GB/s"])
    note = "Utilisation below is against the fastest product; bandwidth floors are against the copy.\n"
    return max(found.values()), copy, ["## Ceilings\n", table(("", "measured"), lines), note]


@dataclass
class Lab:
    """A model, the engine, and the ceilings of the device."""

    shape: Shape
    tree: PrefixTree
    sizes: Sizes
    gemm: float
    copy: float
    peaks: dict[str, tuple[int, int]]
    """Part -> bytes allocated before it, and at its peak."""

    @property
    def drawn(self) -> Drawn:
        return Drawn(self.shape.vocab)

    @contextmanager
    def peak(self, part: str) -> Iterator[None]:
        """Keep the memory of ``part`` if it runs on a GPU."""
        cuda = self.tree.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        yield
        if cuda:
            self.peaks[part] = (before, torch.cuda.max_memory_allocated())

    def utilisation(self, requests: Sequence[Request], seconds: float) -> str:
        """Return the operations needed (workload.flops) per second over the fastest product."""
        work = work_of(requests, self.shape.n_layers, self.tree.token_budget)
        needed = flops(self.shape, work)
        return f"{needed / 1e12:,.4f} TFLOP, {needed / seconds / self.gemm:.1%} of the fastest product"


@dataclass
class Measured:
    """Runs of one part."""

    seconds: float
    """Median."""
    runs: int
    tokens: int
    """Forwarded in one run, counted at the embedding layer."""
    floor: int
    """Distinct prompt tokens, and the reply tokens written."""

    def lines(self) -> list[str]:
        """Return time and tokens as list items."""
        return [
            f"- {self.seconds:.3f} s (median of {self.runs}), {self.tokens / self.seconds:,.0f} tokens/s",
            f"- {self.tokens:,} tokens forwarded, {self.tokens / self.floor:.3f} x of floor {self.floor:,}",
        ]


def measure(
    lab: Lab, part: str, requests: Sequence[Request], layers: Sequence[int] = (), answers: Sequence[int] = ()
) -> Measured:
    """Warm up with a whole run, then run until ``repeats`` or the part's time limit."""
    held: list[list[Reading]] = []

    def run() -> None:
        held[:] = [lab.tree.read(requests, layers, answers)]

    spent = clock(run)
    seconds: list[float] = []
    with lab.peak(part), count_work(lab.tree.model.get_input_embeddings()) as count:
        while not seconds or (len(seconds) < lab.sizes.repeats and spent + seconds[-1] < LIMIT[part]):
            seconds.append(clock(run))
            spent += seconds[-1]
    written = sum(len(r.reply.ids) for r in held[0] if r.reply)
    floor = work_of(requests, len(layers), lab.tree.token_budget).tokens + written
    tokens = round(count.tokens / len(seconds))
    return Measured(float(np.median(seconds)), len(seconds), tokens, floor)


class DecodeClock:
    """Hook before every forward pass: the time from one step of a group of replies to its next step."""

    def __init__(self, tree: PrefixTree) -> None:
        self.tree, self.written = tree, tree.total.reply
        self.last: tuple[float, int, int] | None = None
        self.steps: list[tuple[float, int, int]] = []
        """(seconds, cache slots in use, replies) of every step but the last of its group."""

    def __call__(self, module: nn.Module, args: object, kwargs: dict) -> None:
        now, written = time.perf_counter(), self.tree.total.reply
        replies, self.written = written - self.written, written
        if replies and self.last is not None:  # drawing tokens has waited for the device
            start, slots, wrote = self.last
            self.steps.append((now - start, slots, wrote))
        slots, _ = kwargs["past_key_values"].layers[0].get_mask_sizes(0)  # those that are shown
        self.last = (now, slots, replies) if replies else None
