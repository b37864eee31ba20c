"""Benchmark: what the preparation costs beside a bare forward pass over as many tokens.

prep     a bare forward pass, the engine reading all layers, and the whole preparation as users run it
layers   the engine reading all layers, and only the last one: the share of the pooled reading
chunks   the engine with several token budgets
A bare forward pass is the base model on the distinct tokens of all prompts, the floor, in causal rows of 512.

One process, model loaded, after a warm-up. The sides of a part take turns, so that a machine whose speed
drifts slows all alike; a ratio is the median of those within a repeat.

Reads   data/commonsense/sentences.csv; prints a Markdown report
Try     python -m tasks.benchmarks.bench_prep --sentences 120 --part prep
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from analysis.base.errors import UserError
from analysis.cli.flags import positive
from analysis.cli.script import script, setup_logging
from analysis.engine.check import EXACT_MODES
from analysis.engine.patches import engaged
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.trie import build_trie
from analysis.experiments import machine as machines
from analysis.experiments import preparation
from analysis.experiments.preparation import encode_sentences, pool_sentences
from analysis.models.blocks import input_device
from analysis.process_prompts import Encoded, load_prompts
from analysis.results.store import Store
from configs.settings import Settings
from data.load import Split, load_dataset, read_dataset
from tasks.benchmarks.bench_engine import DATASET, SEED
from tasks.benchmarks.markdown import machine, table
from tasks.benchmarks.plain_loop import count_work
from tasks.benchmarks.program import make_parser
from utils import LoadedModel, load_model

ROW = 512  # tokens of one row of the bare forward pass
WARM = 16  # sentences of the warm-up
STAGES = {
    "tokenizing": (preparation, "encode_sentences"),
    "input embeddings": (preparation, "mean_embeddings"),
    "engine made and checked": (machines, "PrefixTree"),
    "reading": (preparation, "pool_sentences"),
    "fitting and writing": (preparation, "fit_layers"),
}
"""Parts of the preparation, and what does them: a name in a module."""


@dataclass
class Taken:
    """What one run of a side took."""

    seconds: float = 0.0
    tokens: int = 0
    """Tokens forwarded."""
    calls: int = 0
    """Forward passes."""
    stages: dict[str, Taken] = field(default_factory=dict)
    """Of the whole preparation."""


Side = Callable[[], object]
"""Does the work; the whole preparation returns its stages."""
Times = dict[str, list[Taken]]
"""{side: a run per repeat}."""


# ---------------------------------------------------------------- the sides


@dataclass(frozen=True)
class Bench:
    """A model and sentences in their prompts."""

    lm: LoadedModel
    settings: Settings
    split: Split
    encoded: list[Encoded]
    token_budget: int | None

    @property
    def distinct(self) -> torch.Tensor:
        """Return the distinct tokens (M,) int64 of all prompts."""
        return torch.as_tensor(build_trie([e.ids for e in self.encoded]).token)

    def bare(self, fast: bool = False) -> Side:
        """Return the forward pass over as many tokens, nothing read; ``fast`` with the engine's products."""
        ids = self.distinct.to(input_device(self.lm.model))
        rows = [row[None] for row in ids.split(ROW)]

        def run() -> None:
            products = engaged(self.lm.model, products=True) if fast else nullcontext()
            with torch.inference_mode(), products:
                for row in rows:
                    self.lm.model.base_model(input_ids=row, use_cache=False)
            if ids.is_cuda:  # the passes are only under way
                torch.cuda.synchronize()

        return run

    def engine(self, layers: Sequence[int], token_budget: int | None = None) -> Side:
        """Return the reading of these layers."""
        tree = PrefixTree(self.lm.model, self.lm.tokenizer, token_budget or self.token_budget)
        return lambda: pool_sentences(tree, self.encoded, layers)

    def whole(self) -> dict[str, Taken]:
        """Prepare into a folder of its own, as a new process would; return what the parts took."""
        EXACT_MODES.pop(self.lm.model, None)  # the engine checks a model once
        with TemporaryDirectory() as folder, stopwatch(self.lm) as stages:
            store = Store(Path(folder), self.lm.name, DATASET)
            preparation.prepare(self.lm, DATASET, self.settings, store, token_budget=self.token_budget)
            return stages

    def parts(self, part: str, budgets: Sequence[int]) -> dict[str, Side]:
        """Return the sides of a part, by name; the others are compared with the first."""
        layers = range(self.lm.n_layers)
        if part == "prep":
            return {
                "bare forward": self.bare(),
                "bare, engine's products": self.bare(fast=True),
                "engine, all layers": self.engine(layers),
                "whole preparation": self.whole,
            }
        if part == "layers":
            return {"last layer only": self.engine(layers[-1:]), "all layers": self.engine(layers)}
        return {f"{budget:,} tokens": self.engine(layers, budget) for budget in budgets}


