"""What the reports of the benchmarks are made of: tables, and the line about the machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch


class Typed(Protocol):
    """A result, or a model, of one dtype."""

    @property
    def dtype(self) -> str:
        """Such as ``float32``."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    pad = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in pad) + "\n"


def machine(model: str, result: Typed) -> str:
    """Return one line about the machine and the versions."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    cpu = named[1] if named else platform.processor()
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return (
        f"{date.today()}; {model}, {result.dtype}; {cpu}, {cores}; {platform.system()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    )
