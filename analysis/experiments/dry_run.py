"""What ``--dry_run`` prints: the work that a command would do, from its configuration and finished units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.base.files import DamagedFile
from analysis.base.processes import Shard
from analysis.experiments.runs import report_store
from analysis.experiments.workload import (
    Stage,
    Texts,
    Work,
    control_work,
    describe,
    load_texts,
    preparation_work,
    report_work,
)
from analysis.models.shape import Shape, load_shape, load_tokenizer, run_device, run_sizes
from analysis.results.schema import UNIT_KINDS
from analysis.results.store import Store, UnitKey, read
from configs.layers import choose_layers
from configs.settings import Settings

KINDS = {kind.name: prefix for prefix, kind in UNIT_KINDS.items()}
"""Stage -> its kind of unit."""
MOST_READ = 20
"""Finished units that are read to learn how long one takes."""
TASK_HOURS = 1.0
"""Of one task of a Slurm array: long against loading a model, short against the usual time limits."""
EVERYTHING = Shard()


def dry_run(
    store: Store,
    stages: Sequence[str],
    settings: Settings,
    axes: Sequence[str] | Mapping[str, Sequence[str]] = (),
    layer: str = "all",
    exps: Iterable[int] = (),
    *,
    reader: str | None = None,
    method: str = "pcascore",
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    token_budget: int | None = None,
    overwrite: bool = False,
    load_in_4bit: bool = False,
    shard: Shard = EVERYTHING,
) -> str:
    """Return the work of ``stages`` (preparation, report, control) as lines for the terminal.

    Nothing is loaded but configuration, tokenizer, sentences and a few finished units, which tell the time
    of the others; files are only looked for, not checked. ``axes`` may differ by stage; the other arguments
    are those of analysis.experiments.runs and analysis.experiments.preparation.

    Raises:
        UserError: as the run would for a wrong model, dataset, setting or layer.
    """
    model = reader or store.model
    chosen, tokens = run_sizes(device, dtype, token_budget)
    shape = load_shape(model)
    shape = replace(shape, eager=shape.eager or attn_implementation == "eager")
    texts = load_texts(model, store.dataset, settings, load_tokenizer(model), tokens)
    layers = choose_layers(layer, store.model, load_shape(store.model).n_layers if reader else shape.n_layers)
    exps, found, times = list(exps), [], []
    for stage in stages:
        if stage == "preparation":
            last = shape.n_layers - 1
            path = store.axes(last) if method == "pcascore" else store.hidden(last, method)
            done = int(path.exists() and not overwrite)
            found.append(Stage(stage, preparation_work(texts, shape, method), 1 - done, done))
            continue
        target = report_store(store, model) if stage == "report" else store
        here = axes[stage] if isinstance(axes, Mapping) else axes
        keys = [
            UnitKey(KINDS[stage], axis, at, exp, levels)
            for levels in settings.levels for at in layers for axis in here for exp in exps
        ]  # fmt: skip
        total, keys = len(keys), shard.take(keys)
        todo = [key for key in keys if overwrite or not target.unit(key).exists()]
        found.append(Stage(stage, unit_work(stage, texts, shape, todo), len(todo), len(keys) - len(todo)))
        if todo:
            times.append(expected_time(stage, len(todo), measured(target, KINDS[stage]), shard, total))
    if load_in_4bit:
        times.append("--load_in_4bit: weights take about a quarter of what is said here for bfloat16")
    return "\n".join([describe(model, shape, found, chosen, tokens, run_device(device) == "cpu"), *times])


def unit_work(stage: str, texts: Texts, shape: Shape, todo: Sequence[UnitKey]) -> Work:
    """Return the work of one unit of ``stage``, the mean over those ``todo``."""
    experiments = sorted({key.exp for key in todo})
    if not experiments:
        return Work()
    return control_work(texts, shape, experiments) if stage == "control" else report_work(texts, experiments)


@dataclass(frozen=True)
class Measured:
    """How long finished units took."""

    units: int
    """That were read."""
    seconds: float
    """Mean of one unit, times the GPUs it used."""
    device: str
    """GPU or CPU."""


def measured(store: Store, kind: str) -> Measured | None:
    """Return what the units of ``kind`` (imit or pred) on disk took, None if there is none."""
    keys, taken, on_gpu = store.units(kind), [], False
    for key in keys[:: max(1, math.ceil(len(keys) / MOST_READ))]:
        try:
            record = read(store.unit(key))
        except DamagedFile:  # the run names it, and does it again
            continue
        gpus = str(record["meta"].get("device", "")).count("cuda")
        on_gpu |= gpus > 0
        taken.append(record["seconds"] * max(1, gpus))
    if not taken:
        return None
    return Measured(len(taken), sum(taken) / len(taken), "GPU" if on_gpu else "CPU")


def expected_time(stage: str, units: int, known: Measured | None, shard: Shard, total: int) -> str:
    """Return a line: the time that ``units`` of ``stage`` take, and an array that does them in hours.

    Args:
        stage: control or report.
        units: to do, at least one.
        known: see measured.
        shard: that the units belong to; an array is advised for everything only.
        total: units of the whole grid.
    """
    if known is None:
        return (
            f"time     {stage}: not known, no unit is on disk: run one first, the same command with --shard "
            f"{shard.index}/{total} in place of --dry_run"
        )
    hours = units * known.seconds / 3600
    line = (
        f"time     {stage}: {_short(hours)} {known.device}-hours ({units:,} units of {_short(known.seconds)} "
        f"s, the mean of {known.units} on disk)"
    )
    if shard.count > 1:
        return line
    tasks = min(units, max(1, math.ceil(hours / TASK_HOURS)))
    return f"{line}; sbatch --array=1-{tasks} is {_short(60 * hours / tasks)} minutes a task"


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
