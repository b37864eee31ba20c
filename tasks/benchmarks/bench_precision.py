"""Benchmark: what bfloat16 changes of the scores, beside float32.

The same sentences are read in both precisions, and axes are fitted on one half of them in each. Then, for
the other half and the layers at depths 0, 25, 50, 75 and 100 %:

same axes   both precisions' hidden states are scored along the axes of the first one
own axes    each along its own axes; a principal component whose sign has turned is turned back
A label is ``score > threshold``. Each precision is read in a process of its own, one after the other; memory
is the growth while reading, above the loaded model: of the process on a CPU, of the tensors on a GPU.

Reads   data/commonsense/sentences.csv
Writes  nothing; prints a Markdown report
Try     python -m tasks.benchmarks.bench_precision --n_axis 60 --n_trial 60
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers.utils import logging as hf_logging

from analysis.axes.names import pc_number
from analysis.classifiers import AxisSet, fit_layers
from analysis.cli.flags import positive
from analysis.cli.script import script, setup_logging
from analysis.engine.prefix_tree import PrefixTree
from analysis.experiments.preparation import check_hidden, encode_sentences, fit_layer, pool_sentences
from analysis.models.blocks import input_device
from analysis.process_prompts import load_prompts
from configs.layers import selected_layers
from configs.settings import Settings
from data.load import load_dataset
from tasks.benchmarks.bench_engine import DATASET, MEGABYTE, SEED
from tasks.benchmarks.markdown import machine, table
from tasks.benchmarks.plain_loop import forget_peak, peak_memory
from tasks.benchmarks.program import in_own_process, make_parser
from utils import load_model

AXES = ("lr", "pc1", "meandiff", "random0")


@dataclass(frozen=True)
class Job:
    """The reading of the sentences in one precision."""

    model: str
    dtype: str
    device: str
    settings: Settings
    token_budget: int | None = None


@dataclass
class Result:
    """What one precision gave and took."""

    dtype: str
    layers: tuple[int, ...]
    pooled: np.ndarray
    """(B, len(layers), D) float32."""
    seconds: float
    peak: int
    """Growth of the memory while reading, in bytes."""
    n_layers: int
    device: str


@dataclass(frozen=True)
class Effect:
    """How the scores of the trial sentences differ along one axis of one layer."""

    cosine: float
    """Of the two directions; 0 to 1 for principal components, whose signs are arbitrary."""
    same_axes: tuple[float, float]
    """Correlation of the scores, and share of equal labels, along the first precision's axis."""
    own_axes: tuple[float, float]
    """The same, each along its own axis."""


# ---------------------------------------------------------------- one precision, in its own process


def spawn(job: Job) -> Result:
    """Read in a fresh process, so that its memory is its own."""
    return in_own_process(run_job, job)


def run_job(job: Job) -> Result:
    """Load, warm up, read and measure."""
    hf_logging.set_verbosity_error()
    lm = load_model(job.model, device=job.device, dtype=job.dtype)
    split = load_dataset(DATASET, job.settings.seed, job.settings.n_axis, job.settings.n_trial).compact()
    encoded, layers = encode_sentences(lm, split.dataset, load_prompts(DATASET)), layers_of(lm.n_layers)
    tree = PrefixTree(lm.model, lm.tokenizer, job.token_budget)
    pool_sentences(tree, encoded[:4], layers)
    device = input_device(lm.model)
    before, start = start_of_peak(device), time.perf_counter()
    pooled = pool_sentences(tree, encoded, layers)
    seconds, peak = time.perf_counter() - start, end_of_peak(device) - before
    for slot, layer in enumerate(layers):
        check_hidden(pooled[:, slot], split.dataset.sentences, f"activations of layer {layer}", lm.dtype)
    return Result(lm.dtype, layers, pooled, seconds, peak, lm.n_layers, str(device))


def layers_of(n_layers: int) -> tuple[int, ...]:
    """Return the first, quarter, middle, three quarters and last layer, each once."""
    return selected_layers("", n_layers)


def start_of_peak(device: torch.device) -> int:
    """Forget earlier peaks; return the bytes in use."""
    if device.type != "cuda":
        return forget_peak()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def end_of_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


# ---------------------------------------------------------------- comparing


