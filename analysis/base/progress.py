"""Progress bars with rate and time left; rare lines where the output is a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from analysis.base.processes import is_main


def bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return a tqdm bar that updates every 0.1 s on a terminal, and after each 30 s in a log.

    Of several processes of one launch only the main one shows its bar.
    """
    terminal = sys.stderr.isatty()
    pace = {"mininterval": 0.1} if terminal else {"mininterval": 30.0, "delay": 30.0}
    return tqdm(*args, dynamic_ncols=terminal, disable=not is_main(), **pace, **kwargs)
