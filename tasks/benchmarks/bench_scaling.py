"""Benchmark: how the cost of the prefix-tree engine grows with the work; engine only, on the CPU.

n          the largest number N of examples of a control unit, shots 0 and N
sentences  sentences of a preparation, every layer read
layers     layers read of a preparation; the last is always one of them, so all blocks run
depth      blocks of the model: the first ones of it, all weights shared
branches   greedy replies that hang off one conversation of fixed length
Each is doubled three times, the rest stays. The sizes of a part are timed in turns, so that a change of the
machine's speed meets all of them; memory is measured in one process per size. Loading is in neither.

Reads   data/commonsense/sentences.csv; writes nothing, prints a Markdown report
Try     python -m tasks.benchmarks.bench_scaling --part sentences --sentences 10 20 40 --repeats 1
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from analysis.base.errors import UserError
from analysis.base.progress import bar
from analysis.cli.flags import positive
from analysis.cli.script import script, setup_logging
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Request
from analysis.engine.trie import build_trie
from analysis.experiments.trials import control_trials
from analysis.experiments.workload import flops, work_of
from analysis.models.blocks import decoder_blocks
from analysis.models.shape import Shape, load_shape
from configs.settings import ACTIVE
from tasks.benchmarks.bench_engine import MEGABYTE, Cell, make_requests, shorten
from tasks.benchmarks.markdown import machine, table
from tasks.benchmarks.plain_loop import count_work, forget_peak, peak_memory
from tasks.benchmarks.program import in_own_process, make_parser
from utils import LoadedModel, load_model

SIZES = {"n": (16, 32, 64, 128), "sentences": (150, 300, 600, 1200), "branches": (4, 8, 16, 32)}
PARTS = {
    "n": (
        "Control unit with shots 0 and N, 16 trials, replies up to {max_new_tokens} tokens",
        "tokens below 1, since replies do not grow; operations more, for attention; memory as the cache",
    ),
    "sentences": (
        "Sentences of a preparation, every layer read",
        "just below 1, since the shared prefix does not grow; memory beyond the output flat",
    ),
    "layers": ("Layers read of {prep} sentences, all blocks run", "0 for all but the output"),
    "depth": (
        "Blocks of the model, {prep} sentences, the last block read",
        "operations 1; seconds less, since building the tree does not grow; memory grows with the cache",
    ),
    "branches": (
        "Replies of up to {max_new_tokens} tokens after at most {examples} examples of one conversation",
        "below 1, since the conversation is read once for all; seconds per written token fall",
    ),
}
"""Title and expected slopes of each part."""


@dataclass(frozen=True)
class Job:
    """One part: what grows, and what stays."""

    part: str
    model: str
    sizes: tuple[int, ...]
    repeats: int = 3
    prep: int = 300  # sentences where layers or depth grow
    examples: int = 32  # in the conversation that replies hang off
    max_new_tokens: int = 50


@dataclass
class Task:
    """The work of one size, and a warm engine to do it."""

    tree: PrefixTree
    requests: list[Request]
    layers: Sequence[int]
    shape: Shape


@dataclass
class Found:
    """What one size took."""

    tokens: int  # forwarded in one run, counted at the embedding layer
    floor: int  # distinct prompt tokens, and the reply tokens forwarded
    flops: int  # needed for what was read and written, see analysis.experiments.workload
    written: int  # reply tokens
    dtype: str
    runs: list[float]  # seconds
    peak: int = 0  # bytes of resident memory above that of the loaded, warm model
    output: int = 0  # bytes of all means that were returned


COLUMNS: dict[str, tuple[str, Callable[[Found], float]]] = {
    "tokens": (",.0f", lambda f: f.tokens),
    "floor": (",.0f", lambda f: f.floor),
    "GFLOP": (",.1f", lambda f: f.flops / 1e9),
    "seconds": (",.2f", lambda f: float(np.median(f.runs))),
    "written": (",.0f", lambda f: f.written),
    "s/written": (".4f", lambda f: float(np.median(f.runs)) / f.written),
    "peak MB": (",.1f", lambda f: f.peak / MEGABYTE),
    "of it output": (",.2f", lambda f: f.output / MEGABYTE),
    "beyond output": (",.1f", lambda f: (f.peak - f.output) / MEGABYTE),
}


def truncated(model: PreTrainedModel, depth: int) -> PreTrainedModel:
    """Return the model of the first ``depth`` blocks, which shares all its weights with ``model``."""
    small = copy.deepcopy(model, {id(w): w for w in (*model.parameters(), *model.buffers())})
    config = small.config.get_text_config()
    del decoder_blocks(small)[depth:]  # found by their number, which changes below
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):  # which blocks have a sliding window
        config.layer_types = config.layer_types[:depth]
    return small


def spaced(count: int, n_layers: int) -> list[int]:
    """Return ``count`` layers at equal distances up to the last."""
    return [(i + 1) * n_layers // count - 1 for i in range(count)]


def trunk_requests(job: Job, size: int, lm: LoadedModel) -> list[Request]:
    """Return both targets at half as many values of N; mirrored labels would be a second conversation."""
    shots = tuple(n + 1 for n in spaced((size + 1) // 2, job.examples))
    cell = Cell("engine", ACTIVE, job.model, shots, max_new_tokens=job.max_new_tokens)
    pairs = zip(make_requests(cell, lm), control_trials(shots, (ACTIVE,)), strict=True)
    return [request for request, trial in pairs if not trial.flip][:size]


def make_task(job: Job, size: int, lm: LoadedModel, shape: Shape) -> Task:
    """Return the work of one size, warmed up; ``shape`` is that of the whole model ``lm``."""
    layers: Sequence[int] = spaced(size, lm.n_layers) if job.part == "layers" else range(lm.n_layers)
    if job.part == "depth":
        layers, lm = [size - 1], replace(lm, model=truncated(lm.model, size))
        blocks = shape.block_parameters * size // shape.n_layers
        shape = replace(shape, n_layers=size, block_parameters=blocks)
    if job.part == "branches":
        requests = trunk_requests(job, size, lm)
    else:
        task = "active+inactive" if job.part == "n" else "prep"
        count = size if job.part == "sentences" else job.prep
        requests = make_requests(Cell("engine", task, job.model, (0, size), count, job.max_new_tokens), lm)
    tree = PrefixTree(lm.model, lm.tokenizer)
    tree.read([shorten(requests[0]), shorten(requests[-1])], layers)
    for weight in lm.model.parameters():
        weight.sum()  # else a page of a mapped file comes into memory when a token first needs it
    return Task(tree, requests, layers, shape)


def load(job: Job) -> tuple[LoadedModel, Shape]:
    """Return the whole model and its sizes."""
    hf_logging.set_verbosity_error()
    return load_model(job.model, device="cpu"), load_shape(job.model)


def time_sizes(job: Job) -> list[Found]:
    """Run all sizes one after the other, and that ``repeats`` times."""
    lm, shape = load(job)
    tasks = [make_task(job, size, lm, shape) for size in job.sizes]
    runs = [run(task) for task in bar(tasks * job.repeats, desc=f"{job.part}, seconds", unit="run")]
    own = (runs[i :: len(tasks)] for i in range(len(tasks)))
    return [replace(first, runs=[first.runs[0], *(r.runs[0] for r in rest)]) for first, *rest in own]


def run(task: Task) -> Found:
    """Time and count one run."""
    tree, before = task.tree, task.tree.total.reply
    with count_work(tree.model.get_input_embeddings()) as count:
        start = time.perf_counter()
        readings = tree.read(task.requests, task.layers)
        seconds = time.perf_counter() - start
    lengths = [len(r.reply.ids) if r.reply else 0 for r in readings]
    floor = len(build_trie([r.ids for r in task.requests])) + tree.total.reply - before
    pairs = zip(task.requests, lengths, strict=True)
    done = [replace(request, reply=request.reply and Sampling(length)) for request, length in pairs]
    needed = flops(task.shape, work_of(done, len(task.layers), tree.token_budget))
    return Found(count.tokens, floor, needed, sum(lengths), str(tree.model.dtype)[6:], [seconds])


def measure_memory(job: Job, size: int) -> tuple[int, int]:
    """Return the growth of memory in one run, and the size of what it returns, in bytes."""
    task = make_task(job, size, *load(job))
    peak, readings = growth(lambda: task.tree.read(task.requests, task.layers))
    means = [mean for r in readings for mean in (r.pooled, r.reply_pooled) if mean is not None]
    return peak, sum(mean.nbytes for mean in means)


def growth(work: Callable[[], Any]) -> tuple[int, Any]:
    """Return by how many bytes resident memory grows at most during ``work``, and what it returns."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # only glibc has it
    trim(0)  # memory that loading left free would be used again without growth
    before = forget_peak()
    result = work()
    return peak_memory() - before, result


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of the least-squares fit values = a x sizes^b on logarithms; NaN if a value is not > 0."""
    if len(set(sizes)) < 2 or min(values) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def section(job: Job, found: Sequence[Found]) -> list[str]:
    """Return the table of one part, with the slopes as its last row."""
    writes, (title, expected) = all(f.written for f in found), PARTS[job.part]
    shown = {name: column for name, column in COLUMNS.items() if writes or "written" not in name}
    rows = [
        [f"{size:,}", *(format(value(f), form) for form, value in shown.values())]
        for size, f in zip(job.sizes, found, strict=True)
    ]
    slopes = {name: slope(job.sizes, [value(f) for f in found]) for name, (_, value) in shown.items()}
    rows.append(["slope", *(f"{value:z.2f}" for value in slopes.values())])
    alone = [slope(job.sizes, turn) for turn in zip(*(f.runs for f in found), strict=True)]
    return [
        f"## {title.format(**vars(job))}\n",
        table((job.part, *shown), rows),
        f"Expected slopes: {expected}.",
        f"Seconds grow with slope {slopes['seconds']:z.2f} ({min(alone):z.2f} to {max(alone):z.2f} in the "
        f"runs taken alone), the operations that the work needs with {slopes['GFLOP']:z.2f}.\n",
    ]


NOTE = """\
A slope b means cost = a x size^b, fitted to the logarithms by least squares: 1 is linear, 0 is flat. The
floor of tokens is each distinct prompt token once, and each reply token that is forwarded. GFLOP is what
analysis/experiments/workload.py needs for the same requests with the replies as written: attention makes it
grow faster than tokens, and what is the same at every size makes all slopes smaller. So compare seconds
with GFLOP.
"""


def make_jobs(args: argparse.Namespace) -> list[Job]:
    """Return the parts to run; sizes that cannot be made raise UserError."""
    n_layers, fixed = load_shape(args.model).n_layers, (args.prep, args.examples, args.max_new_tokens)
    eighths = tuple(sorted({max(1, round(n_layers * share)) for share in (1 / 8, 1 / 4, 1 / 2, 1)}))
    most = {"layers": n_layers, "depth": n_layers, "branches": 2 * args.examples}
    jobs = []
    for part in PARTS if args.part == "all" else (args.part,):
        sizes = tuple(getattr(args, part) or SIZES.get(part, eighths))
        if max(sizes) > most.get(part, max(sizes)):
            why = "twice the --examples" if part == "branches" else "the blocks of the model"
            raise UserError(f"--{part} {max(sizes)}: at most {most[part]}, {why}")
        jobs.append(Job(part, args.model, sizes, args.repeats, *fixed))
    return jobs


def measure(job: Job) -> list[Found]:
    """Return counts, time and memory of all sizes of one part."""
    found = in_own_process(time_sizes, job)
    for own, size in zip(found, bar(job.sizes, desc=f"{job.part}, memory", unit="run"), strict=True):
        own.peak, own.output = in_own_process(measure_memory, job, size)
    return found


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print the report."""
    parser = make_parser(__doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--model", default="smollm2", help=f"alias, hub name, folder or .gguf file {shown}")
    flag("--part", choices=(*PARTS, "all"), default="all", help=f"what grows {shown}")
    flag("--repeats", type=positive, default=Job.repeats, help=f"timed runs, the median counts {shown}")
    for part in PARTS:
        sizes = " ".join(map(str, SIZES.get(part, ("1/8 1/4 1/2 and all of the blocks",))))
        flag(f"--{part}", type=positive, nargs="+", help=f"sizes of this part (default: {sizes})")
    flag("--prep", type=positive, default=Job.prep, help=f"sentences for layers and depth {shown}")
    flag("--examples", type=positive, default=Job.examples, help=f"examples before the branches {shown}")
    flag("--max_new_tokens", type=positive, default=Job.max_new_tokens, help=f"longest reply {shown}")
    args = parser.parse_args(argv)
    setup_logging("warning")
    for place, job in enumerate(make_jobs(args)):
        found = measure(job)
        if not place:
            print(f"{machine(args.model, found[0])}\n\n{NOTE}")
        print(*section(job, found), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
