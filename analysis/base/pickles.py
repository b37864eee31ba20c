"""Result files as bytes: an ordinary pickle of builtins and numpy arrays, then its checksum.

Reading calls nothing that the file names: only the functions of ``_READERS`` stand behind the names that
results hold, every other name is refused. Before that, one pass over the pickle's instructions refuses
lengths and places beyond the file's end, which would otherwise take memory before they are noticed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import numpy as np

_NO_CHECKSUM = "its checksum is missing or wrong"
_END = b"sha256:"  # after the pickle, which ends itself; then the digest of what comes before
_SMALL = 2**20  # an array without entries has a type, too, however long its texts could be
_MOST_TUPLES = 50_000  # results hold some hundreds; a hundred thousand inside each other end the interpreter


# ---------------------------------------------------------------- names and arrays


class _DType:
    """Stands in for numpy.dtype while reading: plain numbers, booleans and text only."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[biufcSU]\d{1,9}", name):
            raise pickle.UnpicklingError(f"it holds objects or structures (array type {name!r})")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it has an array of byte order {state[1]!r}")
        self.order = state[1]

    def read(self, raw: bytes) -> np.ndarray:
        dtype = np.dtype(self.order + self.name)
        if dtype.itemsize > max(len(raw), _SMALL):
            raise pickle.UnpicklingError(f"it claims {dtype.itemsize} bytes where {len(raw)} are left")
        return np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)


def _scalar(dtype: _DType, raw: bytes = b"") -> Any:
    return dtype.read(raw)[0] if len(raw) else np.str_()


def _array(
    raw: bytes, dtype: _DType, shape: tuple[int, ...], order: Literal["A", "C", "F"], *rest: object
) -> np.ndarray:
    return dtype.read(raw).reshape(shape, order=order)


class _Reader:
    """A function that a file can have called, and do nothing else with."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


_READERS = {
    "numpy._core.numeric._frombuffer": _Reader(_array), "numpy.core.numeric._frombuffer": _Reader(_array),
    "numpy._core.multiarray.scalar": _Reader(_scalar),
    "numpy.dtype": _DType,
    "builtins.set": set, "builtins.frozenset": frozenset, "builtins.complex": complex,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Reads builtins and numpy arrays with functions of our own; nothing that the file names is called."""

    def find_class(self, module: str, name: str) -> Any:
        reader = _READERS.get(f"{module}.{name}")
        if reader is None:
            what = "object arrays are refused" if module.startswith("numpy") else "results never contain it"
            raise pickle.UnpicklingError(f"it names {module}.{name}: {what}")
        return reader


