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
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
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
    found = typing.get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in found.items() if get_origin(hint) is not typing.ClassVar}


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


def check_fields(record: Mapping[str, Any], kind: type, sizes: Sizes, within: str = "") -> None:
    """Raise Wrong (naming the field) unless ``record`` has the fields of the dataclass ``kind``.

    Args:
        record: plain data; what ``kind`` does not name is left alone.
        kind: a dataclass.
        sizes: letter -> size, as far as known; the letters that are met are added.
        within: stands before the names of the fields in what is raised.
    """
    for name, hint in hints_of(kind).items():
        value = record.get(name)
        if value is None and optional(hint):
            continue
        need(value is not None, f"{within}{name} is lacking")
        _check(f"{within}{name}", value, hint, sizes)


def _check(name: str, value: Any, hint: Any, sizes: Sizes) -> None:
    """Raise Wrong unless ``value`` is what the annotation ``hint`` says."""
    origin, parts = get_origin(hint), get_args(hint)
    if optional(hint):
        (hint,) = (part for part in parts if part is not type(None))
        _check(name, value, hint, sizes)
    elif isinstance(hint, type) and issubclass(hint, AbstractArray):
        _array(name, value, hint, sizes)
    elif origin is Annotated:
        _check(name, value, parts[0], sizes)
        _lengths(name, value, parts[1].split(), sizes)
    elif origin is dict:
        need(isinstance(value, dict), f"{name} is no mapping")
        for key, item in value.items():
            need(type(key) is parts[0], f"{name} is no mapping of names")
            _check(f"{name} {key[:20]!r}", item, parts[1], sizes)
    elif origin is list:
        need(isinstance(value, list), f"{name} is no list")
        if parts[0] in (int, str):  # by far the most, such as the tokens of replies
            need(all(type(item) is parts[0] for item in value), f"{name} is no list of {parts[0].__name__}")
            return
        for number, item in enumerate(value):
            _check(f"{name} [{number}]", item, parts[0], sizes)
    elif origin is tuple:
        need(
            isinstance(value, (tuple, list)) and len(value) == len(parts),
            f"{name} has not {len(parts)} parts",
        )
        for item, part in zip(value, parts, strict=True):
            _check(name, item, part, sizes)
    elif is_dataclass(hint):
        need(isinstance(value, dict), f"{name} is no mapping")
        check_fields(value, typing.cast(type, hint), sizes, f"{name} ")
    elif hint is not Any:
        _scalar(name, value, hint)


def _scalar(name: str, value: Any, hint: type) -> None:
    known = type(value) is hint if hint in (bool, int, dict) else isinstance(value, hint)
    need(known, f"{name} is no {hint.__name__}")


def _array(name: str, value: Any, hint: type[AbstractArray], sizes: Sizes) -> None:
    what = hint.__name__.partition("[")[0]
    known = isinstance(value, np.ndarray) and value.dtype.name in hint.dtypes
    need(known, f"{name} is no array of type {what}")
    _fits(name, value.shape, hint.dim_str.split(), sizes)


def _lengths(name: str, value: Any, letters: list[str], sizes: Sizes) -> None:
    """Check lists in each other: as many levels as there are letters have the same length everywhere."""
    _fits(name, (len(value),), letters[:1], sizes)
    if len(letters) > 1:
        for number, item in enumerate(value):
            _lengths(f"{name} [{number}]", item, letters[1:], sizes)


def _fits(name: str, shape: tuple[int, ...], letters: list[str], sizes: Sizes) -> None:
    shown = "x".join(map(str, shape)) or "()"
    need(len(shape) == len(letters), f"{name} has shape {shown}, not {' x '.join(letters)}")
    for letter, size in zip(letters, shape, strict=True):
        base, more = _term(letter)
        wanted = int(base) if base.isdigit() else sizes.setdefault(base, size - more)
        if wanted + more != size:
            told = "" if letter.isdigit() else f", where {letter} is {wanted + more}"
            raise Wrong(f"{name} has shape {shown}, not {' x '.join(letters)}{told}")


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
