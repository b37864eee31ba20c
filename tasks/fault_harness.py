"""Kill processes at random moments while they share a results folder, and compare what is left in the end.

    python -m tasks.fault_harness --kills 100

Several processes are forked that work on one grid; one after the other is killed (SIGKILL) after a random
time and started again, until the grid is complete. Then every unit must be there, whole, and equal bit for
bit to an undisturbed run; no two processes may ever have worked on one unit at a time; and a kill may cost
the work on one unit at most. Two grids: ``control``, of a tiny random model, where most kills hit the
computation, and ``files``, whose units take no time, where they hit locks, writes and renames.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.base.seeds import generator
from analysis.experiments import runs
from analysis.experiments.control import Control
from analysis.experiments.preparation import prepare
from analysis.experiments.units import OneFile, run
from analysis.experiments.workload import Work
from analysis.results.schema import CONTROL
from analysis.results.store import Store, UnitKey, read
from configs.settings import Settings
from utils import LoadedModel

SETTINGS = Settings(
    n_axis=20, n_trial=20, max_pc=2, shots=(0, 2), max_new_tokens=3, report_examples=6, n_experiments=4
)
VOLATILE = ("meta", "seconds", "tokens")
Job = Callable[[Store, Path, int], object]
"""Does a grid: where, a folder to note what is begun, and a number that draws the order."""


class Lost(Exception):
    """Something that must never happen."""


@dataclass
class Outcome:
    """What a disturbed run took."""

    kills: int = 0
    begun: int = 0
    """Units begun, all processes together."""
    units: int = 0
    collisions: int = 0
    """Units that two processes worked on at a time."""


# ---------------------------------------------------------------- processes


def spawn(job: Callable[[], object]) -> int:
    """Fork a process that does ``job`` with one thread, silently, and return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import torch

        torch.set_num_threads(1)  # the threads of the parent are not there
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        job()
        code = 0
    finally:
        os._exit(code)


def disturb(
    job: Job, store: Store, notes: Path, kills: int, processes: int, longest: float, seed: int
) -> int:
    """Run ``job`` in several processes, kill and restart them at random; return the kills that hit.

    Args:
        job: see Job.
        store: where results go.
        notes: where the job notes what it begins.
        kills: most kills; fewer if the work is finished before.
        processes: at a time.
        longest: seconds between two kills are drawn between 0 and this.
        seed: of the moments and victims.
    """
    rng, done, started = random.Random(seed), 0, 0
    alive: list[int] = []
    while True:
        while len(alive) < processes and (done < kills or not alive):
            started += 1
            alive.append(spawn(partial(job, store, notes, started)))
        if done < kills:
            time.sleep(rng.uniform(0, longest))
            victim = alive.pop(rng.randrange(len(alive)))
            os.kill(victim, signal.SIGKILL)
            done += os.WIFSIGNALED(os.waitpid(victim, 0)[1])
            if done < kills and complete(store, notes):
                return done
            continue
        for pid in alive:
            if os.waitpid(pid, 0)[1]:
                raise Lost("a process that was not killed has failed")
        return done


def complete(store: Store, notes: Path) -> bool:
    """Return whether no process is needed any more."""
    return len(list(store.folder.glob("imit_*.pkl"))) == int((notes / "units").read_text())


# ---------------------------------------------------------------- what is done


def witnessed(notes: Path, work: Callable[[UnitKey], dict[str, Any]]) -> Callable[[UnitKey], dict[str, Any]]:
    """Return ``work`` that notes its beginning, and whether another process is at the same unit."""

    def noted(key: UnitKey) -> dict[str, Any]:
        name = f"{key.axis}_{key.layer}_{key.exp}"
        with (notes / name).open("w") as handle:  # a file of its own, never unlinked
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(notes / "collisions", name)
            note(notes / "begun", name)
            return work(key)

    return noted


def note(path: Path, line: str) -> None:
    """Append a line at once."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


class Given(OneFile[UnitKey]):
    """Units of a store whose identity and work are given as functions."""

    name = "given"

    def __init__(
        self,
        store: Store,
        keys: Sequence[UnitKey],
        identity: Callable[[UnitKey], dict[str, Any]],
        work: Callable[[UnitKey], dict[str, Any]],
    ) -> None:
        self.store, self.keys, self._identity, self._work = store, keys, identity, work

    def units(self) -> Sequence[UnitKey]:
        return self.keys

    def path(self, unit: UnitKey) -> Path:
        return self.store.unit(unit)

    def identity(self, unit: UnitKey) -> dict[str, Any]:
        return self._identity(unit)

    def work(self, unit: UnitKey) -> dict[str, Any]:
        return self._work(unit)

    def expected(self, unit: UnitKey) -> Work:
        return Work()


def files_job(store: Store, notes: Path, number: int) -> None:
    """Write 120 units that take no time, in an order of one's own."""
    keys = [UnitKey(CONTROL, axis, 0, exp) for axis in ("lr", "pc1", "pc2") for exp in range(40)]
    random.Random(number).shuffle(keys)

    def identity(key: UnitKey) -> dict[str, Any]:
        return {"axis": key.axis, "layer": key.layer, "exp": key.exp, "levels": key.levels}

    def work(key: UnitKey) -> dict[str, Any]:
        return drawn_unit(key)

    run(Given(store, keys, identity, witnessed(notes, work)))


