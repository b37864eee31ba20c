"""What ``--dry_run`` prints: the work that a command would do, from its configuration and finished units."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.base.files import DamagedFile
from analysis.base.processes import Shard
from analysis.experiments.machine import Machine
from analysis.experiments.units import ALL, Stage, Unit
from analysis.experiments.workload import MEASURED, Planned, Work, describe
from analysis.results.store import read

MOST_READ = 20
"""Finished units that are read to learn how long one takes."""
TASK_HOURS = 1.0
"""Of one task of a Slurm array: long against loading a model, short against the usual time limits."""


def dry_run(
    stages: Sequence[Stage[Any]], model: str, machine: Machine, shard: Shard = ALL, overwrite: bool = False
) -> str:
    """Return the work that ``model`` would do in the ``stages``, one after the other, as lines to print.

    Nothing is loaded but configuration, tokenizer, sentences and a few finished units, which tell the time
    of the others; files are only looked for, not checked.

    Raises:
        UserError: as the run would for a wrong model, dataset, setting or layer.
    """
    dtype, tokens = machine.sizes
    planned, times = [], []
    for stage in stages:
        mine = stage.share(shard)
        stage.check(mine)
        todo = [unit for unit in mine if overwrite or not stage.on_disk(unit)]
        planned.append(Planned(stage.name, unit_work(stage, todo), len(todo), len(mine) - len(todo)))
        done = stage.timed()
        if todo and done is not None:
            times.append(expected_time(stage.name, len(todo), measured(done), shard, len(stage.units())))
    if machine.options.get("load_in_4bit"):
        times.append("--load_in_4bit: weights take about a quarter of what is said here for bfloat16")
    text = describe(model, machine.shape(model), planned, dtype, tokens, machine.device == "cpu")
    return "\n".join([text, *times])


def unit_work(stage: Stage[Unit], units: Sequence[Unit]) -> Work:
    """Return what one of ``units`` takes, the mean over the first experiments of every kind of unit."""
    different: dict[Hashable, Unit] = {}
    for unit in units:
        different.setdefault(stage.alike(unit), unit)
    first = sorted({stage.alike(unit)[0] for unit in different.values()})[:MEASURED]
    works = [stage.expected(unit) for unit in different.values() if stage.alike(unit)[0] in first]
    return sum(works, Work()) * (1 / max(1, len(works)))


@dataclass(frozen=True)
class Measured:
    """How long finished units took."""

    units: int
    """That were read."""
    seconds: float
    """Mean of one unit, times the GPUs it used."""
    device: str
    """GPU or CPU."""


def measured(paths: Sequence[Path]) -> Measured | None:
    """Return what finished units took, None if there is none that tells."""
    taken, on_gpu = [], False
    for path in paths[:: max(1, math.ceil(len(paths) / MOST_READ))]:
        try:
            record = read(path)
        except DamagedFile:  # the run names it, and does it again
            continue
        if "seconds" not in record:  # of an earlier version
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
        stage: its name.
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
