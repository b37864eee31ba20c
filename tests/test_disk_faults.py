"""Signals, and disks that are full, failing or read-only, leave whole files and one clear line."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main_prep
from analysis.base import files
from analysis.base.files import load_pickle, save_bytes, save_pickle
from analysis.cli.script import script
from analysis.experiments import control
from analysis.experiments.preparation import prepare
from analysis.experiments.units import run
from analysis.results import claims
from analysis.results.store import Store, UnitKey, read, write
from tasks.fault_harness import SETTINGS, Given
from tests.fake_results import report_unit
from tests.test_claims import code_of, fork
from tests.test_faults import copied_store, leftovers, prepared_once, run_control, run_report  # noqa: F401

# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_drops_the_current_unit_and_the_same_command_resumes(
    store, tiny_lm, monkeypatch, capsys, number, code
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    main = script(lambda argv=None: 0 * len(run_control(store, tiny_lm)))
    real = control.Control.unit

    def unit(self, key):
        if key.exp == 1:
            os.kill(os.getpid(), number)
        return real(self, key)

    monkeypatch.setattr(control.Control, "unit", unit)
    assert main() == code
    assert "run the same command again to resume" in capsys.readouterr().err
    assert [key.exp for key in store.units("imit")] == [0] and not leftovers(store.root)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert main() == 0 and len(store.units("imit")) == 2


def test_a_signal_that_is_ignored_from_the_start_stays_ignored():
    """As nohup and a shell's ``&`` do, so that closing a terminal does not end a run."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)

    @script
    def main(argv=None) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    try:
        assert main() == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("place", ["fsync", "replace", "close"])
def test_signals_during_a_write_wait_until_the_file_is_whole(tmp_path, monkeypatch, place):
    """Two of them, at each step: the file is complete, and nothing else is left."""
    path, real = tmp_path / "unit.pkl", getattr(os, place)

    def interrupted(*args: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    @script
    def main(argv=None) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(os, place, interrupted)
            save_pickle({"x": 1}, path)
        return 0

    assert main() == 143
    assert load_pickle(path) == {"x": 1} and list(tmp_path.iterdir()) == [path]


def test_signals_at_any_moment_leave_whole_files_only(tmp_path):
    """Processes that write all the time are sent two SIGTERMs 0 to 5 ms apart, as a batch system may."""
    started, tmp_path = tmp_path / "started", tmp_path / "files"
    started.mkdir()

    def job() -> int:
        @script
        def main(argv=None) -> int:
            (started / str(os.getpid())).touch()
            number = 0
            while True:
                path = tmp_path / f"{number % 7}.pkl"
                with claims.claim(path):
                    save_pickle({"x": np.full(3000, number)}, path)
                number += 1

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return main()

    rng = np.random.default_rng(0)
    for _ in range(12):
        pid = fork(job)
        while not (started / str(pid)).exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0.03, 0.06))
        os.kill(pid, signal.SIGTERM)
        time.sleep(rng.uniform(0, 0.005))
        os.kill(pid, signal.SIGTERM)
        assert code_of(pid) in (143, -signal.SIGTERM)  # the second may come when all is done
        assert not leftovers(tmp_path)
        for path in tmp_path.iterdir():
            load_pickle(path)
            path.unlink()


# ---------------------------------------------------------------- disks


def two_units(store: Store) -> Callable[[], int]:
    """Return a script that overwrites one unit and writes another."""
    keys = [UnitKey("pred", "lr", 0, exp) for exp in range(2)]

    @script
    def main(argv=None) -> int:
        def identity(key: UnitKey) -> dict[str, int]:
            return {"axis": key.axis, "layer": key.layer, "exp": key.exp, "levels": key.levels}

        def work(key: UnitKey) -> dict[str, Any]:
            return {**report_unit(np.random.default_rng(0), 2), "scores": np.full(2, float(key.exp))}

        run(Given(store, keys, identity, work), overwrite=True)
        return 0

    unit = report_unit(np.random.default_rng(0), 2)
    write(store.unit(keys[0]), {**unit, "scores": np.zeros(2)}, {**vars(keys[0]), "kind": None})
    return main


