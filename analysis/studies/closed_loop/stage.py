"""The grid of a closed loop: from the last experiment to the first, since each takes labels from the next.

The arms ``yoked`` and ``random`` of experiment e show labels that the true arm of experiment e + 1 was shown.
So experiments form a chain, which is cut into links of eight: the last of a link takes its labels from a
donor, a true arm of the next experiment that runs alone. A link is done from its donor to its first
experiment, by one job; what an experiment is shown does not depend on how links are dealt out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.base.errors import UserError
from analysis.base.processes import Shard
from analysis.base.seeds import fingerprint
from analysis.engine.trie import build_trie
from analysis.experiments.grid import ModelStage
from analysis.experiments.machine import Machine
from analysis.experiments.study import Study, unit_identity
from analysis.experiments.workload import Work
from analysis.results.store import UnitKey, read
from analysis.studies.closed_loop.experiment import ClosedLoop, LoopTexts
from analysis.studies.closed_loop.flags import Loop
from analysis.studies.closed_loop.prompts import load_loop_prompts
from configs.layers import choose_layers

LINK = 8
"""Most experiments of a link: a donor for every eight is an eighth of one arm more to do."""
_SETTINGS = ("max_new_tokens", "temperature")
_GIVEN = {"yoked", "random"}
"""Arms that need a donor."""


@dataclass(frozen=True)
class LoopUnit:
    """One experiment in one mode, or the donor in its place."""

    mode: str
    key: UnitKey
    donor: bool = False
    """The true arm alone."""


class LoopStage(ModelStage[LoopUnit]):
    """Closed loops on the axes, layers, levels and experiments of the study's settings."""

    name = "closed loop"
    waits = True
    closed: ClosedLoop

    def __init__(self, study: Study, loop: Loop, machine: Machine) -> None:
        """Say what is to be done; see ModelStage."""
        super().__init__(study, machine)
        self.loop = loop
        self.layers = choose_layers(study.settings.layer, study.store.model, len(study.layers))

    # ------------------------------------------------------------ the grid

    def units(self) -> Sequence[LoopUnit]:
        """Return modes, levels, layers, axes, and experiments from the last to the first, with donors."""
        return [unit for link in self.links() for unit in link]

    def links(self) -> list[list[LoopUnit]]:
        """Return the units of every link, in the order in which they are done."""
        settings = self.study.settings
        first = range(0, settings.n_experiments, LINK)[::-1]
        grid = itertools.product(self.loop.modes, settings.levels, self.layers, settings.axes, first)
        return [
            self.link(mode, UnitKey("loop", axis, layer, exp, levels))
            for mode, levels, layer, axis, exp in grid
        ]

    def link(self, mode: str, first: UnitKey) -> list[LoopUnit]:
        """Return the units of the link that ends with experiment ``first``."""
        end = min(first.exp + LINK, self.study.settings.n_experiments)
        exps = range(first.exp, end)[::-1]
        donors = [LoopUnit(mode, replace(first, exp=end), True)] if _GIVEN & set(self.loop.arms) else []
        return [*donors, *(LoopUnit(mode, replace(first, exp=exp)) for exp in exps)]

    def share(self, shard: Shard) -> list[LoopUnit]:
        """Return the units of whole links."""
        return [unit for link in shard.take(self.links()) for unit in link]

    def needs(self, unit: LoopUnit) -> list[LoopUnit]:
        """Return whose true arm gives ``unit`` its labels."""
        giver = self.giver(unit)
        return [] if giver is None else [giver]

    def giver(self, unit: LoopUnit) -> LoopUnit | None:
        """Return whose true arm gives ``unit`` its labels: the next experiment, a donor, or None."""
        if unit.donor or not _GIVEN & set(self.loop.arms):
            return None
        after = unit.key.exp + 1
        donor = after % LINK == 0 or after == self.study.settings.n_experiments
        return LoopUnit(unit.mode, replace(unit.key, exp=after), donor)

    def path(self, unit: LoopUnit) -> Path:
        """Return the unit's file."""
        key, what = unit.key, "donor" if unit.donor else "exp"
        levels = "" if key.levels == 2 else f"levels{key.levels}_"
        return self.store.study(f"loop_{unit.mode}_{levels}{what}{key.exp}", key.axis, key.layer)

    def identity(self, unit: LoopUnit) -> dict[str, Any]:
        """Return what a unit depends on."""
        arms = list(self.arms(unit))
        sizes = {"turns": self.loop.turns, "arms": arms, "examples": self.loop.examples}
        texts = fingerprint(asdict(load_loop_prompts()))
        mode = {"loop_mode": unit.mode}
        return unit_identity(self.study, unit.key, _SETTINGS, loop_prompts=texts, **sizes, **mode)

    def title(self, unit: LoopUnit) -> str:
        """Return the unit in words."""
        key, what = unit.key, "donor" if unit.donor else "exp"
        return f"{self.name}, {unit.mode}: {key.axis} layer {key.layer} {what} {key.exp}"

    def arms(self, unit: LoopUnit) -> tuple[str, ...]:
        """Return the arms of a unit; a donor has one."""
        return ("true",) if unit.donor else self.loop.arms

    # ------------------------------------------------------------ the work

    def check(self, units: Sequence[LoopUnit]) -> None:
        """Raise UserError for an axis that is not there, or that has all sentences on one side."""
        self.study.check_sides([unit.key for unit in units])
        super().check(units)

    def begin(self) -> None:
        """Load the model, and check that all conversations fit."""
        super().begin()
        self.closed = ClosedLoop(self.lm, self.study, self.machine.engine(self.model), self.loop)
        self.closed.check((unit.mode, unit.key) for unit in self.units())

    def work(self, unit: LoopUnit) -> dict[str, Any]:
        """Run a unit and return its record."""
        given = self.given(unit)
        try:
            return self.closed.unit(unit.key, unit.mode, self.arms(unit), given)
        except torch.OutOfMemoryError:
            raise UserError(
                "out of memory: use fewer --loop turns, --loop_arms or --loop_examples, a smaller "
                "--token_budget or --dtype, or --device map"
            ) from None

    def given(self, unit: LoopUnit) -> np.ndarray | None:
        """Return (4, K - 1) labels that the true arm of the giver was shown, None if no arm needs them."""
        giver = self.giver(unit)
        if giver is None:
            return None
        record = read(self.path(giver), self.identity(giver))
        return record["shown"][[arm == "true" for arm in record["arm"]]]

    # ------------------------------------------------------------ for --dry_run

    def alike(self, unit: LoopUnit) -> tuple[Any, ...]:
        """Return what the size of a unit depends on."""
        return unit.key.exp, unit.mode, unit.key.levels, unit.donor

    def expected(self, unit: LoopUnit) -> Work:
        """Return what a unit takes, messages and replies at their longest."""
        texts, turns = LoopTexts(self.study, self.prompter, self.loop), self.loop.turns
        start = texts.start(unit.key, unit.mode, self.arms(unit))
        trie, count = build_trie(start.openings), len(start.openings)
        reply = texts.longest_reply(start.sentence)
        message = start.added - reply
        lengths = np.array([len(opening) for opening in start.openings])
        new = (turns - 1) * message + turns * reply  # tokens that a conversation adds to its opening
        before = sum(int((lengths + turn * start.added).sum()) for turn in range(turns))
        return Work(
            tokens=len(trie) + count * (turns - 1) * message,
            plain=before,
            replies=count * turns * reply,
            rows=count * (turns + turns * reply),
            pairs=int((trie.depth + 1).sum() + (lengths * new + new * (new + 1) // 2).sum()),
            slots=len(trie) + count * turns * start.added,
            states=count * len(texts.layers(unit.key)),
            answers=count,
            writers=count,
            longest=int(lengths.max()) + turns * start.added,
        )