class _Pickler(pickle.Pickler):
    """Writes every array in one piece, which is the only form that is read back."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        if value.dtype.kind not in "biufcSU":
            raise TypeError(f"results hold arrays of numbers, booleans and text, not {value.dtype}")
        whole = value.flags.c_contiguous or value.flags.f_contiguous
        return NotImplemented if whole else np.ascontiguousarray(value).__reduce_ex__(5)


# ---------------------------------------------------------------- instructions

_PREFIX = {  # bytes of the length that stands before an argument of any length
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}  # fmt: skip
_ARGUMENT = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_LINES = {"c": 2, "i": 2}  # GLOBAL and INST: a module and a name
_STOP, _LONG_PUT, _TEXT_PUT = ord("."), ord("r"), ord("p")
_TUPLES = {ord(code) for code in "t\x85\x86\x87"}
_STEPS = [0] * 256
"""Bytes of an instruction that claims nothing; 0: it may, or is none."""
for _code, _size in _ARGUMENT.items():
    if _size >= 0 and _code not in {_STOP, _LONG_PUT, _TEXT_PUT, *_TUPLES}:
        _STEPS[_code] = 1 + _size


def _check_sizes(data: bytes, end: int) -> None:
    """Raise UnpicklingError for a length or a memo place beyond ``end``, or far too many tuples, or no end.

    Args:
        data: the first bytes of a pickle, or all, and what follows it.
        end: where the pickle ends.
    """
    place, tuples, known = 0, 0, min(end, len(data))
    while place < known:
        code = data[place]
        if step := _STEPS[code]:  # nearly all of them
            place += step
            continue
        size = _ARGUMENT.get(code)
        place += 1
        if size is None:
            raise pickle.UnpicklingError(f"byte {place - 1} is no pickle instruction")
        if code == _STOP:
            return
        if size == pickletools.UP_TO_NEWLINE:
            after = _lines(data, place, known, _LINES.get(chr(code), 1))
            if not after and known < end:
                return  # what is known of it ends here
            if not after:
                raise pickle.UnpicklingError("it ends within an instruction")
            size = after - place
        elif size < 0:
            prefix = _PREFIX[size]
            size = prefix + int.from_bytes(data[place : place + prefix], "little")
        if place + size > end:
            raise pickle.UnpicklingError(f"it claims {size} bytes where {end - place} are left")
        if code == _LONG_PUT or code == _TEXT_PUT:
            argument = data[place : place + size]
            index = int.from_bytes(argument, "little") if code == _LONG_PUT else int(argument[:20])
            if index > end:
                raise pickle.UnpicklingError(f"it claims {index} objects in {end} bytes")
        tuples += code in _TUPLES
        if tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"it holds more than {_MOST_TUPLES} tuples")
        place += size
    if known == end:
        raise pickle.UnpicklingError("it ends within an instruction, or before the last one")


def _lines(data: bytes, place: int, end: int, count: int) -> int:
    """Return where the argument that ends at the ``count``-th newline ends, 0 if not before ``end``."""
    for _ in range(count):
        place = data.find(b"\n", place, end) + 1
        if not place:
            return 0
    return place


_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, np.ndarray}
_CONTAINERS = {dict, list, tuple, set, frozenset}


def _check_plain(value: object) -> None:
    """Raise UnpicklingError for what is no builtin or array, such as a function that is only named."""
    seen: set[int] = set()  # containers may hold each other
    todo: list[Any] = [value]
    while todo:
        one = todo.pop()
        kind = type(one)
        if kind in _CONTAINERS:
            if id(one) not in seen:
                seen.add(id(one))
                todo += one
                if kind is dict:
                    todo += one.values()
        elif kind not in _PLAIN and not isinstance(one, np.generic):
            raise pickle.UnpicklingError(f"it holds a {kind.__name__}: results never contain it")


# ---------------------------------------------------------------- the two functions


def dumps(record: dict[str, Any]) -> bytes:
    """Return ``record`` (builtins and numpy arrays) as the bytes of a result file.

    Raises:
        TypeError: an array of objects, or more than 50,000 tuples, which could not be read back.
    """
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(record)
    payload = stream.getvalue()
    try:
        _check_sizes(payload, len(payload))
    except pickle.UnpicklingError as error:
        raise TypeError(f"this record could not be read back: {error}") from None
    return payload + _END + hashlib.sha256(payload).digest()


BROKEN = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, MemoryError, TypeError,
    ValueError, OverflowError, RuntimeError, SystemError,
)  # fmt: skip
"""What ``loads`` can raise on a damaged or foreign file."""


def loads(content: bytes) -> Any:
    """Return what ``dumps`` was given; anything else raises one of BROKEN."""
    end = content.rfind(_END)
    if end < 0 or hashlib.sha256(memoryview(content)[:end]).digest() != content[end + len(_END) :]:
        raise pickle.UnpicklingError(_NO_CHECKSUM)
    _check_sizes(content, end)
    value = _Unpickler(io.BytesIO(content)).load()  # ends where the pickle does
    _check_plain(value)
    return value


# ---------------------------------------------------------------- the beginning alone

_CHUNK = 2**20
_HEADS = (2**14, 2**21)
"""Bytes within which the first entry of a file ends: nearly always, always."""


def load_head(stream: BinaryIO) -> dict[Any, Any]:
    """Return the entries of a dict that stand before its first array; anything else raises one of BROKEN.

    The file is hashed in pieces of a megabyte; of what comes after its beginning, nothing else is read.
    """
    size = stream.seek(0, io.SEEK_END) - len(_END) - hashlib.sha256().digest_size
    digest = hashlib.sha256()
    stream.seek(0)
    for start in range(0, size, _CHUNK):
        digest.update(stream.read(min(_CHUNK, size - start)))
    if stream.read() != _END + digest.digest():
        raise pickle.UnpicklingError(_NO_CHECKSUM)
    head: dict[Any, Any] = {}
    for most in _HEADS:
        stream.seek(0)
        head = head or _until_array(stream.read(min(most, size)), size)
    _check_plain(head)
    return head


class _FirstArray(Exception):
    """Ends the reading of a head."""


class _HeadUnpickler(pickle._Unpickler):
    """Reads builtins up to the first array: the interpreter's reader in Python, which can be looked into."""

    stack: list[Any]
    metastack: list[list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        raise _FirstArray

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it names a function by number: results never do")


def _until_array(data: bytes, end: int) -> dict[Any, Any]:
    """Return the entries of a dict within the first bytes ``data`` of a pickle of ``end`` bytes."""
    _check_sizes(data, end)
    reader = _HeadUnpickler(io.BytesIO(data))
    try:
        whole = reader.load()
    except _FirstArray:
        whole = _so_far(reader)
    except (EOFError, pickle.UnpicklingError):
        if len(data) == end:
            raise
        whole = _so_far(reader)
    if not isinstance(whole, dict):
        raise pickle.UnpicklingError(f"it holds a {type(whole).__name__}, but results are dicts")
    return whole


def _so_far(reader: _HeadUnpickler) -> Any:
    """Return the dict that is being read: its entries are on the second stack until they are put into it."""
    first, *others = [*reader.metastack, reader.stack]
    if not first or not others or not isinstance(first[-1], dict):
        return None
    return {**first[-1], **dict(zip(others[0][::2], others[0][1::2], strict=False))}
