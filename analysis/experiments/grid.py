"""What control, report and every study have in common: a study, the model that does the work, a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from analysis.experiments.machine import Machine
from analysis.experiments.study import Study
from analysis.experiments.units import OneFile, Unit
from analysis.process_prompts import Prompter
from analysis.results.store import UnitKey
from configs.layers import choose_layers
from utils import LoadedModel, choose_dtype


class ModelStage(OneFile[Unit]):
    """Work of one model on the axes of a study."""

    def __init__(self, study: Study, machine: Machine, model: str | None = None) -> None:
        """Say who does the work; nothing is loaded.

        Args:
            study: whose axes; a draft is enough for --dry_run.
            machine: loads the model.
            model: that does the work; None: the one that the axes belong to.
        """
        self.study, self.store, self.machine = study, study.store, machine
        self.model = model or study.store.model

    @property
    def own_model(self) -> bool:
        """Whether the model that does the work is the one that the axes belong to."""
        return self.model == self.study.store.model

    @property
    def lm(self) -> LoadedModel:
        """The model that does the work; loaded when it is first needed."""
        return self.machine.model(self.model)

    @cached_property
    def prompter(self) -> Prompter:
        """Builds prompts for that model, which need not be loaded."""
        return self.machine.prompter(self.model)

    def check(self, units: Sequence[Unit]) -> None:
        """Raise UserError for another precision than that of the axes, also if no work is left."""
        asked = self.machine.options.get("dtype", "auto")
        if asked != "auto" and self.own_model:
            choose_dtype(asked, "cpu")  # the error for an unknown name
            self.study.check_dtype(asked)

    def begin(self) -> None:
        """Load the model, and check that it is the one that the axes belong to."""
        if self.own_model:
            self.study.check_model(self.lm)

    def about(self) -> Mapping[str, Any]:
        """Return where a unit comes from."""
        return self.study.meta(self.lm)


class GridStage(ModelStage[UnitKey]):
    """Experiments on axes of layers, each a unit."""

    kind: ClassVar[str]
    """Of the keys, see UnitKey."""

    def __init__(
        self,
        study: Study,
        axes: Iterable[str],
        layer: str,
        exps: Iterable[int],
        machine: Machine,
        model: str | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        """Say what is to be done; nothing is loaded or read.

        Args:
            study, machine, model: see ModelStage.
            axes: names.
            layer: see configs/layers.py.
            exps: numbers of experiments.
            levels: numbers of labels; None: those of the settings.
        """
        super().__init__(study, machine, model)
        self.layers = choose_layers(layer, study.store.model, len(study.layers))
        self.axes, self.exps = list(axes), list(exps)
        self.levels = study.settings.levels if levels is None else levels

    def units(self) -> Sequence[UnitKey]:
        """Return all units: levels, layers, axes, experiments."""
        grid = itertools.product(self.levels, self.layers, self.axes, self.exps)
        return [UnitKey(self.kind, axis, layer, exp, levels) for levels, layer, axis, exp in grid]

    def check(self, units: Sequence[UnitKey]) -> None:
        """Raise UserError for an axis that is not there, or that has all sentences on one side."""
        self.study.check_sides(units)
        super().check(units)

    def path(self, unit: UnitKey) -> Path:
        """Return the unit's file."""
        return self.store.unit(unit)

    def title(self, unit: UnitKey) -> str:
        """Return the unit in words."""
        return f"{self.name} {unit.axis} layer {unit.layer} exp {unit.exp}"

    def alike(self, unit: UnitKey) -> tuple[Any, ...]:
        """Return the experiment and the number of levels: other axes and layers have the same prompts."""
        return unit.exp, unit.levels

    def timed(self) -> list[Path] | None:
        """Return the finished units of this kind: those of other axes and layers take as long."""
        return [self.store.unit(key) for key in self.store.units(self.kind)]
