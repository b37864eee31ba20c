"""Several processes on one results folder: who does a piece of work is decided by a lock file.

    with claim(store.unit(key)) as mine:        # <unit>.lock, holding host, process and start time as JSON
        if mine: ...

What is guaranteed depends on the file system:

*   flock works across all machines that mount the folder (local disks; NFS 3 and 4, GPFS, CephFS, Lustre
    mounted with ``flock``): two processes never hold one claim, and the kernel frees it when its holder dies,
    so that the lock file of a dead process is taken over at once.
*   flock works on each machine alone (Lustre ``localflock``, BeeGFS by default): the same, but between the
    processes of one machine only. Two machines may do a unit twice; its file is whole and one of the two.
    There, give each machine experiments of its own.
*   no flock (ENOLCK, EOPNOTSUPP, ENOSYS): lock files are created exclusively, safe across machines.
    That of a dead process is taken over on the machine that it ran on (process number and start time tell);
    on other machines the work stays claimed, and the message names the file to delete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.base.files import disk_errors, part_name, this_host, uninterrupted

log = logging.getLogger(__name__)

_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_BY_NAME = "name"  # in the lock file: it holds by being there, not by flock
POLL = 0.2
"""Seconds between two looks at a claim that is waited for."""


def lock_file(path: Path) -> Path:
    """Return the lock file of ``path``."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Claim the work on ``path`` until the block ends; yield False if a living process has it.

    Args:
        path: what will be written; need not exist, nor be a file.
        wait: look again until the claim is free, and say in the log who is waited for.

    Raises:
        UserError: the lock file cannot be written.
    """
    lock, held = lock_file(path), None
    try:
        with uninterrupted():  # a signal that waits is raised when ``held`` is known
            held = _take(lock)
        if held is None and wait:
            log.info("waiting for another process: %s", describe(lock))
            while held is None:
                time.sleep(POLL)
                with uninterrupted():
                    held = _take(lock)
        yield held is not None
    finally:
        if held is not None:
            try:
                held.release()
            except KeyboardInterrupt:  # it may have come before signals were made to wait
                held.release()
                raise


def describe(lock: Path) -> str:
    """Return a lock file's name and content in words."""
    about = _content(lock)
    who = (
        f"process {about.get('pid')} on {about.get('host')} since {about.get('since')}"
        if about
        else "content unreadable"
    )
    advice = "; delete the file if that process is gone" if about.get("kept_by", _BY_NAME) == _BY_NAME else ""
    return f"{lock} ({who}{advice})"


# ---------------------------------------------------------------- taking and giving back


@dataclass
class _Held:
    """A claim of this process."""

    lock: Path
    fd: int | None
    pid: int = field(default_factory=os.getpid)

    def release(self) -> None:
        """Give the claim back, once; what is called again, or in a forked process, does nothing."""
        with uninterrupted(), disk_errors(self.lock, "delete"):
            if self.fd is None or self.pid != os.getpid():
                return
            fd, self.fd = self.fd, None
            try:  # first: whoever has opened the old file then sees that it is not there any more
                self.lock.unlink(missing_ok=True)
            finally:
                os.close(fd)


def _take(lock: Path) -> _Held | None:
    """Return the claim, or None if another process has it."""
    with disk_errors(lock, "write"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = _take_by_flock(lock) if _has_flock(lock.parent) else _take_by_name(lock)
    return None if fd is None else _Held(lock, fd)


def _take_by_flock(lock: Path) -> int | None:
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        kept = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(fd, lock):
                about = _content(lock)
                if about.get("kept_by") == _BY_NAME and not _is_dead(about):
                    return None
                _sign(fd, lock, "flock")
                kept = True
                return fd
        except BlockingIOError:
            return None
        finally:
            if not kept:
                os.close(fd)


def _is_file(fd: int, lock: Path) -> bool:
    """Return whether the file that was opened is still the one of that name."""
    mine = os.fstat(fd)
    try:
        there = os.stat(lock)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _take_by_name(lock: Path) -> int | None:
    with _one_of_this_host():  # only one process at a time takes over what a dead one left
        try:
            about = _content(lock)
            if about and _is_dead(about):
                lock.unlink(missing_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return None
        try:
            _sign(fd, lock, _BY_NAME)
        except OSError:
            os.close(fd)
            raise
        return fd


def _sign(fd: int, lock: Path, kept_by: str) -> None:
    """Write who holds the claim; without that, give it back."""
    try:
        about = {
            "host": this_host(), "pid": os.getpid(), "start": process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kept_by": kept_by,
        }  # fmt: skip
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(about).encode(), 0)
    except OSError:
        lock.unlink(missing_ok=True)
        raise


def _content(lock: Path) -> Mapping[str, Any]:
    """Return what the lock file says, empty if it is not there or not readable."""
    try:
        about = json.loads(lock.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


@contextmanager
def _one_of_this_host() -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"neurofeedback-claims-{os.getuid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@lru_cache(maxsize=64)
def _has_flock(folder: Path) -> bool:
    """Try flock on a file of our own in ``folder``."""
    probe = part_name(folder / "flock")
    fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        log.info("%s is on a file system without flock: see analysis/results/claims.py", folder)
        return False
    finally:
        os.close(fd)
        probe.unlink(missing_ok=True)
    return True


# ---------------------------------------------------------------- processes


def is_dead(host: str, pid: int) -> bool:
    """Return whether process ``pid`` ran on this machine and does not any more."""
    return host == this_host() and process_start(pid) is None


def _is_dead(about: Mapping[str, Any]) -> bool:
    pid = about.get("pid")
    if about.get("host") != this_host() or not isinstance(pid, int):
        return False
    return process_start(pid) != about.get("start")


def process_start(pid: int) -> str | None:
    """Return what tells a process from another one of the same number, None if there is no such process.

    It counts from the machine's start, so that a clock that is set does not matter.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _answers(pid)
    except ProcessLookupError:  # it ended while the file was read
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _answers(pid: int) -> str | None:
    """Return "" for a process of this number, where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is there, and another user's
        pass
    return ""
