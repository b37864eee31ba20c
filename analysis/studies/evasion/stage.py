"""The grid of the evasion study: the experiments of one axis at one layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.experiments.grid import GridStage
from analysis.experiments.machine import Machine
from analysis.experiments.reading import read_counted
from analysis.experiments.study import Study, unit_identity
from analysis.experiments.workload import Work, work_of
from analysis.results.store import UnitKey, read
from analysis.studies.evasion.experiment import Trials
from analysis.studies.evasion.flags import Plan


class EvasionStage(GridStage):
    """Control of test sentences of both classes, whose states are kept."""

    name, kind = "evasion", "evasion"
    waits = True

    def __init__(self, study: Study, plan: Plan, n_experiments: int, machine: Machine) -> None:
        """Say what is to be done; see GridStage."""
        exps = range(n_experiments)
        super().__init__(study, [plan.axis], str(plan.layer), exps, machine, levels=(2,))
        self.plan = plan

    @cached_property
    def trials(self) -> Trials:
        """What is asked of the model."""
        return Trials(self.study, self.plan)

    def check(self, units: Sequence[UnitKey]) -> None:
        """Raise UserError for an axis that is not there, or too few sentences."""
        super().check(units)
        for unit in units:
            self.trials.rows(unit.exp)

    def path(self, unit: UnitKey) -> Path:
        """Return the unit's file."""
        return self.store.study(f"evasion_exp{unit.exp}", unit.axis, unit.layer)

    def identity(self, unit: UnitKey) -> dict[str, Any]:
        """Return what a unit depends on."""
        return unit_identity(self.study, unit, ("max_new_tokens", "temperature"), **asdict(self.plan))

    def work(self, unit: UnitKey) -> dict[str, Any]:
        """Run a unit and return its record."""
        requests = self.trials.requests(self.prompter, unit.exp)
        readings, tokens = read_counted(self.machine.engine(self.model), requests, self.plan.layers)
        return {**self.trials.record(readings, unit.exp), "tokens": tokens}

    def expected(self, unit: UnitKey) -> Work:
        """Return what a unit takes."""
        requests = self.trials.requests(self.prompter, unit.exp)
        return work_of(requests, len(self.plan.layers), self.machine.sizes[1])

    def timed(self) -> list[Path]:
        """Return the files of this grid that are there."""
        return [path for path in map(self.path, self.units()) if path.exists()]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the finished experiments, from disk."""
        for unit in self.units():
            yield read(self.path(unit), self.identity(unit))
