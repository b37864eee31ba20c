"""Progress bars with rate and time left; rare lines where the output is a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from tqdm import tqdm

from analysis.base.processes import is_main

T = TypeVar("T")


@overload
def bar(items: Iterable[T], **options: Any) -> tqdm[T]: ...
@overload
def bar(items: None = None, **options: Any) -> tqdm[Any]: ...
def bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Return a tqdm bar that updates every 0.1 s on a terminal, and after each 30 s in a log.

    Of several processes of one launch only the main one shows its bar.
    """
    terminal = sys.stderr.isatty()
    pace: dict[str, Any] = {"mininterval": 0.1} if terminal else {"mininterval": 30.0, "delay": 30.0}
    return tqdm(items, dynamic_ncols=terminal, disable=not is_main(), **pace, **options)
