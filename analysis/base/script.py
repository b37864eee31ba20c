"""What surrounds every script: errors as one line, signals, logging."""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from analysis.base.errors import UserError
from analysis.base.files import Terminated, disk_error, stop
from analysis.base.processes import is_main

Main = Callable[[Sequence[str] | None], int]


class Script(Protocol):
    """An entry point: with the words of a command line, or none to take those of the process."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Return the exit code."""
        ...


def script(main: Main) -> Script:
    """Turn the user's mistakes, full disks and signals into one line on stderr; other errors stay loud.

    Exit codes: 2 for a mistake or a disk error, 130 after SIGINT, 143 after SIGTERM.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        with signals_stop():
            try:
                return main(argv)
            except UserError as error:
                return _failed(str(error))
            except OSError as error:
                known = disk_error(error)
                if known is None:
                    raise
                return _failed(str(known))
            except Terminated:
                print("stopped by SIGTERM; run the same command again to resume", file=sys.stderr)
                return 143
            except KeyboardInterrupt:
                print("stopped; run the same command again to resume", file=sys.stderr)
                return 130

    return wrapped


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


@contextmanager
def signals_stop() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the work between two steps, as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop.reset()
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:  # nohup and the like stay in force
            signal.signal(number, stop.request)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def setup_logging(level: str) -> None:
    """Log to stderr with time, level and module; of several processes of one launch the others only warn."""
    level = level if is_main() else "warning"
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, datefmt="%H:%M:%S", force=True)
    for noisy in ("httpx", "matplotlib", "urllib3", "fontTools", "PIL", "gguf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
