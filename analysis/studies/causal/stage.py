"""The grids of the causal studies: one axis, some layers, a file for every experiment."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from analysis.base.errors import UserError
from analysis.base.seeds import fingerprint
from analysis.experiments.grid import GridStage
from analysis.experiments.machine import Machine
from analysis.experiments.study import Study, unit_identity
from analysis.experiments.workload import Work, work_of
from analysis.results.claims import claim
from analysis.results.store import UnitKey, is_damaged, read, set_aside, write
from analysis.studies.causal.experiment import CausalReport, SteeringCurve, load_causal_system
from analysis.studies.causal.flags import CausalSizes, CurveSizes
from analysis.studies.causal.tables import stacked

log = logging.getLogger(__name__)


class SteeredStage(GridStage):
    """Experiments that steer the model along one axis."""

    waits = True

    def __init__(
        self,
        study: Study,
        axis: str,
        layer: str,
        n_experiments: int,
        sizes: CausalSizes | CurveSizes,
        machine: Machine,
    ) -> None:
        """Say what is to be done; see GridStage."""
        super().__init__(study, [axis], layer, range(n_experiments), machine, levels=(2,))
        self.axis, self.sizes = axis, sizes
        self.at = cache(self.runner)

    @abstractmethod
    def runner(self, layer: int) -> CausalReport | SteeringCurve:
        """Return what does the experiments at one layer."""

    @property
    def stem(self) -> str:
        """Of the names of files."""
        return self.kind

    def check(self, units: Sequence[UnitKey]) -> None:
        """Raise UserError for an axis that is not there."""
        for layer in self.layers:
            self.study.axes(layer).index(self.axis)
        super().check(units)

    def path(self, unit: UnitKey) -> Path:
        """Return the unit's file."""
        return self.store.study(f"{self.stem}_exp{unit.exp}", unit.axis, unit.layer)

    def identity(self, unit: UnitKey) -> dict[str, Any]:
        """Return what a unit depends on; the number of experiments is no part of it."""
        prompts = fingerprint(asdict(self.study.prompts), load_causal_system())
        return unit_identity(self.study, unit, (), prompts=prompts, **asdict(self.sizes))

    def work(self, unit: UnitKey) -> dict[str, Any]:
        """Run a unit and return its record."""
        return self.at(unit.layer).unit(self.machine.engine(self.model), unit.exp)

    def expected(self, unit: UnitKey) -> Work:
        """Return what a unit takes."""
        works = (work_of(*call, self.machine.sizes[1]) for call in self.at(unit.layer).works(unit.exp))
        return sum(works, Work())

    def timed(self) -> list[Path]:
        """Return the files of this grid that are there."""
        return [path for path in map(self.path, self.units()) if path.exists()]

    def found(self, layer: int) -> dict[str, np.ndarray]:
        """Return the arrays (E, ...) of the finished experiments at one layer, from disk."""
        units = [unit for unit in self.units() if unit.layer == layer]
        return stacked([read(self.path(unit), self.identity(unit)) for unit in units])

    def adopt(self, units: Sequence[UnitKey]) -> None:
        """Give experiments files of their own that an earlier version kept in one file for each layer.

        That file stays as it is. One that was made with other settings is named and left alone; a damaged one
        is set aside.
        """
        for layer in self.layers:
            path = self.store.study(self.stem, self.axis, layer)
            lacking = [unit for unit in units if unit.layer == layer and not self.on_disk(unit)]
            if path.exists() and (lacking or is_damaged(path)):
                with claim(path, wait=True):
                    self._adopt(path, lacking)

    def _adopt(self, path: Path, units: Sequence[UnitKey]) -> None:
        if is_damaged(path):
            set_aside(path)
        if not units or not path.exists():
            return
        own = {
            name: value for name, value in self.identity(units[0]).items() if name not in ("exp", "levels")
        }
        try:
            record = read(path, own)
        except UserError as error:
            log.warning("not used: %s", error)
            return
        about = {name: value for name, value in record["meta"].items() if name != "identity"}
        there = [unit for unit in units if unit.exp < len(record["experiments"])]
        for unit in there:
            write(self.path(unit), record["experiments"][unit.exp], self.identity(unit), **about)
        log.info("%d experiments of %s have files of their own now", len(there), path)


class CausalStage(SteeredStage):
    """Causal reports."""

    name, kind = "causal report", "causal"
    sizes: CausalSizes

    @property
    def stem(self) -> str:
        """Of the names of files."""
        return "causal_repeated" if self.sizes.repeat_sentence else "causal"

    def runner(self, layer: int) -> CausalReport:
        """Return what does the experiments at one layer."""
        return CausalReport(self.study, self.prompter, self.axis, layer, self.sizes)


class CurveStage(SteeredStage):
    """Steering curves."""

    name, kind = "steering curve", "steering"
    sizes: CurveSizes

    def runner(self, layer: int) -> SteeringCurve:
        """Return what does the experiments at one layer."""
        return SteeringCurve(self.study, self.prompter, self.axis, layer, self.sizes)
