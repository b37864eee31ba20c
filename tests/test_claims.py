"""One holder at a time, on any file system, and none that is dead."""

from __future__ import annotations

import dis
import errno
import fcntl
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pytest

from analysis.base.errors import UserError
from analysis.base.files import this_host
from analysis.cli.script import script
from analysis.experiments.units import run
from analysis.results import claims
from analysis.results.claims import claim, describe, lock_file, process_start
from analysis.results.store import Store, UnitKey, read
from tasks.fault_harness import Given


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What is claimed; it need not exist."""
    claims._has_flock.cache_clear()
    return tmp_path / "unit.pkl"


@pytest.fixture(
    params=["flock", *(pytest.param(n, id=errno.errorcode[n]) for n in sorted({*claims._NO_FLOCK}))]
)
def any_disk(request, monkeypatch) -> object:
    """File systems with flock, and without it for each of the reasons (but for claims' own mutex)."""
    if request.param != "flock":
        real = fcntl.flock

        def flock(fd: int, how: int) -> None:
            if "neurofeedback-claims" not in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(request.param, "no locks here")
            real(fd, how)

        monkeypatch.setattr(claims.fcntl, "flock", flock)
    return request.param


def fork(job: Callable[[], int]) -> int:
    """Run ``job`` in a child that ends with its return value."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = job()
        finally:
            os._exit(code)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_claim_has_one_holder_and_leaves_nothing(any_disk, path):
    with claim(path) as mine:
        assert mine
        with claim(path) as again:
            assert not again
        assert code_of(fork(lambda: int(claimed(path)))) == 0
        about = json.loads(lock_file(path).read_text())
        assert (about["host"], about["pid"]) == (this_host(), os.getpid()) and about["since"].startswith("20")
    assert list(path.parent.iterdir()) == []
    assert claimed(path)


def claimed(path: Path) -> bool:
    with claim(path) as mine:
        return mine


def test_the_claim_of_a_killed_process_is_taken_over_at_once(any_disk, path):
    def hold() -> int:
        with claim(path):
            (path.parent / "held").touch()
            time.sleep(60)
        return 0

    pid = fork(hold)
    while not (path.parent / "held").exists():
        time.sleep(0.005)
    assert not claimed(path)
    os.kill(pid, signal.SIGKILL)
    assert code_of(pid) == -signal.SIGKILL
    assert lock_file(path).exists()
    assert claimed(path) and not lock_file(path).exists()


@pytest.mark.parametrize("round_", range(3))
def test_of_many_that_find_a_stale_lock_one_takes_it(any_disk, path, round_):
    stale = {"host": this_host(), "pid": os.getpid(), "start": "another boot 1", "kept_by": "name"}
    lock_file(path).write_text(json.dumps(stale))
    go, tried = time.monotonic() + 0.03, path.parent / "tried"
    tried.mkdir()

    def contend() -> int:
        while time.monotonic() < go:
            pass
        with claim(path) as mine:
            (tried / str(os.getpid())).touch()
            while mine and len(list(tried.iterdir())) < 4:
                time.sleep(0.005)
            return int(mine)

    assert sum(map(code_of, [fork(contend) for _ in range(4)])) == 1


def test_a_lock_file_made_anew_between_opening_and_locking_is_noticed(path, monkeypatch):
    """The one that is locked first is no longer the one of that name: two processes would hold a claim."""
    real, seen = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(lock_file(path)) and not seen:
            seen.append(os.fstat(fd).st_ino)
            lock_file(path).rename(path.parent / "kept, so that its number is not used again")
        real(fd, how)

    monkeypatch.setattr(claims.fcntl, "flock", late)
    with claim(path) as mine:
        assert mine and lock_file(path).stat().st_ino not in seen
        assert not claimed(path)


@pytest.mark.parametrize(
    "content", ['{"host": "elsewhere", "pid": 7, "since": "1999", "kept_by": "name"}', ""]
)
@pytest.mark.parametrize("any_disk", [errno.ENOLCK, "flock"], indirect=True)
def test_a_lock_of_another_machine_stays_and_is_named(any_disk, path, content):
    if any_disk == "flock" and not content:
        pytest.skip("an empty file that nobody locks is free")
    lock_file(path).write_text(content)
    assert not claimed(path)
    assert lock_file(path).read_text() == content
    words = describe(lock_file(path))
    assert str(lock_file(path)) in words and "delete the file if that process is gone" in words
    assert not content or "process 7 on elsewhere since 1999" in words


@pytest.mark.parametrize("any_disk", [errno.ENOLCK, "flock"], indirect=True)
def test_waiting_ends_when_the_holder_is_through_and_is_logged(any_disk, path, caplog):
    def hold() -> int:
        with claim(path):
            (path.parent / "held").touch()
            time.sleep(0.3)
        return 0

    pid = fork(hold)
    while not (path.parent / "held").exists():
        time.sleep(0.005)
    with caplog.at_level(logging.INFO), claim(path, wait=True) as mine:
        assert mine
    assert code_of(pid) == 0
    assert f"waiting for another process: {lock_file(path)} (process {pid}" in caplog.text


def test_a_signal_while_a_claim_is_taken_or_freed_leaves_no_lock(any_disk, path, monkeypatch, capsys):
    for name in ("ftruncate", "close"):
        real = getattr(os, name)

        def interrupted(*args: object, real=real) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            real(*args)

        @script
        def main(argv=None, name=name, interrupted=interrupted) -> int:
            with claim(path.with_name("warm up")), monkeypatch.context() as patch:
                patch.setattr(claims.os, name, interrupted)
                with claim(path):
                    patch.undo()
                    if name == "close":
                        patch.setattr(claims.os, name, interrupted)
            return 0

        assert main() == 143
        assert "resume" in capsys.readouterr().err
        assert list(path.parent.iterdir()) == [] and claimed(path)


@cache
def looks_for_signals(code: CodeType) -> frozenset[int]:
    """Return the places in a function before which the interpreter lets a signal come in."""
    steps = list(dis.get_instructions(code))
    before = ("CALL", "RESUME", "JUMP_BACKWARD")
    return frozenset(b.offset for a, b in zip(steps, steps[1:], strict=False) if a.opname.startswith(before))


class SignalAt:
    """Sends SIGTERM to this process at the ``when``-th of such places within a claim."""

    def __init__(self, when: int) -> None:
        self.when, self.met = when, 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> Callable | None:
        if Path(frame.f_code.co_filename).name not in ("claims.py", "files.py", "contextlib.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in looks_for_signals(frame.f_code):
            self.met += 1
            if self.met == self.when:
                os.kill(os.getpid(), signal.SIGTERM)
        return self


@pytest.mark.parametrize("any_disk", [errno.ENOLCK, "flock"], indirect=True)
def test_a_signal_at_any_step_of_a_claim_leaves_no_lock(any_disk, path, capsys):
    """Also between two steps of the with statement itself, where no block of ours is in force."""

    def attempt(when: int) -> tuple[int, int]:
        tracer = SignalAt(when)

        @script
        def main(argv=None) -> int:
            sys.settrace(tracer)
            try:
                with claim(path):
                    pass
            finally:
                sys.settrace(None)
            return 0

        return main(), tracer.met

    attempt(-1)
    _, steps = attempt(-1)
    gc.disable()  # what only the collector of garbage would give back is not given back
    try:
        for when in range(1, steps + 1):
            assert attempt(when)[0] == 143
            assert list(path.parent.iterdir()) == [], when
    finally:
        gc.enable()
    assert steps > 50


def test_a_number_used_again_is_another_process():
    first = fork(lambda: time.sleep(30) or 0)
    started = process_start(first)
    assert started not in (None, process_start(os.getpid()))
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert process_start(first) is None  # dead, but not waited for yet: nobody else can have its number
    code_of(first)
    assert process_start(first) != started  # whoever has the number now


def test_a_disk_that_refuses_the_lock_is_named(path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    assert claimed(path)
    monkeypatch.setattr(claims.os, "pwrite", full)
    with pytest.raises(UserError, match="unit.pkl.lock"):
        claimed(path)
    assert list(path.parent.iterdir()) == []


def test_threads_that_try_a_folder_at_once_all_see_its_locks(path):
    """The file on which flock is tried is each one's own: the lock of another's try would look like none."""
    together = threading.Barrier(8)

    def tried(number: int) -> bool:
        together.wait()
        return claims._has_flock.__wrapped__(path.parent)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert all(pool.map(tried, range(8)))
    assert list(path.parent.iterdir()) == []


def test_two_that_start_the_same_study_do_each_experiment_once(tmp_path):
    class Waiting(Given):
        waits = True

    done: list[int] = []
    keys = [UnitKey("made", "lr", 0, exp) for exp in range(4)]

    def work(key: UnitKey) -> dict[str, np.ndarray]:
        time.sleep(0.05)
        done.append(key.exp)
        return {"x": np.array([key.exp])}

    store, found = Store(tmp_path, "org/tiny", "commonsense"), []

    def study() -> None:
        run(Waiting(store, keys, lambda key: {"exp": key.exp}, work))
        found.append([read(store.unit(key))["x"].item() for key in keys])

    both = [threading.Thread(target=study) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3] and found == [[0, 1, 2, 3]] * 2