def drawn_unit(key: UnitKey) -> dict[str, Any]:
    """Return a control unit of 400 trials whose scores are drawn, not read from a model."""
    n, flip, want = (np.ravel(part) for part in np.meshgrid(range(100), (False, True), (0, 1), indexing="ij"))
    count, rng = len(n), generator(key.exp, key.axis)
    return {
        "n": n, "flip": flip, "target": want ^ flip, "want": want, "mode": ["inactive"] * count,
        "affected": [key.axis], "scores": rng.normal(size=(count, 1)), "layers": np.arange(5),
        "by_layer": rng.normal(size=(count, 5)), "text": [key.axis] * count,
        "difference": {"inactive": rng.normal(size=8)}, "tokens": {},
    }  # fmt: skip


def control_job(lm: LoadedModel) -> Job:
    """Return a job of control units of a small model whose preparation is there."""

    def job(store: Store, notes: Path, number: int) -> None:
        real = Control.unit

        def unit(self: Control, key: UnitKey) -> dict[str, Any]:
            return witnessed(notes, partial(real, self))(key)

        setattr(Control, "unit", unit)  # noqa: B010, in a process of its own
        exps = list(range(SETTINGS.n_experiments))
        random.Random(number).shuffle(exps)
        axes = random.Random(number).sample(["lr", "pc1", "meandiff"], 3)
        runs.run_control(store, SETTINGS, axes, "1,2", exps, models={store.model: lm})

    return job


def compare(one: Store, other: Store) -> int:
    """Return the number of units, or raise Lost if those of two folders are not the same, bit for bit."""
    keys = one.units(CONTROL)
    if keys != other.units(CONTROL):
        raise Lost(f"units differ: {len(keys)} against {len(other.units('imit'))}")
    for key in keys:
        a, b = ({k: v for k, v in read(s.unit(key)).items() if k not in VOLATILE} for s in (one, other))
        if not equal(a, b):
            raise Lost(f"{key} differs")
    return len(keys)


def equal(a: object, b: object) -> bool:
    """Return whether two records hold the same bits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b)


def trial(
    job: Job, prepared: Path | None, name: str, folder: Path, kills: int, longest: float, seed: int = 0
) -> Outcome:
    """Do a grid undisturbed once, then disturbed until ``kills`` kills hit; compare after each grid.

    Args:
        job: see Job.
        prepared: results folder that is copied first, or None.
        name: of the model in it.
        folder: to work in.
        kills: at least as many.
        longest: see disturb.
        seed: of the moments and victims.
    """

    def fresh(label: str) -> tuple[Store, Path]:
        root, notes = folder / label / "results", folder / label / "notes"
        notes.mkdir(parents=True)
        if prepared is not None:
            shutil.copytree(prepared, root)
        return Store(root, name, "commonsense"), notes

    reference, notes = fresh("undisturbed")
    if os.waitpid(spawn(lambda: job(reference, notes, 0)), 0)[1]:
        raise Lost("the undisturbed run failed")
    found = Outcome(units=len(reference.units(CONTROL)))
    for number in itertools.count():
        store, notes = fresh(f"run{number}")
        (notes / "units").write_text(str(found.units))
        hit = disturb(job, store, notes, kills - found.kills, 3, longest, seed + number)
        while not complete(store, notes):
            if os.waitpid(spawn(partial(job, store, notes, 0)), 0)[1]:
                raise Lost("a run after the kills failed")
        if compare(reference, store) != found.units or list(store.folder.glob("*.corrupt*")):
            raise Lost("a file was damaged")
        begun = (notes / "begun").read_text().splitlines()
        if len(begun) > found.units + hit:
            raise Lost(f"{hit} kills cost {len(begun) - found.units} units")
        found.begun += len(begun)
        found.collisions += (notes / "collisions").exists()
        found.kills += hit
        if found.kills >= kills:
            break
    return found


def main(argv: list[str] | None = None) -> int:
    """Run both grids; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="per grid (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(argv)
    from transformers import LlamaConfig

    from tests.conftest import TINY, make_model, make_tokenizer
    from utils import _model_fingerprint

    model = make_model(LlamaConfig.from_dict(TINY))
    lm = LoadedModel(model, make_tokenizer(), "org/tiny", _model_fingerprint(model))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepared = Store(folder / "prepared", lm.name, "commonsense")
        spawned = spawn(lambda: prepare(lm, "commonsense", SETTINGS, prepared))
        assert os.waitpid(spawned, 0)[1] == 0
        jobs = {"files": (files_job, None, 0.03), "control": (control_job(lm), prepared.root, 0.5)}
        for label, (job, root, longest) in jobs.items():
            start = time.perf_counter()
            found = trial(job, root, lm.name, folder / label, args.kills, longest, args.seed)
            seconds = time.perf_counter() - start
            print(f"{label}: {found}, {seconds:.0f} s, all units equal to the undisturbed run")
            if found.collisions:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
