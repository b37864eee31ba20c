"""The one loop over units: order, resuming, shards, units that need others, and other processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis.base.errors import UserError
from analysis.base.processes import Shard
from analysis.experiments import units
from analysis.experiments.dry_run import unit_work
from analysis.experiments.units import OneFile, Stage, run, unfinished
from analysis.experiments.workload import MEASURED, Work
from analysis.results.claims import claim
from analysis.results.store import read, write
from tasks.fault_harness import spawn
from tests.test_claims import code_of


class Squares(OneFile[int]):
    """Squares of numbers; notes what it is asked for."""

    name = "squares"

    def __init__(self, folder: Path, count: int = 4, factor: int = 1) -> None:
        self.folder, self.count, self.factor = folder, count, factor
        self.told: list[object] = []

    def units(self) -> Sequence[int]:
        return range(self.count)

    def path(self, unit: int) -> Path:
        return self.folder / f"square{unit}.pkl"

    def identity(self, unit: int) -> dict[str, Any]:
        return {"number": unit, "factor": self.factor}

    def begin(self) -> None:
        self.told.append("begin")

    def soon(self, unit: int, following: int | None) -> None:
        self.told.append((unit, following))

    def work(self, unit: int) -> dict[str, Any]:
        self.told.append(unit)
        return {"square": self.factor * unit**2}

    def expected(self, unit: int) -> Work:
        return Work(tokens=10 * unit)

    def alike(self, unit: int) -> tuple[Any, ...]:
        return (unit,)


def done(stage: Squares) -> list[int]:
    """Return the units that were worked on, in order."""
    return [unit for unit in stage.told if isinstance(unit, int)]


# ---------------------------------------------------------------- one process


def test_units_are_done_in_order_after_one_beginning_and_each_hears_of_the_next(tmp_path):
    stage = Squares(tmp_path, 3)
    assert run(stage) == (3, 0)
    assert stage.told == ["begin", (0, 1), 0, (1, 2), 1, (2, None), 2]
    records = [read(stage.path(unit), stage.identity(unit)) for unit in range(3)]
    assert [record["square"] for record in records] == [0, 1, 4]
    assert all(record["seconds"] >= 0 for record in records)


def test_a_finished_grid_begins_nothing_and_a_longer_one_does_what_is_new(tmp_path):
    run(Squares(tmp_path, 2))
    again, longer = Squares(tmp_path, 2), Squares(tmp_path, 4)
    assert run(again) == (0, 2) and again.told == []
    assert run(longer) == (2, 2) and done(longer) == [2, 3]


def test_other_settings_are_an_error_before_any_work_and_are_overwritten_if_asked(tmp_path):
    run(Squares(tmp_path, 3))
    other = Squares(tmp_path, 3, factor=2)
    with pytest.raises(UserError, match="factor: 1 there, 2 now"):
        run(other)
    assert other.told == []
    assert run(other, overwrite=True) == (3, 0)
    assert read(other.path(2))["square"] == 8


def test_a_stop_loses_the_unit_in_work_and_nothing_else(tmp_path, monkeypatch):
    stage = Squares(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "work", lambda unit: {"square": 0} if unit < 2 else stop())
        with pytest.raises(KeyboardInterrupt):
            run(stage)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["square0.pkl", "square1.pkl"]
    assert run(stage) == (2, 2) and done(stage) == [2, 3]


def stop() -> dict[str, Any]:
    raise KeyboardInterrupt


def test_a_shard_looks_at_its_own_files_only_and_all_shards_together_do_everything(tmp_path, monkeypatch):
    looked: list[Path] = []
    real = units.finished
    monkeypatch.setattr(units, "finished", lambda path, *rest: looked.append(path) or real(path, *rest))
    first, second = Squares(tmp_path, 5), Squares(tmp_path, 5)
    assert run(first, Shard(1, 2)) == (3, 0)
    assert set(looked) == {first.path(unit) for unit in (0, 2, 4)}
    assert run(second, Shard(2, 2)) == (2, 0) and done(second) == [1, 3]
    assert unfinished(first, first.units()) == {}


def test_a_shard_without_units_begins_nothing(tmp_path):
    stage = Squares(tmp_path, 2)
    assert run(stage, Shard(3, 3)) == (0, 0) and stage.told == []


# ---------------------------------------------------------------- units that need others


class Chain(Squares):
    """Each number needs the next one."""

    def needs(self, unit: int) -> Collection[int]:
        return [unit + 1] if unit + 1 < self.count else []


class Falling(Chain):
    """The same, in the order in which it can be done."""

    def units(self) -> Sequence[int]:
        return range(self.count)[::-1]


def test_what_a_unit_needs_comes_first_whatever_the_order(tmp_path):
    for number, stage in enumerate((Chain(tmp_path / "a"), Falling(tmp_path / "b"))):
        assert run(stage) == (4, 0) and done(stage) == [3, 2, 1, 0], number


def test_finished_needs_are_not_waited_for(tmp_path):
    run(Squares(tmp_path, 4), Shard(2, 2))  # 1 and 3
    stage = Chain(tmp_path)
    assert run(stage) == (2, 2) and done(stage) == [0, 2]


class Circle(Squares):
    """Units that need each other."""

    waits = True

    def needs(self, unit: int) -> Collection[int]:
        return [1 - unit]


def test_units_that_need_each_other_are_a_slip_of_ours_and_found_at_once(tmp_path):
    with pytest.raises(ValueError, match="need each other"):
        run(Circle(tmp_path, 2))


# ---------------------------------------------------------------- several files


class Pair(Stage[str]):
    """A unit of two files."""

    name = "pair"

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, []

    def units(self) -> Sequence[str]:
        return ["both"]

    def place(self, unit: str) -> Path:
        return self.folder / unit

    def files(self, unit: str) -> Mapping[Path, Mapping[str, Any]]:
        return {self.folder / f"{name}.pkl": {"name": name} for name in "ab"}

    def do(self, unit: str, missing: Collection[Path]) -> None:
        for path in missing:
            self.written.append(path.name)
            write(path, {"x": 1}, self.files(unit)[path])

    def expected(self, unit: str) -> Work:
        return Work()


def test_of_a_unit_of_several_files_only_the_missing_ones_are_written(tmp_path):
    stage = Pair(tmp_path)
    assert run(stage) == (1, 0) and stage.written == ["a.pkl", "b.pkl"]
    (tmp_path / "a.pkl").unlink()
    assert not stage.on_disk("both") and run(stage) == (1, 0) and stage.written[2:] == ["a.pkl"]
    (tmp_path / "b.pkl").write_bytes(b"damaged")
    assert run(stage) == (1, 0) and stage.written[3:] == ["b.pkl"] and (tmp_path / "b.pkl.corrupt").exists()


# ---------------------------------------------------------------- other processes


@contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Let another thread hold the claim on ``path`` for a while; begins when it has it."""
    has = threading.Event()

    def hold() -> None:
        with claim(path) as mine:
            assert mine
            has.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(20)
    try:
        yield
    finally:
        thread.join()


