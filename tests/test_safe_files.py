"""Sizes that a file only claims, temporary names, and what is done with damaged files."""

from __future__ import annotations

import hashlib
import os
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from analysis.base import files
from analysis.base.errors import UserError
from analysis.base.files import load_pickle, save_pickle
from analysis.results import store
from analysis.results.store import write


@pytest.fixture
def path(tmp_path) -> Path:
    """Where to write."""
    return tmp_path / "deep" / "unit.pkl"


PUT_FAR = b"r" + (2**32 - 1).to_bytes(4, "little")
MANY_TUPLES = b"\x80\x04)" + b"\x85" * 300_000 + b"."


@pytest.mark.parametrize(
    ("payload", "claim"),
    [
        (b"\x80\x05\x8e" + (2**40).to_bytes(8, "little") + b".", "1099511627784 bytes"),
        (b"\x80\x05\x96" + (2**63).to_bytes(8, "little") + b".", "bytes where"),
        (b"\x80\x04B" + (2**31).to_bytes(4, "little") + b".", "bytes where"),
        (b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"}.", "."),
        (b"\x80\x04}" + PUT_FAR + b".", "4294967295 objects"),
        (b"\x80\x04}p99999999999\n.", "99999999999 objects"),
        (pickle.dumps({"x": np.empty(0, "U999999")}, 5).replace(b"U999999", b"U9999999"), "."),
        (MANY_TUPLES, "more than 50000 tuples"),
        (b"\x80\x04\xff", "no pickle instruction"),
        (b"\x80\x04cposix\nsyst", "ends within an instruction"),
    ],
)
def test_a_size_that_is_only_claimed_takes_no_memory(path, payload, claim):
    """Read with hardly more memory than there is in use, or the process would end."""
    path.parent.mkdir(parents=True)
    path.write_bytes(payload + b"sha256:" + hashlib.sha256(payload).digest())
    tracemalloc.start()
    with pytest.raises(UserError, match=f"is not a readable result file .*{claim}"):
        load_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_what_could_not_be_read_back_is_not_written(path):
    with pytest.raises(TypeError, match="could not be read back: .* 50000 tuples"):
        save_pickle({"x": [(i,) for i in range(50_001)]}, path)
    assert not path.exists()


def test_neither_two_processes_nor_two_threads_share_a_temporary_name(path):
    with ThreadPoolExecutor(8) as pool:
        names = [part.name for part in pool.map(files.part_name, [path] * 1000)]
    ending = f".{files.this_host()}.{os.getpid()}.part"
    assert all(name.startswith("unit.pkl.") and name.endswith(ending) for name in names)
    assert len(set(names)) == 1000


def test_damaged_files_are_kept_under_free_names(path):
    names = []
    for content in (b"a", b"b", b"c"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        names.append(store.set_aside(path).name)
    assert names == ["unit.pkl.corrupt", "unit.pkl.corrupt1", "unit.pkl.corrupt2"] and not path.exists()
    assert [(path.parent / name).read_bytes() for name in names] == [b"a", b"b", b"c"]


def test_work_that_was_done_meanwhile_is_not_needed_any_more(path):
    before = store.stamp(path)
    assert before is None and store.still_needed(path, {"seed": 1}, before)
    write(path, {}, {"seed": 1})
    assert not store.still_needed(path, {"seed": 1}, before)
    before = store.stamp(path)
    assert store.still_needed(path, {"seed": 1}, before)  # --overwrite
    write(path, {}, {"seed": 1})
    assert not store.still_needed(path, {"seed": 1}, before)
