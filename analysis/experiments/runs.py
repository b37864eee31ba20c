"""Control and report as functions: what is missing is computed, the model is loaded only if something is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.base.processes import Shard
from analysis.experiments.control import ControlStage
from analysis.experiments.machine import Machine
from analysis.experiments.report import ReportStage
from analysis.experiments.study import open_study
from analysis.experiments.units import ALL, run
from analysis.results.store import Store
from configs.settings import Settings
from utils import LoadedModel

Models = dict[str, LoadedModel]


def run_control(
    store: Store,
    settings: Settings,
    axes: Iterable[str],
    layer: str,
    exps: Iterable[int],
    *,
    token_budget: int | None = None,
    overwrite: bool = False,
    models: Models | None = None,
    shard: Shard = ALL,
    **options: Any,
) -> tuple[int, int]:
    """Run the control experiments that are not on disk yet.

    Args:
        store: where the preparation lies and units go.
        settings: see configs/settings.py.
        axes: axis names.
        layer: see configs/layers.py.
        exps: experiment numbers.
        token_budget: see PrefixTree.
        overwrite: redo what exists.
        models: loaded models by name, to be shared between stages.
        shard: which units to do; the files of the others are not read.
        options: device, dtype, attn_implementation of utils.load_model.

    Returns:
        (units done here, units that are on disk already or that other processes are doing).
    """  # fmt: skip
    machine = Machine(token_budget, models, **options)
    stage = ControlStage(open_study(store, settings), axes, layer, exps, machine)
    return run(stage, shard, overwrite)


def run_report(
    source: Store,
    reader: str,
    settings: Settings,
    axes: Iterable[str],
    layer: str,
    exps: Iterable[int],
    *,
    token_budget: int | None = None,
    overwrite: bool = False,
    models: Models | None = None,
    shard: Shard = ALL,
    **options: Any,
) -> tuple[int, int, Store]:
    """Run the report experiments that are not on disk yet; see run_control.

    ``reader`` is the model that reads the scores of ``source.model``. Returns also where the units went.
    """  # fmt: skip
    machine = Machine(token_budget, models, **options)
    stage = ReportStage(open_study(source, settings), axes, layer, exps, machine, reader)
    return *run(stage, shard, overwrite), stage.store