def fit_all(result: Result, settings: Settings) -> dict[int, AxisSet]:
    """Return the axes of every layer that was read."""
    split = load_dataset(DATASET, settings.seed, settings.n_axis, settings.n_trial).compact()
    found: dict[int, AxisSet] = {}

    def fit(slot: int) -> None:
        layer = result.layers[slot]
        found[layer] = fit_layer(result.pooled[:, slot], split, settings, layer)

    fit_layers(fit, range(len(result.layers)))
    return found


def scores(axes: AxisSet, hidden: np.ndarray, name: str, turned: bool = False) -> tuple[np.ndarray, ...]:
    """Return the scores (N,) of hidden states (N, D) and their labels (N,); ``turned`` turns the axis."""
    side = -1.0 if turned else 1.0
    found = side * axes.score(hidden, name).astype(np.float64)
    return found, found > side * axes.threshold(name)


def likeness(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Return the correlation of two sides' scores, and the share of equal labels."""
    return float(np.corrcoef(a[0], b[0])[0, 1]), float((a[1] == b[1]).mean())


def effect(name: str, axes: tuple[AxisSet, AxisSet], hidden: tuple[np.ndarray, np.ndarray]) -> Effect:
    """Compare two precisions along one axis: axes and trial sentences (N, D) of either."""
    a, b = (one.directions[one.index(name)].astype(np.float64) for one in axes)
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    turned = pc_number(name) is not None and cosine < 0
    first = scores(axes[0], hidden[0], name)
    return Effect(
        abs(cosine) if turned else cosine,
        likeness(first, scores(axes[0], hidden[1], name)),
        likeness(first, scores(axes[1], hidden[1], name, turned)),
    )


def compare(results: tuple[Result, Result], settings: Settings) -> list[str]:
    """Return the report's lines about the scores."""
    split = load_dataset(DATASET, settings.seed, settings.n_axis, settings.n_trial).compact()
    labels, axes = split.dataset.labels[split.trial_rows], [fit_all(r, settings) for r in results]
    rows, accuracies = [], []
    for slot, layer in enumerate(results[0].layers):
        hidden = tuple(r.pooled[split.trial_rows, slot] for r in results)
        pair = axes[0][layer], axes[1][layer]
        depth = f"layer {layer} ({100 * layer / max(1, results[0].n_layers - 1):.0f} %)"
        for name in AXES:
            found = effect(name, pair, hidden)
            numbers = (*found.same_axes, *found.own_axes, found.cosine)
            rows.append([f"{depth}, {name}", *(f"{number:.4f}" for number in numbers)])
        right = [one.accuracy_on(h, labels)["lr"] for one, h in zip(pair, hidden, strict=True)]
        accuracies.append([depth, *(f"{share:.4f}" for share in right)])
    head = ("", "correlation", "equal labels", "own axes: correlation", "equal labels", "cosine of axes")
    return [
        f"## Scores of {len(labels)} sentences: {results[1].dtype} against {results[0].dtype}\n",
        table(head, rows),
        "## Accuracy of lr on these sentences, each with its own axes\n",
        table(("", *(r.dtype for r in results)), accuracies),
    ]


def costs(results: Sequence[Result]) -> list[str]:
    """Return the report's lines about the reading."""
    rows = [[r.dtype, f"{r.seconds:.2f}", f"{r.peak / MEGABYTE:,.0f}"] for r in results]
    return [f"## Reading on {results[0].device}\n", table(("", "seconds", "peak MB"), rows)]


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Read in both precisions and print the report."""
    parser = make_parser(__doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--model", default="smollm2", help=f"alias, hub name, folder or .gguf file {shown}")
    flag("--device", default="cpu", help=f"cpu, cuda or auto {shown}")
    flag("--dtypes", nargs=2, default=("float32", "bfloat16"), help=f"what is compared {shown}")
    flag("--n_axis", type=positive, default=600, help=f"sentences that fit the axes {shown}")
    flag("--n_trial", type=positive, default=600, help=f"sentences that are scored {shown}")
    flag("--token_budget", type=positive, help="most tokens forwarded at once")
    args = parser.parse_args(argv)
    setup_logging("warning")
    settings = Settings(seed=SEED, n_axis=args.n_axis, n_trial=args.n_trial, max_pc=1, n_shuffled=0)
    job = Job(args.model, args.dtypes[0], args.device, settings, args.token_budget)
    first, second = (spawn(replace(job, dtype=dtype)) for dtype in args.dtypes)
    print(f"{machine(args.model, first)}\n", *compare((first, second), settings), sep="\n")
    print(*costs((first, second)), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
