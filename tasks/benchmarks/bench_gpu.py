"""Benchmark: the prefix-tree engine on one GPU against what the GPU can do; random weights, no download.

ceilings  rate of matrix products and of copies in device memory; always measured, first
prep      the mean state of every sentence at every layer: short branches on one shared prefix
trunk     one causal chain of examples
branches  one control unit: N = 0, 2, ..., both modes, targets and flips; and the plain loop beside it
report    one conversation read with both label assignments, logits before every label
The model has the sizes of Llama-3.1-8B; token ids are drawn, and decoding text is replaced by a stand-in.
Engine times are medians of runs that begin and end with an idle device; one whole run before them warms up
and is not counted.

Reads   nothing
Writes  nothing; prints a Markdown report
Try     python -m tasks.benchmarks.bench_gpu --shape tiny --device cpu --quick
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as hf_logging

from analysis.base.errors import UserError
from analysis.cli.flags import positive
from analysis.cli.script import script, setup_logging
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.experiments.workload import memory, work_of
from analysis.models.shape import load_shape
from configs.settings import MODES
from tasks.benchmarks.bench_engine import SEED
from tasks.benchmarks.gpu_lab import (
    _FIELDS,
    LIMIT,
    NO_GPU,
    QUICK,
    SHAPES,
    DecodeClock,
    Lab,
    Sizes,
    ceilings,
    clock,
    measure,
    words,
)
from tasks.benchmarks.markdown import table
from tasks.benchmarks.plain_loop import PlainLoop
from tasks.benchmarks.program import make_parser
from utils import choose_dtype

# ---------------------------------------------------------------- the parts


def prep_part(lab: Lab) -> list[str]:
    """Read sentences that share a prefix."""
    requests = lab.drawn.star(lab.sizes.sentences)
    title = f"## Preparation: {len(requests):,} sentences, every layer\n"
    return [title, *all_layers(lab, "prep", requests)]


def trunk_part(lab: Lab) -> list[str]:
    """Read one long conversation."""
    ids, _ = lab.drawn.conversation(lab.drawn.sentences(lab.sizes.examples, 8, 18), False)
    title = f"## Trunk: {lab.sizes.examples} examples, {len(ids):,} tokens\n"
    return [title, *all_layers(lab, "trunk", [Request(ids, [(len(ids) - 1, len(ids))])])]


def all_layers(lab: Lab, part: str, requests: Sequence[Request]) -> list[str]:
    """Read spans at every layer; return time, tokens and utilisation."""
    found = measure(lab, part, requests, range(lab.shape.n_layers))
    return [*found.lines(), f"- {lab.utilisation(requests, found.seconds)}\n"]


def branches_part(lab: Lab) -> list[str]:
    """Run a control unit, and the plain loop on a part of it."""
    shots = range(0, lab.sizes.examples + 1, 2)
    requests = lab.drawn.control_unit(shots, lab.sizes.new_tokens)
    steps = DecodeClock(lab.tree)
    handle = lab.tree.model.base_model.register_forward_pre_hook(steps, with_kwargs=True)
    try:
        found = measure(lab, "branches", requests, range(lab.shape.n_layers))
    finally:
        handle.remove()
    del steps.steps[: len(steps.steps) // (found.runs + 1)]  # those of the run that warms up
    asked = sum(len(r.ids) for r in requests)
    decoding = sum(seconds for seconds, _, _ in steps.steps) / found.runs
    prompts = lab.utilisation([replace(r, reply=None) for r in requests], found.seconds - decoding)
    return [
        f"## Branches: control unit, N = 0, 2, ..., {shots[-1]}, both modes, targets and flips\n",
        f"- {len(requests):,} prompts of {asked:,} tokens, {asked / found.floor:.1f} x of the floor below",
        *found.lines(), *decode_lines(lab, steps),
        f"- decoding takes {decoding:.3f} s of the unit (last steps of groups left out); prompts, with "
        f"all the rest of the time: {prompts}",
        plain_line(lab, shots, requests, found.seconds),
    ]  # fmt: skip


def decode_lines(lab: Lab, clock: DecodeClock) -> list[str]:
    """Compare steps of decoding with reading weights and cache once at the rate of the copy."""
    shape, size = lab.shape, lab.tree.model.dtype.itemsize
    seconds, slots, replies = np.array(clock.steps).T
    weights = size * (shape.block_parameters + shape.vocab * shape.hidden)
    cache = 2 * size * shape.n_layers * shape.kv_heads * shape.head_dim * slots
    floor = (weights + cache) / lab.copy
    took, least = 1e3 * np.median(seconds), 1e3 * np.median(floor)
    return [
        f"- decoding: {took:.3f} ms per step of {np.median(replies):.0f} replies (median of "
        f"{len(seconds):,}), {np.median(seconds / floor):.2f} x of floor {least:.4f} ms",
        f"- that floor reads {weights / 1e9:.3f} GB of weights and {np.median(cache) / 1e9:.3f} GB of keys "
        "and values, all slots of the cache, once",
    ]


def plain_line(lab: Lab, shots: Sequence[int], unit: Sequence[Request], engine: float) -> str:
    """Time the plain loop at some N, both ends first, and scale to the unit."""
    loop = PlainLoop(lab.tree.model, lab.tree.decode, lab.tree.stops)
    per_shot = len(unit) // len(shots)
    places = np.unique(np.linspace(0, len(shots) - 1, min(lab.sizes.plain_shots, len(shots))).astype(int))
    took: dict[int, float] = {}
    loop(unit[-len(MODES) :], lambda tokens: None)  # warms up with the longest prompts
    with lab.peak("plain loop"):
        for place in sorted(places.tolist(), key=lambda p: p not in (places[0], places[-1])):
            if len(took) < 2 or sum(took.values()) < LIMIT["plain"]:
                first = place * per_shot  # of one flip and target, in both modes
                trials = unit[first : first + len(MODES)]
                took[place] = clock(partial(loop, trials, lambda tokens: None))
    known = sorted(took)
    whole = np.interp(np.arange(len(shots)), known, [took[p] for p in known]).sum() * per_shot / len(MODES)
    at = ", ".join(str(shots[place]) for place in known)
    return (
        f"- plain loop: {whole:.3f} s for the unit, {whole / engine:.1f} x the engine; measured once, "
        f"{sum(took.values()):.3f} s for {len(known) * len(MODES)} of {len(unit):,} prompts: N = {at}, one "
        f"flip and target; linear in N between, times {per_shot // len(MODES)}\n"
    )


def report_part(lab: Lab) -> list[str]:
    """Read a report unit and show that only asked-for logits are made."""
    requests, vocab, rows = lab.drawn.report(lab.sizes.report), lab.shape.vocab, []
    head = lab.tree.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: rows.append(out.numel() // vocab))
    try:
        found = measure(lab, "report", requests, answers=[vocab - 3, vocab - 2])
    finally:
        handle.remove()
    tokens, row = len(requests[0].ids), vocab * lab.tree.model.dtype.itemsize
    return [
        f"## Report: {lab.sizes.report} examples, 2 label assignments\n", *found.lines(),
        f"- {lab.utilisation(requests, found.seconds)}",
        f"- logits of all {tokens:,} tokens of one conversation would be {tokens * row / 1e9:.3f} GB; the "
        f"largest logits tensor made has {max(rows):,} rows, {max(rows) * row / 1e9:.3f} GB",
        f"- peak memory: {no_full_logits(lab, requests, tokens * row)}\n",
    ]  # fmt: skip


def no_full_logits(lab: Lab, requests: Sequence[Request], full: int) -> str:
    """Compare the memory beyond weights and cache, where logits would be, with those of all tokens."""
    if "report" not in lab.peaks:
        return NO_GPU
    before, most = lab.peaks["report"]
    budget, dtype = lab.tree.token_budget, str(lab.tree.model.dtype)[6:]
    cache = memory(lab.shape, work_of(requests, 0, budget), dtype, budget)["cache"]
    rest = most - before - cache
    return (
        f"{(most - before) / 1e9:.3f} GB above the weights, {cache / 1e9:.3f} GB of it keys and values; the "
        f"other {rest / 1e9:.3f} GB are {'less' if rest < full else 'NOT less'} than those logits"
    )


def memory_lines(lab: Lab) -> list[str]:
    """List the peak of each part."""
    rows = [
        [part, *(f"{b / 1e9:.3f}" for b in (*sizes, sizes[1] - sizes[0]))]
        for part, sizes in lab.peaks.items()
    ]
    shown = table(("", "GB before", "GB at peak", "GB above"), rows) if rows else NO_GPU
    end = f"Tokens at once, in the end: {lab.tree.token_budget:,} (halved whenever memory runs out)."
    return ["## Peak memory (torch.cuda.max_memory_allocated; weights are there before)\n", shown, end]


PARTS = {"prep": prep_part, "trunk": trunk_part, "branches": branches_part, "report": report_part}


def run_parts(args: argparse.Namespace, sizes: Sizes) -> Iterator[str]:
    """Measure the ceilings, make the model, run the parts; yield the report's lines as they are known."""
    device, dtype = torch.device(args.device), choose_dtype(args.dtype, args.device)
    budget = args.token_budget or (512 if device.type == "cpu" else 4096)
    if device.type == "cpu":
        sizes = replace(sizes, matrix=min(sizes.matrix, 512), copied=min(sizes.copied, 2**25))
    sized: dict[str, Any] = dict(zip(_FIELDS, SHAPES[args.shape], strict=True))
    config = LlamaConfig(**sized, max_position_embeddings=2**17, bos_token_id=None, eos_token_id=None)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        shape = load_shape(folder)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    about = f"{shape.n_parameters:,} random weights, {str(dtype)[6:]}, {budget:,} tokens at once"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    yield f"{date.today()}; {name}; Llama {args.shape}, {about}; {versions}\n"
    gemm, copy, lines = ceilings(shape, sizes, budget, device, dtype)
    yield from lines
    torch.manual_seed(SEED)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    tree = PrefixTree(model, words(shape.vocab), budget)
    if not tree.packed:
        raise UserError("packed rows are not exact on this device (see the warning): try --dtype float32")
    yield f"Attention of packed rows by {tree.mode}, see analysis/engine/sight.py.\n"
    lab = Lab(shape, tree, sizes, gemm, copy, {})
    chosen = {"all": tuple(PARTS), "ceilings": ()}.get(args.part, (args.part,))
    for part in chosen:
        yield from PARTS[part](lab)
    yield from memory_lines(lab)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the report."""
    parser = make_parser(__doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--shape", choices=SHAPES, default="8b", help=f"sizes of the model {shown}")
    flag("--part", choices=("ceilings", *PARTS, "all"), default="all", help=f"what to run {shown}")
    flag("--device", choices=("cuda", "cpu"), default="cuda", help=f"cpu: only to try the program {shown}")
    flag("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto",
         help="auto is bfloat16 on a GPU and float32 on a CPU (default: %(default)s)")  # fmt: skip
    flag("--token_budget", type=positive, help="most tokens that the engine forwards at once")
    flag("--sentences", type=positive, help=f"sentences to prepare (default: {Sizes.sentences:,})")
    flag("--plain_shots", type=positive,
         help=f"N at which the plain loop runs; scaled to all (default: {Sizes.plain_shots})")  # fmt: skip
    flag("--quick", action="store_true", help="small sizes and one run of each part, to try the program")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA GPU is visible: run this on a machine with one and a CUDA build of torch, or try the "
            "program with --device cpu --shape tiny --quick"
        )
    setup_logging("warning")
    hf_logging.set_verbosity_error()
    given = {name: getattr(args, name) for name in ("sentences", "plain_shots") if getattr(args, name)}
    try:
        for line in run_parts(args, replace(QUICK if args.quick else Sizes(), **given)):
            print(line, flush=True)
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of memory with --shape {args.shape}: take --shape 1b, or a device with more free memory"
        ) from None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
