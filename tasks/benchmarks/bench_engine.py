"""Benchmark: the prefix-tree engine against the loop that people write, on the same prompts and one machine.

control  active and inactive trials of one experiment, replies greedy, all layers read; the plain loop
         forwards the prompt of a written reply twice, and in "3 passes" once more for its own states
prep     the mean state of every sentence at every layer
memory   the same preparation at three sizes, with all layers and with five
Both sides get the same token ids and run on the CPU, each in a process of its own, one after the other.
Tokens and forward calls are counted at the embedding layer; making the prompts and loading are not timed.

Reads   data/commonsense/sentences.csv
Writes  nothing; prints a Markdown report, such as tasks/benchmarks/RESULTS.md
Try     python -m tasks.benchmarks.bench_engine --part prep --sentences 100
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers.utils import logging as hf_logging

from analysis.base.progress import bar
from analysis.base.seeds import generator
from analysis.cli.flags import natural, positive
from analysis.cli.script import script, setup_logging
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Request, stack_pooled
from analysis.engine.trie import build_trie
from analysis.experiments.score_text import before_score
from analysis.experiments.trials import axis_turns, control_trials, control_turns, draw_order
from analysis.process_prompts import Prompter, load_prompts
from configs.layers import selected_layers
from configs.settings import ACTIVE, MODES
from data.load import read_dataset
from tasks.benchmarks.markdown import machine, table
from tasks.benchmarks.plain_loop import Outcome, PlainLoop, agreement, count_work, forget_peak, peak_memory
from tasks.benchmarks.program import in_own_process, make_parser
from utils import LoadedModel, load_model

SEED = 0
DATASET = "commonsense"
SHOTS = (0, 2, 4, 8, 16, 32, 64, 128)
MEGABYTE = 2**20


@dataclass(frozen=True)
class Cell:
    """One measurement: one side doing one task in a process of its own."""

    side: str
    """``engine``, ``plain``, ``plain, once more`` (a further pass over each prompt), ``plain, all kept``."""
    task: str
    """``prep``, or control modes joined by ``+``."""
    model: str
    shots: tuple[int, ...] = ()
    sentences: int = 0
    max_new_tokens: int = 50
    token_budget: int | None = None
    five_layers: bool = False
    repeats: int = 1
    """Runs of the engine, of which the median counts; the plain loop runs once."""


@dataclass
class Result:
    """What one cell took and gave."""

    seconds: float
    cpu_seconds: float
    """Of all threads of the process."""
    tokens: int
    """Tokens forwarded."""
    calls: int
    """Forward passes."""
    peak: int
    """Largest resident memory above that of the loaded, warm model, in bytes."""
    pooled: np.ndarray
    """(prompts, L, D) float32."""
    replies: list[list[int]]
    """Token ids per prompt up to where the engine's rule ends a reply, empty where none was asked for."""
    written: int
    """Reply tokens written, stop tokens excluded."""
    asked: int
    """Tokens of all prompts."""
    floor: int
    """Distinct tokens of the prompts, and the reply tokens written: no way to do the task forwards fewer."""
    dtype: str


# ---------------------------------------------------------------- one cell, in its own process


def spawn(cell: Cell) -> Result:
    """Run a cell in a fresh process, so that its memory is its own."""
    return in_own_process(run_cell, cell)


def run_cell(cell: Cell) -> Result:
    """Load, warm up, run and measure."""
    hf_logging.set_verbosity_error()
    lm = load_model(cell.model, device="cpu")
    requests = make_requests(cell, lm)
    work = make_side(cell, lm)
    work([shorten(request) for request in (requests[0], requests[-1])], lambda tokens: None)
    asked = sum(len(request.ids) for request in requests)
    before, runs = forget_peak(), []
    for _ in range(cell.repeats if cell.side == "engine" else 1):
        with count_work(lm.model.get_input_embeddings()) as count:
            with bar(total=asked, desc=f"{cell.task}, {cell.side}", unit="token") as shown:
                wall, cpu = time.perf_counter(), time.process_time()
                pooled, replies, written = work(requests, shown.update)
                runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = peak_memory() - before
    seconds, cpu_seconds = np.median(runs, axis=0).tolist()
    floor = len(build_trie([request.ids for request in requests])) + written
    return Result(
        seconds,
        cpu_seconds,
        count.tokens,
        count.calls,
        peak,
        pooled,
        replies,
        written,
        asked,
        floor,
        lm.dtype,
    )