def make_bench(lm: LoadedModel, sentences: int, token_budget: int | None) -> Bench:
    """Return so many sentences, half of them to fit axes on.

    Raises:
        UserError: the dataset has fewer, or the number cannot be halved into balanced halves.
    """
    there = len(read_dataset(DATASET).sentences)
    if sentences > there:
        raise UserError(f"{sentences} sentences are needed, but {DATASET} has {there}: lower --sentences")
    if sentences % 4 or sentences < 8:
        raise UserError(f"--sentences {sentences}: give a multiple of 4 from 8, two balanced halves")
    settings = Settings(seed=SEED, n_axis=sentences // 2, n_trial=sentences // 2)
    split = load_dataset(DATASET, settings.seed, settings.n_axis, settings.n_trial).compact()
    encoded = encode_sentences(lm, split.dataset, load_prompts(DATASET))
    return Bench(lm, settings, split, encoded, token_budget)


# ---------------------------------------------------------------- measuring


@contextmanager
def stopwatch(lm: LoadedModel) -> Iterator[dict[str, Taken]]:
    """Measure the parts of every preparation in the block, as it calls them."""
    stages = {name: Taken() for name in STAGES}

    def watched(call: Callable, taken: Taken, *args: Any, **more: Any) -> Any:
        with measured(lm, taken):
            return call(*args, **more)

    real = {name: getattr(*place) for name, place in STAGES.items()}
    try:
        for name, place in STAGES.items():
            setattr(*place, partial(watched, real[name], stages[name]))
        yield stages
    finally:
        for name, place in STAGES.items():
            setattr(*place, real[name])


@contextmanager
def measured(lm: LoadedModel, taken: Taken) -> Iterator[None]:
    """Add to ``taken`` what the block takes."""
    with count_work(lm.model.get_input_embeddings()) as count:
        start = time.perf_counter()
        yield
        taken.seconds += time.perf_counter() - start
    taken.tokens += count.tokens
    taken.calls += count.calls


def take_turns(lm: LoadedModel, sides: Mapping[str, Side], repeats: int) -> Times:
    """Run all sides in turns, ``repeats`` times, each time beginning with another one."""
    times: Times = {name: [] for name in sides}
    for repeat in range(repeats):
        names = list(sides)
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            taken = Taken()
            with measured(lm, taken):
                gave = sides[name]()
            stages = gave if isinstance(gave, dict) else {}
            times[name].append(without_lookups(replace(taken, stages=stages)))
    return times


def without_lookups(taken: Taken) -> Taken:
    """Leave out the embeddings that the preparation looks up without a forward pass."""
    looked_up = taken.stages.get("input embeddings", Taken())
    return replace(taken, tokens=taken.tokens - looked_up.tokens, calls=taken.calls - looked_up.calls)


def ratio(times: Times, name: str, other: str) -> float:
    """Return the seconds of one side as a multiple of another's: the median over the repeats."""
    pairs = zip(times[name], times[other], strict=True)
    return median([a.seconds / b.seconds for a, b in pairs])


# ---------------------------------------------------------------- the report


def sides_table(times: Times, floor: int) -> str:
    """Return one row per side."""
    reference = next(iter(times))
    head = ("", "tokens forwarded", "forward calls", "x of floor", "seconds", "tokens/s", f"x {reference}")
    rows = []
    for name, runs in times.items():
        seconds, tokens = median([run.seconds for run in runs]), runs[0].tokens
        rows.append(
            [name, f"{tokens:,}", f"{runs[0].calls:,}", f"{tokens / floor:.3f}", f"{seconds:.2f}",
             f"{tokens / seconds:,.0f}", f"{ratio(times, name, reference):.2f}"]
        )  # fmt: skip
    return table(head, rows)


def stages_table(runs: Sequence[Taken]) -> str:
    """Return how the whole preparation splits; medians over the repeats need not add up."""
    parts = {name: [run.stages[name].seconds for run in runs] for name in STAGES}
    parts["anything else"] = [r.seconds - sum(part.seconds for part in r.stages.values()) for r in runs]
    whole = [run.seconds for run in runs]
    rows = [
        [name, f"{median(took):.2f}", f"{100 * median(took) / median(whole):.1f} %"]
        for name, took in {**parts, "whole preparation": whole}.items()
    ]
    return table(("", "seconds", "share"), rows)


def report(part: str, times: Times, floor: int) -> list[str]:
    """Return the lines about one part."""
    lines = [sides_table(times, floor)]
    if part == "prep":
        found = ratio(times, "whole preparation", "bare forward")
        lines.append(stages_table(times["whole preparation"]))
        same = ratio(times, "whole preparation", "bare, engine's products")
        lines += [
            f"The whole preparation takes {found:.2f} x the bare forward pass (target: at most 1.3), and "
            f"{same:.2f} x one whose matrix products are those of the engine (analysis/engine/kernels.py).\n"
        ]
    if part == "layers":
        share = 1 - 1 / ratio(times, "all layers", "last layer only")
        lines += [f"Reading the other layers is {100 * share:.1f} % of the time (target: at most 5 %).\n"]
    return lines


TITLES = {
    "prep": "Preparation against a bare forward pass", "layers": "All layers against the last one",
    "chunks": "Tokens forwarded at once",
}  # fmt: skip


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print the report."""
    parser = make_parser(__doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--model", default="smollm2", help=f"alias, hub name, folder or .gguf file {shown}")
    flag("--device", default="cpu", help=f"cpu, cuda or auto {shown}")
    flag("--dtype", default="auto", help=f"float32, bfloat16, or auto: float32 on a CPU {shown}")
    flag("--sentences", type=positive, default=1200, help=f"sentences to prepare, a multiple of 4 {shown}")
    flag("--repeats", type=positive, default=3, help=f"runs of every side {shown}")
    flag("--token_budget", type=positive, help="most tokens that the engine forwards at once")
    flag("--budgets", type=positive, nargs="+", default=(128, 256, 512, 1024, 2048), help=f"chunks: {shown}")
    flag("--part", choices=(*TITLES, "all"), default="all", help=f"what to run {shown}")
    args = parser.parse_args(argv)
    setup_logging("warning")
    hf_logging.set_verbosity_error()
    lm = load_model(args.model, device=args.device, dtype=args.dtype)
    bench, warm = (make_bench(lm, n, args.token_budget) for n in (args.sentences, min(WARM, args.sentences)))
    floor, asked = len(bench.distinct), sum(len(e.ids) for e in bench.encoded)
    print(f"{machine(args.model, lm)}\n")
    print(
        f"{args.sentences} sentences, {asked:,} prompt tokens, {floor:,} of them distinct: the floor; "
        f"on {lm.about['device']}, seconds and ratios are medians of {args.repeats}.\n"
    )
    for part in TITLES if args.part == "all" else (args.part,):
        take_turns(lm, warm.parts(part, args.budgets), 1)
        times = take_turns(lm, bench.parts(part, args.budgets), args.repeats)
        print(f"## {TITLES[part]}\n", *report(part, times, floor), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
