"""Grids of closed-loop units: what is missing is computed, from the last experiment to the first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from analysis.base.errors import UserError
from analysis.base.progress import bar
from analysis.engine.prefix_tree import PrefixTree
from analysis.experiments.study import Study
from analysis.experiments.units import unit_keys
from analysis.results.claims import claim
from analysis.results.store import UnitKey, finished, read, write
from analysis.studies.closed_loop.experiment import ClosedLoop, loop_identity, loop_path
from analysis.studies.closed_loop.flags import Loop
from configs.layers import choose_layers
from configs.settings import as_plain
from utils import LoadedModel


def loop_keys(study: Study) -> list[UnitKey]:
    """Return the units of the settings' axes, layers, levels and experiments, last experiment first."""
    settings = study.settings
    layers = choose_layers(settings.layer, study.store.model, len(study.layers))
    return unit_keys("loop", study, settings.axes, layers, range(settings.n_experiments)[::-1])


def run_loop(
    lm: LoadedModel,
    study: Study,
    loop: Loop,
    *,
    token_budget: int | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Run the units that are not on disk yet; a killed run loses the current unit at most.

    Returns:
        (units done, units kept).

    Raises:
        UserError: units of other settings on disk, a conversation that does not fit, or too little memory.
    """
    work = [(mode, key) for mode in loop.modes for key in loop_keys(study)]
    todo = [
        (mode, key)
        for mode, key in work
        if not finished(loop_path(study.store, key, mode), loop_identity(study, key, mode, loop), overwrite)
    ]
    if todo:
        runner = _Runner(
            ClosedLoop(lm, study, PrefixTree(lm.model, lm.tokenizer, token_budget), loop), overwrite
        )
        donors = [(mode, replace(key, exp=key.exp + 1)) for mode, key in todo]
        runner.closed.check([*todo, *donors])
        for mode, key in bar(todo, desc="closed loop", unit="unit"):
            path, identity = loop_path(study.store, key, mode), loop_identity(study, key, mode, loop)
            with claim(path, wait=True):
                if not finished(path, identity, overwrite):  # another process may have done it meanwhile
                    runner.do(mode, key)
    return len(todo), len(work) - len(todo)


@dataclass
class _Runner:
    closed: ClosedLoop
    overwrite: bool

    def do(self, mode: str, key: UnitKey) -> None:
        """Run one unit and write its file, after its donor."""
        path = loop_path(self.closed.study.store, key, mode)
        self.write(path, mode, key, self.closed.loop.arms, self.donor(mode, key))

    def donor(self, mode: str, key: UnitKey) -> np.ndarray | None:
        """Return (4, K - 1) labels shown to the next experiment's true arm; None if no arm needs them."""
        study, loop = self.closed.study, self.closed.loop
        if not {"yoked", "random"} & set(loop.arms):
            return None
        last = key.exp == study.settings.n_experiments - 1
        after = replace(key, exp=key.exp + 1)
        path = loop_path(study.store, after, mode, donor=last)
        loop = replace(loop, arms=("true",)) if last else loop
        identity = loop_identity(study, after, mode, loop)
        if last and not finished(path, identity, self.overwrite):
            self.write(path, mode, after, loop.arms, None)
        record = read(path, identity)
        return record["shown"][[arm == "true" for arm in record["arm"]]]

    def write(
        self, path: Path, mode: str, key: UnitKey, arms: Sequence[str], donor: np.ndarray | None
    ) -> None:
        closed, start = self.closed, time.perf_counter()
        try:
            record = closed.unit(key, mode, arms, donor)
        except torch.OutOfMemoryError:
            raise UserError(
                "out of memory: use fewer --loop turns, --loop_arms or --loop_examples, a smaller "
                "--token_budget or --dtype, or --device map"
            ) from None
        about = {"settings": dict(as_plain(closed.settings)), **closed.lm.about}
        about["dataset_key"] = closed.study.store.dataset
        identity = loop_identity(closed.study, key, mode, replace(closed.loop, arms=tuple(arms)))
        write(path, {**record, "seconds": time.perf_counter() - start}, identity, **about)