def make_requests(cell: Cell, lm: LoadedModel) -> list[Request]:
    """Return the prompts of a task, the same for both sides."""
    dataset, prompts = read_dataset(DATASET), load_prompts(DATASET)
    prompter, pool = Prompter(lm.tokenizer, lm.name), np.arange(len(dataset.sentences))
    if cell.task == "prep":
        rows = draw_order(SEED, 0, pool, cell.sentences)
        encoded = [prompter.encode(axis_turns(prompts, dataset.sentences[row])) for row in rows]
        return [Request(e.ids, e.spans) for e in encoded]
    rows = draw_order(SEED, 0, pool, max(cell.shots) + 1)
    sentences = [dataset.sentences[row] for row in rows]
    labels = generator(SEED, "labels").integers(0, 2, len(rows)).tolist()
    requests = []
    for trial in (t for mode in cell.task.split("+") for t in control_trials(cell.shots, (mode,))):
        active = trial.mode == ACTIVE
        e = prompter.encode(control_turns(trial, prompts, sentences, labels), reply=active)
        reply = Sampling(cell.max_new_tokens, rule=before_score) if active else None
        requests.append(Request(e.ids, e.spans, reply=reply))
    return requests


def make_side(cell: Cell, lm: LoadedModel) -> Callable[..., Outcome]:
    """Return the function that does the work: (requests, progress) -> (pooled, replies, written)."""
    tree = PrefixTree(lm.model, lm.tokenizer, cell.token_budget)
    layers = selected_layers(lm.name, lm.n_layers) if cell.five_layers else range(lm.n_layers)

    def engine(requests: Sequence[Request], progress: Callable) -> Outcome:
        readings = tree.read(requests, layers, progress=progress)
        written = any(r.reply for r in readings)
        states = [r.pooled[0] if r.reply_pooled is None else r.reply_pooled for r in readings]
        replies = [list(r.reply.ids) if r.reply else [] for r in readings]
        return np.stack(states) if written else stack_pooled(readings), replies, sum(map(len, replies))

    if cell.side == "engine":
        return engine
    loop = PlainLoop(lm.model, tree.decode, tree.stops)
    return {"plain, all kept": loop.keep_all, "plain, once more": loop.prompts}.get(cell.side, loop)


def shorten(request: Request) -> Request:
    """Return a request of a few tokens of the same kind, for warming up."""
    reply = request.reply and replace(request.reply, max_new_tokens=4)
    return replace(request, ids=request.ids[:32], spans=[(8, 16)] if request.spans else (), reply=reply)


def speed_rows(name: str, engine: Result, plain: Mapping[str, Result]) -> list[list[str]]:
    """Return all sides, and the ratios to the engine, as rows of the speed table."""
    rows = [
        [f"{name}, {side}", f"{r.tokens:,}", f"{r.tokens / engine.floor:.2f}", f"{r.calls:,}",
         f"{r.seconds:.1f}", f"{r.cpu_seconds:.1f}", f"{r.tokens / r.seconds:,.0f}",
         f"{r.peak / MEGABYTE:,.0f}"]
        for side, r in (*plain.items(), ("engine", engine))
    ]  # fmt: skip
    for side, r in plain.items():
        tokens, *times = (
            f"{getattr(r, part) / max(getattr(engine, part), 1e-9):.1f} x"
            for part in ("tokens", "calls", "seconds", "cpu_seconds")
        )
        rows.append([f"{name}, {side} / engine", tokens, "", *times, "", ""])
    return rows


SPEED_HEAD = (
    "", "tokens forwarded", "x of floor", "forward calls", "seconds", "CPU seconds", "tokens/s", "peak MB",
)  # fmt: skip


def merged(first: Result, second: Result) -> Result:
    """Return two runs of the plain loop as one, which they are: each prompt is forwarded on its own."""
    names = ("seconds", "cpu_seconds", "tokens", "calls", "written", "asked")
    sums = {name: getattr(first, name) + getattr(second, name) for name in names}
    return replace(
        first, **sums, peak=max(first.peak, second.peak),
        pooled=np.concatenate([first.pooled, second.pooled]), replies=first.replies + second.replies,
    )  # fmt: skip


