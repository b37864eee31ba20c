"""Hostile result files, put together from pickle opcodes: what test_hostile_files.py feeds to the readers."""

from __future__ import annotations

import gzip
import hashlib
import io
import marshal
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from analysis.results.store import SCHEMA

FIRED: list[str] = []
VARIABLE = "HOSTILE_FILE_RAN"
EXTENSIONS = {  # opcode of one, two and four bytes -> code, and the function that it stands for
    b"\x82": (200, "os", "mkdir"), b"\x83": (60_000, "posix", "mkdir"),
    b"\x84": (2_000_000, "os", "makedirs"),
}  # fmt: skip
BOMBS = ("a tuple 10^6 deep as a key", "a memo index of 2^24", "a memo index of 2^32 - 1")
"""Only read in a child process: they would end or fill this one."""


class Made:
    """Shows that it was made."""

    def __new__(cls, *args: object, **options: object) -> Made:
        FIRED.append("made")
        return super().__new__(cls)


class Filled:
    """Shows that it was given a state."""

    def __setstate__(self, state: object) -> None:
        FIRED.append("filled")


class Reduced:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# ---------------------------------------------------------------- payloads, put together from opcodes


def plain(value: object) -> bytes:
    """Return the opcodes of builtins or arrays."""
    return pickle.dumps(value, 2)[2:-1]


def named(path: str) -> bytes:
    """Return GLOBAL."""
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def dotted(module: str, name: str) -> bytes:
    """Return STACK_GLOBAL, which takes any text as a name."""
    return plain(module) + plain(name) + b"\x93"


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def record(value: bytes, protocol: int = 4) -> bytes:
    """Return a dict with one value."""
    return b"\x80" + bytes([protocol]) + b"}" + plain("value") + value + b"s."


def sealed(payload: bytes) -> bytes:
    """Return the file of a payload; the checksum is no signature, so it is right."""
    return payload + b"sha256:" + hashlib.sha256(payload).digest()


def array(raw: bytes, dtype: bytes, shape: tuple[int, ...]) -> bytes:
    return call(named("numpy._core.numeric._frombuffer"), raw, dtype, plain(shape), plain("C"))


def executing(canary: Path) -> dict[str, bytes]:
    """Return values that make ``canary``, set VARIABLE or fill FIRED when pickle.load reads them."""
    path, mkdir = plain(str(canary)), named("os.mkdir")
    made, filled = (named(f"tests.hostile_payloads.{name}") for name in ("Made", "Filled"))
    code = f"open({str(canary)!r}, 'w').close()"
    system = call(named("builtins.__import__"), plain("os"))
    popen = call(named("subprocess.Popen"), plain(["touch", str(canary)]))
    function = call(named("marshal.loads"), plain(marshal.dumps(compile(code, "x", "exec"))))
    return {
        "os.system": call(named("os.system"), plain(f"touch '{canary}'")),
        "posix.system": call(named("posix.system"), plain(f"touch '{canary}'")),
        "subprocess.call": call(named("subprocess.call"), plain(["touch", str(canary)])),
        "subprocess.Popen": call(call(named("builtins.getattr"), popen, plain("wait"))),
        "eval": call(named("builtins.eval"), plain(code)),
        "exec": call(named("builtins.exec"), plain(code)),
        "import and getattr": call(call(named("builtins.getattr"), system, plain("mkdir")), path),
        "attrgetter": call(call(call(named("operator.attrgetter"), plain("mkdir")), system), path),
        "methodcaller": call(call(named("operator.methodcaller"), plain("mkdir"), path), system),
        "partial": call(call(named("functools.partial"), mkdir, path)),
        "function from code": call(call(named("types.FunctionType"), function, plain({}))),
        "map": call(named("builtins.list"), call(named("builtins.map"), mkdir, plain([str(canary)]))),
        "environment": call(dotted("os", "environ.__setitem__"), plain(VARIABLE), plain("1")),
        "pathlib": call(dotted("pathlib", "Path.touch"), call(named("pathlib.PosixPath"), path)),
        "dotted name": call(dotted("os", "path.os.mkdir"), path),
        "numpy's runstring": call(named("numpy.testing._private.utils.runstring"), plain(code), plain({})),
        "numpy.memmap": call(named("numpy.memmap"), path, plain("u1"), plain("w+"), plain(0), plain((1,))),
        "inst": b"(" + path + b"ios\nmkdir\n",
        "obj": b"(" + mkdir + path + b"o",
        "newobj": made + b")\x81",
        "newobj_ex": made + b")}\x92",
        "build": filled + b")\x81}b",
        "object array": plain(np.array([Reduced(canary)], dtype=object)),
        **{f"extension {code}": call(opcode + code.to_bytes(1 << width, "little"), path)
           for width, (opcode, (code, *_)) in enumerate(EXTENSIONS.items())},
    }  # fmt: skip


