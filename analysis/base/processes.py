"""Which units a process does: ``--shard`` splits a grid over jobs, ``accelerate launch`` over processes.

    shard = current("2/4")                      # the second of four jobs
    mine = shard.take(keys)                     # units 1, 5, 9, ... of the grid, counted from 0

Jobs know nothing of each other; processes of one ``accelerate launch`` (or torchrun, or mpirun) wait for each
other where they must, over gloo, so that no GPU is used for it. Without such a launcher accelerate is not
imported.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from analysis.base.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

log = logging.getLogger(__name__)

T = TypeVar("T")

_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # torchrun and accelerate, Intel MPI, Open MPI
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_PATIENCE = timedelta(days=30)  # that processes wait for each other: a preparation takes as long as it takes

_ONE_PROCESS = (
    "`accelerate launch --cpu` starts one process without MPI: for n of them on CPUs too, give "
    "`accelerate launch --multi_gpu --num_processes n`"
)


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a grid of units."""

    index: int = 1
    """From 1."""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that ``text``, such as ``2/4``, names; UserError if it is none."""
        match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(
                f"--shard {text}: give i/n with 1 <= i <= n, such as 2/4 for the second of four jobs"
            )
        return cls(int(match[1]), int(match[2]))

    def take(self, keys: Sequence[T]) -> list[T]:
        """Return this shard's part of ``keys``, dealt out like cards: unit k goes to shard k mod count."""
        return list(keys[self.index - 1 :: self.count])

    def split(self, index: int, count: int) -> Shard:
        """Return part ``index``, from 0, of ``count`` parts of this shard."""
        return Shard(self.index + index * self.count, self.count * count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def asked(flag: str | None) -> Shard:
    """Return the shard that ``flag`` names, everything if it is None; see Shard.parse."""
    return Shard() if flag is None else Shard.parse(flag)


def current(flag: str | None) -> Shard:
    """Return what this process is to do: its part of the shard that ``flag`` names; see asked."""
    shard = asked(flag)
    if not launched():
        if "MASTER_PORT" in os.environ and _wants_cpu():
            log.warning("%s", _ONE_PROCESS)
        return shard
    state = _state()
    return shard.split(state.process_index, state.num_processes)


# ---------------------------------------------------------------- processes of one launcher


def launched() -> bool:
    """Return whether a launcher started several processes of this script."""
    return _number(_COUNT, 1) > 1


def is_main() -> bool:
    """Return whether this process is the one that shows the bar, prepares, and draws."""
    return _number(_INDEX, 0) == 0 or not launched()


def own_device(device: str) -> str:
    """Return ``device``, or for ``auto`` and ``cuda`` in one of several processes a device of its own.

    Raises:
        UserError: ``map`` in one of several processes.
    """
    if device == "auto" and _wants_cpu():
        device = "cpu"
    if not launched():
        return device
    if device == "map":
        raise UserError(
            "--device map spreads one model over all GPUs, so it cannot run in several processes: start the "
            "script with python instead, and split the units over jobs with --shard"
        )
    own = _state().device
    return str(own) if device in ("auto", "cuda") and own.type != "cpu" else device


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do the block, then the others, which find its results on disk."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def wait_for_all() -> None:
    """Return when every process has come here; at once where there is only one.

    Raises:
        UserError: a process ended before.
    """
    if not launched():
        return
    try:
        _state().wait_for_everyone()
    except RuntimeError as error:  # gloo: the connection is closed
        raise UserError("another process of this launch has stopped: see its message") from error


def _state() -> PartialState:
    """Return accelerate's state; the first call makes it, and waits for the other processes."""
    import torch
    from accelerate import PartialState

    return PartialState(not torch.cuda.is_available(), backend="gloo", timeout=_PATIENCE)


def _wants_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def _number(names: Sequence[str], default: int) -> int:
    found = (os.environ[name] for name in names if name in os.environ)
    return int(next(found, default))