class Faults:
    """Makes the ``when``-th call that may touch the disk fail."""

    def __init__(self, patch: pytest.MonkeyPatch, when: int, number: int) -> None:
        self.left, self.number, self.raised = when, number, ""
        for module, name in ((os, "fsync"), (os, "replace"), (os, "open"), (os, "pwrite"), (os, "ftruncate")):
            patch.setattr(module, name, self.failing(name, getattr(module, name)))
        patch.setattr(pathlib.Path, "open", self.failing("Path.open", pathlib.Path.open))

    def failing(self, name: str, real: Callable) -> Callable:
        def call(*args: object, **more: object) -> object:
            self.left -= 1
            if self.left == 0:
                self.raised = name
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **more)

        return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_ends_in_one_line_and_no_half_file(tmp_path, capsys, number):
    seen, failed = set(), 0
    for when in range(1, 60):
        store = Store(tmp_path / str(when), "m", "d")
        main = two_units(store)
        claims._has_flock.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, when, number)
            code = main()
        if not faults.raised:
            break
        seen.add(faults.raised)
        assert not leftovers(tmp_path)
        for key in store.units("pred"):
            assert (read(store.unit(key))["scores"] == key.exp).all()
        assert UnitKey("pred", "lr", 0, 0) in store.units("pred")
        errors = capsys.readouterr().err
        if code == 0:  # what a lock file says may stay unknown, and a folder need not be synced
            assert faults.raised in ("Path.open", "open", "fsync") and not errors
            assert len(store.units("pred")) == 2
        else:
            failed += 1
            (line,) = errors.splitlines()
            assert code == 2 and re.match(
                rf"error: cannot \w+ {store.root}/\S+: {os.strerror(number)}: ", line
            )
        assert main() == 0 and len(store.units("pred")) == 2
    assert seen == {"fsync", "replace", "open", "pwrite", "ftruncate", "Path.open"}
    assert when < 59 and failed > 15


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 64 KiB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"not allowed to mount: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_what_is_there(small_disk, capsys):
    main = script(
        lambda argv=None: [save_pickle({"x": np.zeros(2000)}, small_disk / f"{i}.pkl") for i in range(9)]
    )
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    files = sorted(small_disk.iterdir())
    assert line.startswith(
        f"error: cannot write {small_disk / f'{len(files)}.pkl'}: No space left on device: free"
    )
    assert [path.name for path in files] == [f"{i}.pkl" for i in range(len(files))] and len(files) > 2
    assert all(len(load_pickle(path)["x"]) == 2000 for path in files)


def test_a_limit_on_file_sizes_leaves_no_half_file(tmp_path, capfd):
    def job() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        return script(lambda argv=None: save_bytes(b"x" * 20_000, tmp_path / "big"))()

    assert code_of(fork(job)) == 2
    assert f"cannot write {tmp_path / 'big'}: File too large" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_finished_grid_needs_no_permission_to_write(store, tiny_lm, monkeypatch):
    run_control(store, tiny_lm)

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    for name in ("open", "replace", "rename", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    prepare(tiny_lm, "commonsense", SETTINGS, store)
    assert run_control(store, tiny_lm) == (0, 2)


def test_a_file_in_place_of_the_results_folder_is_named(tmp_path, tiny_folder, capsys):
    (tmp_path / "results").write_text("")
    argv = ["--model", str(tiny_folder), "--results", str(tmp_path / "results"), "--log_level", "error"]
    assert main_prep.main(argv) == 2
    assert "a file stands where a folder belongs" in capsys.readouterr().err


def test_a_disk_without_folder_sync_is_good_enough(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "not for folders")
        real(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    save_pickle({"x": 1}, tmp_path / "a.pkl")
    assert load_pickle(tmp_path / "a.pkl") == {"x": 1}


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_bytes(b"x", tmp_path / "a")
    assert calls == [False, "replace", True]
