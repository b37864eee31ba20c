"""Check plain records against the annotations of a dataclass: types, dtypes, and shapes whose letters agree.

    @dataclass(frozen=True, kw_only=True)
    class Unit:
        n: Int[np.ndarray, " T"]                        an array of integers, T of them
        scores: Float[np.ndarray, "T K"]                the same T
        names: Annotated[list[str], "K"]                K texts
        shown: Int[np.ndarray, "T K-1"] | None = None   may be lacking

    check_fields(record, Unit, {"K": 5})                K is known beforehand; raises Wrong if it does not fit

Only the dataclass says what a file holds; its docstrings are docs/results.md.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
from jaxtyping import AbstractArray

T = typing.TypeVar("T")
Sizes = dict[str, int]
"""Letter of a shape -> size."""


class Wrong(ValueError):
    """What a record is not; the text names the field."""


def need(ok: object, what: str) -> None:
    """Raise Wrong unless ``ok``."""
    if not ok:
        raise Wrong(what)


@lru_cache(maxsize=64)
def hints_of(kind: Any) -> Mapping[str, Any]:
    """Return name -> annotation of every field of a dataclass."""
    return typing.get_type_hints(kind, include_extras=True)


def optional(hint: Any) -> bool:
    """Return whether a field of this annotation may be lacking."""
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def fields_of_shape(kind: type, shape: str) -> list[str]:
    """Return the names of the fields of a dataclass that hold arrays of this shape, such as ``T``."""
    return [
        name
        for name, hint in hints_of(kind).items()
        for part in (hint, *get_args(hint))
        if isinstance(part, type) and issubclass(part, AbstractArray) and part.dim_str.strip() == shape
    ]


def check_fields(record: Mapping[str, Any], kind: Any, sizes: Sizes, within: str = "") -> None:
    """Raise Wrong (naming the field) unless ``record`` has the fields of the dataclass ``kind``.

    Args:
        record: plain data; what ``kind`` does not name is left alone.
        kind: a dataclass.
        sizes: letter -> size, as far as known; the letters that are met are added.
        within: stands before the names of the fields in what is raised.
    """
    for name, (may_lack, check) in _checks_of(kind).items():
        value = record.get(name)
        if value is None:
            need(may_lack, f"{within}{name} is lacking")
        else:
            check(f"{within}{name}", value, sizes)


# ---------------------------------------------------------------- one check for each annotation

Check = Callable[[str, Any, Sizes], None]
"""Raises Wrong unless the value of the field of this name is as annotated."""


@lru_cache(maxsize=64)
def _checks_of(kind: Any) -> Mapping[str, tuple[bool, Check]]:
    """Return for every field whether it may be lacking, and its check; thousands of files are checked."""
    return {name: (optional(hint), _check_of(hint)) for name, hint in hints_of(kind).items()}


def _check_of(hint: Any) -> Check:
    origin, parts = get_origin(hint), get_args(hint)
    if optional(hint):
        return _check_of(next(part for part in parts if part is not type(None)))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return partial(_array, hint.__name__.partition("[")[0], hint.dtypes, hint.dim_str.split())
    if origin is Annotated:
        return partial(_lengths, _check_of(parts[0]), parts[1].split())
    if origin is dict:
        return partial(_mapping, _check_of(parts[1]))
    if origin is list:
        return (
            partial(_plain_list, parts[0]) if parts[0] in (int, str) else partial(_list, _check_of(parts[0]))
        )
    if origin is tuple:
        return partial(_tuple, [_check_of(part) for part in parts])
    if is_dataclass(hint):
        return partial(_record, hint)
    return partial(_scalar, hint)


def _scalar(hint: Any, name: str, value: Any, sizes: Sizes) -> None:
    if hint is not Any:
        known = type(value) is hint if hint in (bool, int, dict) else isinstance(value, hint)
        need(known, f"{name} is no {getattr(hint, '__name__', hint)}")


def _array(
    what: str, dtypes: Collection[str], letters: list[str], name: str, value: Any, sizes: Sizes
) -> None:
    need(isinstance(value, np.ndarray) and value.dtype.name in dtypes, f"{name} is no array of type {what}")
    _fits(name, value.shape, letters, sizes)


def _plain_list(kind: type, name: str, value: Any, sizes: Sizes) -> None:
    whole = isinstance(value, list) and all(type(item) is kind for item in value)
    need(whole, f"{name} is no list of {kind.__name__}")


def _list(check: Check, name: str, value: Any, sizes: Sizes) -> None:
    need(isinstance(value, list), f"{name} is no list")
    for number, item in enumerate(value):
        check(f"{name} [{number}]", item, sizes)


def _tuple(checks: Sequence[Check], name: str, value: Any, sizes: Sizes) -> None:
    whole = isinstance(value, (tuple, list)) and len(value) == len(checks)
    need(whole, f"{name} has not {len(checks)} parts")
    for check, item in zip(checks, value, strict=True):
        check(name, item, sizes)


def _mapping(check: Check, name: str, value: Any, sizes: Sizes) -> None:
    whole = isinstance(value, dict) and all(type(key) is str for key in value)
    need(whole, f"{name} is no mapping of names")
    for key, item in value.items():
        check(f"{name} {key[:20]!r}", item, sizes)


def _record(kind: Any, name: str, value: Any, sizes: Sizes) -> None:
    need(isinstance(value, dict), f"{name} is no mapping")
    check_fields(value, kind, sizes, f"{name} ")


def _lengths(check: Check, letters: list[str], name: str, value: Any, sizes: Sizes) -> None:
    """Check lists in each other: as many levels as there are letters have the same length everywhere."""
    check(name, value, sizes)
    _same_lengths(letters, name, value, sizes)


def _same_lengths(letters: list[str], name: str, value: Any, sizes: Sizes) -> None:
    _fits(name, (len(value),), letters[:1], sizes)
    if len(letters) > 1:
        for number, item in enumerate(value):
            _same_lengths(letters[1:], f"{name} [{number}]", item, sizes)


def _fits(name: str, shape: tuple[int, ...], letters: list[str], sizes: Sizes) -> None:
    whole = len(shape) == len(letters)
    if whole:
        for letter, size in zip(letters, shape, strict=True):
            base, more = _term(letter)
            wanted = int(base) if base.isdigit() else sizes.setdefault(base, size - more)
            whole &= wanted + more == size
    if not whole:
        shown = "x".join(map(str, shape)) or "()"
        known = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters if letter in sizes)
        raise Wrong(f"{name} has shape {shown}, not {' x '.join(letters)}{f' with {known}' if known else ''}")


@lru_cache(maxsize=256)
def _term(letter: str) -> tuple[str, int]:
    """Return ("K", -1) for ``K-1``."""
    match = re.fullmatch(r"(\w+?)([+-]\d+)?", letter)
    assert match, letter
    return match[1], int(match[2] or 0)


def build(kind: type[T], record: Mapping[str, Any]) -> T:
    """Return a record that was checked as an object of the dataclass ``kind``, those in its lists as well."""
    values = {}
    for name, hint in hints_of(typing.cast(Any, kind)).items():
        value, inner = record.get(name), get_args(hint)
        nested = get_origin(hint) is list and is_dataclass(inner[0])
        values[name] = [build(inner[0], one) for one in value or ()] if nested else value
    return kind(**values)
