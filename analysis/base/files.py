"""Files that are whole whatever happens: saving, reading, signals that wait, and what disks can do."""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.base import pickles
from analysis.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the repository."""

# ---------------------------------------------------------------- stopping


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread; see analysis/base/script.py."""


class _Stop:
    """Turns signals into exceptions, but not while a file or a lock is being written."""

    again = 10.0
    """Seconds in which a second signal is ignored: the first one is cleaning up."""

    def __init__(self) -> None:
        self.held = 0
        self.waiting: type[KeyboardInterrupt] | None = None
        self.first = -math.inf

    def reset(self) -> None:
        """Forget what came before, at the start of a command."""
        self.waiting, self.first = None, -math.inf

    def request(self, number: int, frame: object) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if now - self.first < self.again:
            return
        self.first = now
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if not self.held:
            raise kind  # never by a name: it would hold the frame that holds it, and with them every lock
        self.waiting = kind


stop = _Stop()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until the block is through; a few milliseconds of work, never more."""
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread
        yield
        return
    stop.held += 1
    try:
        yield
    finally:
        stop.held -= 1
        if stop.waiting is not None and not stop.held:
            kind, stop.waiting = stop.waiting, None
            raise kind


# ---------------------------------------------------------------- files

_FOLDER = "make the folder writable, or give another --results folder"
_ADVICE = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: _FOLDER, errno.EACCES: _FOLDER, errno.EPERM: _FOLDER,
    errno.ENOTDIR: "a file stands where a folder belongs: move it away",
    errno.EEXIST: "a file stands where a folder belongs: move it away",
    errno.EISDIR: "a folder stands where a file belongs: move it away",
    errno.EIO: "check the disk", errno.ESTALE: "mount the folder again",
}  # fmt: skip


def disk_error(error: OSError, path: object = None, doing: str = "use") -> UserError | None:
    """Return the error for a full, failing or read-only disk; None if that is not what happened."""
    if error.errno not in _ADVICE:
        return None
    return UserError(
        f"cannot {doing} {path or error.filename}: {os.strerror(error.errno)}: {_ADVICE[error.errno]}, then "
        "run the same command again; what is finished is kept"
    )


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what a disk can do to ``path`` into a UserError that names it; ``doing`` is a verb."""
    try:
        yield
    except OSError as error:
        known = disk_error(error, path, doing)
        if known is None:
            raise
        raise known from error


@lru_cache(maxsize=1)
def this_host() -> str:
    """Return a name within which process numbers are unique: the host's, and on Linux its namespace's."""
    name = re.sub(r"[^\w-]", "_", socket.gethostname())[:64]
    try:
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return name


_numbers = itertools.count()


def part_name(path: Path) -> Path:
    """Return a temporary name of ``path`` that nobody else uses: no other process, thread or call."""
    return path.with_name(f"{path.name}.{next(_numbers)}.{this_host()}.{os.getpid()}.part")


def save_bytes(payload: bytes, path: Path) -> None:
    """Write a file under a temporary name in the same folder, fsync, then rename.

    Whatever happens, ``path`` is absent, old, or whole; a temporary file stays only if the process is killed
    outright, and is never read.

    Raises:
        UserError: the disk is full, failing or read-only; the message names ``path`` and what to do.
    """
    part = part_name(path)
    with uninterrupted(), disk_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as handle:
                handle.write(payload)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)


_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the file system can."""
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def one_line(text: str, most: int = 200) -> str:
    """Return what a file says as one short line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * most]).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


class DamagedFile(UserError):
    """A truncated, changed or foreign file stands in place of a result."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is not a readable result file ({why}): run the command that makes it again, which keeps "
            f"this one as {path.name}.corrupt"
        )
        self.path, self.why = path, why
        self.redone = f"{path} is not a readable result file ({why}): it is kept as .corrupt and made again"


def save_pickle(record: dict[str, Any], path: Path) -> None:
    """Write ``record`` (builtins and numpy arrays) as :func:`save_bytes` does.

    The file is an ordinary pickle followed by a checksum, which ``pickle.load`` ignores.
    """
    save_bytes(pickles.dumps(record), path)


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a result file with the restricted unpickler.

    Raises:
        DamagedFile: the file is truncated, changed, foreign, or not a dict.
        UserError: the disk fails; both messages name the file.
    """
    with disk_errors(path, "read"):
        _refuse_strange(path)
        content = path.read_bytes()
    with _damaged(path):
        return _only_dict(path, pickles.loads(content))


def load_meta(path: Path) -> object:
    """Return what a result file has under ``meta``, its first entry; the rest is hashed, but not kept.

    Raises:
        DamagedFile: the file is truncated, changed, foreign, or not a dict.
        UserError: the disk fails; both messages name the file.
    """
    with disk_errors(path, "read"):
        _refuse_strange(path)
        with path.open("rb") as stream, _damaged(path):
            return _only_dict(path, pickles.load_head(stream)).get("meta")


def _refuse_strange(path: Path) -> None:
    """Raise DamagedFile for a pipe or a device, which would be read without end."""
    if not path.is_file() and os.path.lexists(path):
        raise DamagedFile(path, "it is no regular file")


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except pickles.BROKEN as error:
        if isinstance(error, UserError):
            raise
        raise DamagedFile(path, one_line(str(error)) or type(error).__name__) from None


def _only_dict(path: Path, record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DamagedFile(path, f"it holds a {type(record).__name__}, but results are dicts")
    return record
