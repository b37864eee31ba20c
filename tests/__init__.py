"""Tests; and how the annotations of analysis/ are checked while they run (pyproject.toml turns it on)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

F = TypeVar("F", bound=Callable[..., Any])

_INT = int | np.integer
_FLOAT = float | _INT | np.floating
_NUMBERS: FrozenDict[Any, Any] = FrozenDict(
    {int: _INT, float: _FLOAT, complex: complex | _FLOAT | np.complexfloating}
)
"""As for the type checker, a whole number will do for a float; and NumPy's numbers do for Python's."""
_CONF = BeartypeConf(hint_overrides=_NUMBERS, is_random=False)


def checked(thing: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a function or class that checks what it is given and returns, shapes of arrays included."""
    return beartype(conf=_CONF)(thing)


def unchecked(function: F) -> F:
    """Return a function as it is outside the tests: to see that it refuses a wrong shape by itself."""
    return inspect.unwrap(function)
