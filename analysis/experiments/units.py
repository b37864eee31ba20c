"""One loop over units of work, whatever the work is: which are left, who does them, and what is written.

A stage (the preparation, control, report, every study) is cut into units. A unit is what is lost at most when
a run is killed: it is claimed with a lock file, looked at once more, done, and written whole. ``--shard``
deals units out to jobs, ``--overwrite`` does once more what is there, ``--dry_run`` counts what is left
(analysis/experiments/dry_run.py). A stage says what its units are and how one is done, and nothing more:

    class Squares(OneFile[int]):
        name = "squares"

        def units(self):                return range(3)
        def path(self, unit):           return self.folder / f"square{unit}.pkl"
        def identity(self, unit):       return {"number": unit}       what the content depends on
        def work(self, unit):           return {"square": unit**2}    what is written

    done, kept = run(Squares(), Shard.parse("1/2"))
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from analysis.base.processes import Shard
from analysis.base.progress import bar
from analysis.experiments.workload import Work
from analysis.results.claims import claim, describe, lock_file
from analysis.results.store import Stamp, finished, stamp, still_needed, write

log = logging.getLogger(__name__)

ALL = Shard()
Unit = TypeVar("Unit", bound=Hashable)
Left = dict[Path, Stamp | None]
"""Files of a unit that are not finished, with what tells whether another process has written them since."""


class Stage(ABC, Generic[Unit]):
    """One kind of work; see the module's docstring, and OneFile for units that write one file each."""

    name: ClassVar[str]
    """In bars, logs and --dry_run."""
    waits: ClassVar[bool] = False
    """Whether a run ends only when the units that other processes are doing are finished, too, because what
    comes next reads them; if not, they are left to those processes."""

    # ------------------------------------------------------------ what there is to do

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """Return the whole grid, in the order of the work; no file of a unit is read for it."""

    def share(self, shard: Shard) -> list[Unit]:
        """Return the units of one of several jobs; a unit and those that it needs are in the same share."""
        return shard.take(self.units())

    def needs(self, unit: Unit) -> Collection[Unit]:
        """Return the units that must be finished before this one."""
        return ()

    @abstractmethod
    def place(self, unit: Unit) -> Path:
        """Return what is claimed while the unit is done."""

    @abstractmethod
    def files(self, unit: Unit) -> Mapping[Path, Mapping[str, Any]]:
        """Return what the unit writes: file -> what its content depends on."""

    def title(self, unit: Unit) -> str:
        """Return the unit in words, for the bar."""
        return f"{self.name} {unit}"

    # ------------------------------------------------------------ doing it

    def check(self, units: Sequence[Unit]) -> None:
        """Raise UserError if ``units``, the share of this run, make no sense; comes before all else."""

    def adopt(self, units: Sequence[Unit]) -> None:
        """Take over what an earlier version of the program wrote of ``units`` in another form."""

    def begin(self) -> None:
        """Load what the work needs, and raise UserError if it cannot be done; called only if some is left."""

    def soon(self, unit: Unit, following: Unit | None) -> None:
        """Be told that ``unit`` comes now, and ``following`` after it."""

    @abstractmethod
    def do(self, unit: Unit, missing: Collection[Path]) -> None:
        """Do a unit and write those of its files that are ``missing``."""

    # ------------------------------------------------------------ for --dry_run

    @abstractmethod
    def expected(self, unit: Unit) -> Work:
        """Return what a unit takes, without loading a model."""

    def alike(self, unit: Unit) -> tuple[Any, ...]:
        """Return what the size of a unit depends on, the experiment first."""
        return (0,)

    def on_disk(self, unit: Unit) -> bool:
        """Return whether the files of a unit are there; they are not read."""
        return all(path.exists() for path in self.files(unit))

    def timed(self) -> list[Path] | None:
        """Return finished files that tell how long a unit takes; None where the time is not worth a word."""
        return None


