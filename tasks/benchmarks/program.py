"""What the benchmarks share as programs: their parser, and work in processes of its own."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the docstring of a benchmark as it stands."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def in_own_process(work: Callable[..., Made], *args: object) -> Made:
    """Call ``work(*args)`` in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()