def test_a_unit_of_another_process_is_left_to_it_or_waited_for(tmp_path, caplog):
    class Waiting(Squares):
        waits = True

    left, waited = Squares(tmp_path / "a", 3), Waiting(tmp_path / "b", 3)
    with held(left.path(1), 0.5):
        assert run(left) == (2, 1) and done(left) == [0, 2]
    assert "1 are being done by other processes" in caplog.text
    with held(waited.path(1), 0.5):
        assert run(waited) == (3, 0) and done(waited) == [0, 2, 1]


def test_a_unit_whose_need_another_process_has_comes_after_it(tmp_path):
    class Waiting(Falling):
        waits = True

    stage = Waiting(tmp_path, 3)
    with held(stage.path(2), 0.5):
        assert run(stage) == (3, 0)
    assert done(stage) == [2, 1, 0]


def test_processes_that_run_one_chain_together_do_every_unit_once(tmp_path):
    log = tmp_path / "log"

    class Noted(Falling):
        waits = True

        def work(self, unit: int) -> dict[str, Any]:
            before = [self.path(need).exists() for need in self.needs(unit)]
            with log.open("a") as handle:
                handle.write(f"{unit} {all(before)}\n")
            time.sleep(0.01)
            return super().work(unit)

    for pid in [spawn(lambda: run(Noted(tmp_path / "grid", 12))) for _ in range(3)]:
        assert code_of(pid) == 0
    lines = log.read_text().split()
    assert sorted(map(int, lines[::2])) == list(range(12)) and set(lines[1::2]) == {"True"}
    assert not list((tmp_path / "grid").glob("*.lock")) and os.listdir(tmp_path / "grid")


# ---------------------------------------------------------------- --dry_run


def test_the_work_of_a_unit_is_the_mean_over_the_first_experiments(tmp_path):
    stage = Squares(tmp_path, 20)
    assert MEASURED == 3
    assert unit_work(stage, range(5, 20)) == Work(tokens=60)
    assert unit_work(stage, [9]) == Work(tokens=90) and unit_work(stage, []) == Work()