class OneFile(Stage[Unit]):
    """A stage whose units write one file each."""

    @abstractmethod
    def path(self, unit: Unit) -> Path:
        """Return the unit's file."""

    @abstractmethod
    def identity(self, unit: Unit) -> dict[str, Any]:
        """Return what the unit depends on: a file that says otherwise is never taken for it."""

    @abstractmethod
    def work(self, unit: Unit) -> dict[str, Any]:
        """Do a unit and return its record."""

    def about(self) -> Mapping[str, Any]:
        """Return further meta data; called after ``begin``."""
        return {}

    def place(self, unit: Unit) -> Path:
        """Return the unit's file."""
        return self.path(unit)

    def files(self, unit: Unit) -> Mapping[Path, Mapping[str, Any]]:
        """Return the unit's file and identity."""
        return {self.path(unit): self.identity(unit)}

    def do(self, unit: Unit, missing: Collection[Path]) -> None:
        """Do a unit and write its record, with the seconds it took."""
        start = time.perf_counter()
        record = self.work(unit)
        seconds = time.perf_counter() - start
        write(self.path(unit), {**record, "seconds": seconds}, self.identity(unit), **self.about())

    def on_disk(self, unit: Unit) -> bool:
        """Return whether the unit's file is there."""
        return self.path(unit).exists()

    def timed(self) -> list[Path] | None:
        """Return the files that are there."""
        return [path for path in map(self.path, self.units()) if path.exists()]


# ---------------------------------------------------------------- the loop


def unfinished(stage: Stage[Unit], units: Iterable[Unit], overwrite: bool = False) -> dict[Unit, Left]:
    """Return the units that are left, in order; a file that was made with other settings is an error.

    The files of ``units`` are read one after the other, those of other units are not.
    """
    found = {}
    for unit in units:
        files = stage.files(unit)
        stamps = {path: stamp(path) for path in files}  # before the look: what is written after it counts
        left = {path: stamps[path] for path in files if not finished(path, files[path], overwrite)}
        if left:
            found[unit] = left
    return found


def run(stage: Stage[Unit], shard: Shard = ALL, overwrite: bool = False) -> tuple[int, int]:
    """Do what is left of a share of the stage; a killed run loses the current unit at most.

    Units that other processes are doing are left to them, and looked at again as long as that yields any.

    Args:
        stage: see Stage.
        shard: which units to do.
        overwrite: redo what exists.

    Returns:
        Units done here; the other ones of this share, which are on disk or being done by other processes.

    Raises:
        UserError: a unit cannot be done, or its file was made with other settings.
    """
    mine = stage.share(shard)
    stage.check(mine)
    if not overwrite:
        stage.adopt(mine)
    left = unfinished(stage, mine, overwrite)
    done = 0
    if left:
        stage.begin()
        done = _do_all(stage, left)
    return done, len(mine) - done


def _do_all(stage: Stage[Unit], left: Mapping[Unit, Left]) -> int:
    """Do the units ``left`` one by one, round after round; return how many were done here."""
    done, queue, unmet = 0, list(left), set(left)
    patient = False  # whether to wait for the first unit that another process has
    with bar(total=len(queue), desc=stage.name, unit="unit") as shown:
        while queue:
            later: list[Unit] = []
            for unit, following in zip(queue, [*queue[1:], None], strict=True):
                shown.set_description(stage.title(unit), refresh=False)
                if any(need in unmet for need in stage.needs(unit)):
                    later.append(unit)
                    continue
                with claim(stage.place(unit), wait=patient) as mine:
                    if mine:
                        stage.soon(unit, following)
                        done += _do(stage, unit, left[unit])
                        patient = False
                        unmet.discard(unit)
                        shown.update()
                    else:
                        later.append(unit)
            if len(later) == len(queue):
                if not stage.waits:
                    break
                if all(unmet.intersection(stage.needs(unit)) for unit in queue):
                    raise ValueError(f"units of {stage.name} need each other: {queue[0]}")
                patient = True
            queue = later
    _tell(stage, done, len(left) - done - len(queue), queue)
    return done


def _do(stage: Stage[Unit], unit: Unit, left: Left) -> bool:
    """Do a claimed unit, unless another process did it since it was found to be left."""
    files = stage.files(unit)
    missing = [path for path, before in left.items() if still_needed(path, files[path], before)]
    if missing:
        stage.do(unit, missing)
    return bool(missing)


def _tell(stage: Stage[Unit], done: int, others: int, busy: Sequence[Unit]) -> None:
    if not busy:
        log.info("%s: %d units done here, %d meanwhile by other processes", stage.name, done, others)
        return
    log.warning(
        "%s: %d units done here, %d meanwhile by other processes, %d are being done by other processes (such "
        "as %s): the grid is complete when they are through; if one stops, run the same command again",
        stage.name, done, others, len(busy), describe(lock_file(stage.place(busy[0]))),
    )  # fmt: skip