def control_part(cell: Cell) -> tuple[Result, list[str]]:
    """Compare both modes on their own and together."""
    both = "+".join(MODES)
    plain = {mode: spawn(replace(cell, side="plain", task=mode)) for mode in MODES}
    again = spawn(replace(cell, side="plain, once more", task=ACTIVE))
    whole = merged(*plain.values())
    sides = {mode: {"plain loop": result} for mode, result in plain.items()}
    sides[both] = {"plain loop": whole, "plain loop, 3 passes": merged(whole, again)}
    engine = {task: spawn(replace(cell, task=task)) for task in sides}
    rows = [row for task in sides for row in speed_rows(task, engine[task], sides[task])]
    a, b = engine[both], whole
    matched, worst = agreement(a, b)
    shots = " ".join(map(str, cell.shots))
    return a, [
        f"## Control: {len(b.replies)} prompts of {b.asked:,} tokens, shots {shots}\n",
        table(SPEED_HEAD, rows),
        f"Replies (greedy, up to {cell.max_new_tokens} tokens): {matched} of {sum(map(bool, b.replies))} "
        f"have the same tokens up to where the engine ends them. Tokens written: plain {b.written:,}, engine "
        f"{a.written:,} (it ends a reply at a score text).",
        f"Largest relative difference of the mean states: {worst:.1e}.\n",
    ]


def prep_part(cell: Cell) -> tuple[Result, list[str]]:
    """Compare the reading of sentences."""
    plain, engine = (spawn(replace(cell, side=side, task="prep")) for side in ("plain", "engine"))
    _, worst = agreement(engine, plain)
    return engine, [
        f"## Preparation: {cell.sentences} sentences, {plain.asked:,} tokens, every layer\n",
        table(SPEED_HEAD, speed_rows("prep", engine, {"plain loop": plain})),
        f"Largest relative difference of the mean states: {worst:.1e}.\n",
    ]


def memory_part(cell: Cell) -> tuple[Result, list[str]]:
    """Compare how memory grows with sentences and layers."""
    sizes = (max(1, cell.sentences // 2), cell.sentences, 2 * cell.sentences)
    plans = [("engine", False, n) for n in sizes] + [("engine", True, sizes[-1])]
    plans += [("plain", False, cell.sentences)] + [("plain, all kept", False, n) for n in sizes]
    rows = []
    for side, five, n in plans:
        result = spawn(replace(cell, side=side, task="prep", sentences=n, five_layers=five, repeats=1))
        output = result.pooled.nbytes
        sizes_mb = [f"{b / MEGABYTE:,.0f}" for b in (result.peak, output, result.peak - output)]
        rows.append([side, f"{n:,}", result.pooled.shape[1], f"{result.asked:,}", *sizes_mb])
    return result, [
        "## Memory: peak growth while reading sentences\n",
        table(("", "sentences", "layers", "prompt tokens", "peak MB", "of it output", "beyond output"), rows),
        "Output is sentences x layers x hidden size x 4 bytes. 'plain' averages each sentence at once; "
        "'plain, all kept' keeps the states of all tokens until the end.\n",
    ]


PARTS = {"control": control_part, "prep": prep_part, "memory": memory_part}


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print the report."""
    parser = make_parser(__doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--model", default="smollm2", help=f"alias, hub name, folder or .gguf file {shown}")
    flag("--shots", type=natural, nargs="+", default=SHOTS, help=f"examples shown {shown}")
    flag("--sentences", type=positive, default=300, help=f"sentences to prepare {shown}")
    flag("--max_new_tokens", type=positive, default=50, help=f"longest reply {shown}")
    flag("--token_budget", type=positive, help="most tokens that the engine forwards at once")
    flag("--part", choices=(*PARTS, "all"), default="all", help=f"what to run {shown}")
    flag("--repeats", type=positive, default=1, help=f"runs of the engine, the median counts {shown}")
    args = parser.parse_args(argv)
    setup_logging("warning")
    cell = Cell(
        "engine", "prep", args.model, tuple(args.shots), args.sentences,
        args.max_new_tokens, args.token_budget, repeats=args.repeats,
    )  # fmt: skip
    lines = []
    for part in PARTS if args.part == "all" else (args.part,):
        result, found = PARTS[part](cell)
        lines += found
    print(f"{machine(args.model, result)}\n", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