def malformed() -> dict[str, bytes]:
    """Return whole payloads that claim too much, refer to nothing, or are no results."""
    eight, dtype, huge = (lambda n: n.to_bytes(8, "little")), named("numpy.dtype"), b"\xff\xff\xff\x7f"
    kinds = {"O": "objects", "f8,O": "a field of objects", "V8": "raw", "(9,)f8": "parts", "M8[s]": "times"}
    types = {f"an array of {name}": array(plain(b"\0" * 8), call(dtype, plain(kind)), (1,))
             for kind, name in kinds.items()}  # fmt: skip
    f8, words = (call(dtype, plain(kind)) for kind in ("f8", "U999999999"))
    defaults = b"N" + plain({"__defaults__": (1,)}) + b"\x86b"
    state = plain((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27))
    scalar, reconstruct = (named(f"numpy._core.multiarray.{name}") for name in ("scalar", "_reconstruct"))
    values = {
        **types,
        "a type with fields": call(dtype, plain([("a", "O")])),
        "a type given fields later": call(dtype, plain("V8")) + state + b"b",
        "an array without its data": array(plain(b""), f8, (2**40,)),
        "an array of the wrong size": array(plain(b"\0" * 9), f8, (1,)),
        "an array beyond all sizes": array(plain(b"\0" * 8), f8, (2**62, 2**62)),
        "very long words": array(plain(b"\0"), words, (1,)),
        "a scalar of objects": call(scalar, call(dtype, plain("O")), plain(b"\0" * 8)),
        "reconstruct": call(reconstruct, named("numpy.ndarray"), plain((0,)), plain(b"b")),
        "numpy.load": call(named("numpy.load"), plain("/etc/passwd")),
        "a dotted name of an allowed type": dotted("builtins", "set.__class__.__subclasses__"),
        "a name that forges a second line": dotted("os\nerror: fine\x1b[2J", "x\r\n"),
        "a persistent id": b"Pos.system\n", "a binary persistent id": plain("os.system") + b"Q",
        "a memo entry that is absent": b"hc", "a far memo entry that is absent": b"j" + huge,
        "a buffer from elsewhere": b"\x97", "a read-only nothing": b"\x98",
        "bytes of 2^40": b"\x8e" + eight(2**40), "bytes of 2^63": b"\x8e" + eight(2**63),
        "text of 2^40": b"\x8d" + eight(2**40), "text of 2^63 - 1": b"\x8d" + eight(2**63 - 1),
        "bytearray of 2^40": b"\x96" + eight(2**40), "bytearray of 2^31": b"\x96" + eight(2**31),
        "a number of 2^31 bytes": b"\x8b" + huge, "a number of -1 bytes": b"\x8b" + b"\xff" * 4,
        "bytes of 2^31": b"B" + huge, "a frame of 2^62": b"\x95" + eight(2**62),
        "a mark without end": b"(" * 1000, "a pop of nothing": b"0" * 9, "an unknown opcode": b"\xff",
        "text that is no UTF-8": b"\x8c\x02\xff\xfe", "a list as a key": b"}]Nsa",
        "a call of a number": call(plain(5)), "a state of a number": plain(5) + plain({}) + b"b",
        BOMBS[0]: b"})" + b"\x85" * 10**6 + b"Ns",
        BOMBS[1]: plain(1) + b"r" + (2**24).to_bytes(4, "little"),
        BOMBS[2]: plain(1) + b"r\xff\xff\xff\xff",
    }  # fmt: skip
    return {
        **{name: record(value) for name, value in values.items()},
        "protocol 255": record(plain(1), 255), "no opcodes": b"", "stop at once": b".",
        "a list": pickle.dumps([1]), "a list that holds itself": b"\x80\x04]\x94h\x00a.",
        "a list 20,000 deep": b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".",
        "a function": record(named("numpy._core.numeric._frombuffer")),
        "a function that is given defaults": record(named("numpy._core.numeric._frombuffer") + defaults),
    }  # fmt: skip


def files(canary: Path) -> dict[str, bytes]:
    """Return every hostile file, by what is wrong with it."""
    hostile = {name: sealed(record(value)) for name, value in executing(canary).items()}
    hostile |= {name: sealed(payload) for name, payload in malformed().items()}
    good = pickle.dumps({"meta": {"identity": {}, "schema": SCHEMA}})
    zipped, arrays, weights, npy = (io.BytesIO() for _ in range(4))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("data.pkl", good)
    np.savez(arrays, a=np.zeros(3))
    torch.save({"a": torch.zeros(2)}, weights)
    np.save(npy, np.array([Reduced(canary)], dtype=object), allow_pickle=True)
    foreign = {
        "empty": b"",
        "npy": npy.getvalue(),
        "no checksum": good,
        "gzip": gzip.compress(sealed(good)),
        "text": b"key: value\n",
    }
    foreign |= {"zip": zipped.getvalue(), "savez": arrays.getvalue(), "torch": weights.getvalue()}
    foreign |= {f"sealed {name}": sealed(foreign[name]) for name in ("gzip", "text", "npy", "zip", "torch")}
    damaged = {"checksum alone": b"sha256:" + bytes(32), "wrong checksum": sealed(good)[:-1] + b"x"}
    return {**hostile, **foreign, **damaged}


NAMES = list(files(Path("canary")))
