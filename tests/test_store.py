"""Results are written whole, read without executing anything, and never mixed."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy._core.multiarray import scalar

from analysis.base.errors import UserError
from analysis.base.files import load_pickle, save_pickle
from analysis.results import store
from analysis.results.store import Store, UnitKey, finished, folder_name, read, write

RECORD = {
    "meta": {"identity": {"seed": 1, "model": "abc"}, "schema": 1},
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "flags": np.array([True, False]),
    "words": ["x", "ÿ😀"],
    "pair": (1.5, None, float("inf")),
    "number": np.float64(2.5),
    "text array": np.array(["ab", "c"]),
}


@pytest.fixture
def path(tmp_path) -> Path:
    """Where to write."""
    return tmp_path / "deep" / "er" / "unit.pkl"


def test_what_is_saved_is_read_back(path):
    save_pickle(RECORD, path)
    found = load_pickle(path)
    assert found.keys() == RECORD.keys()
    for name, value in RECORD.items():
        np.testing.assert_array_equal(found[name], value)
        assert type(found[name]) is type(value)
    assert found["array"].dtype == np.float32 and found["array"].flags.writeable
    assert pickle.loads(path.read_bytes()).keys() == RECORD.keys()  # an ordinary pickle, too


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(12).reshape(3, 4)[:, 1], np.array(5.0),
        np.empty((0, 3), np.float32), np.array([], str), np.array([1, 2], ">i4"), np.array([1j, 2]),
    ],
    ids=["fortran", "strided", "no axis", "empty", "no text", "big-endian", "complex"],
)  # fmt: skip
def test_arrays_of_every_layout_are_read_back(path, array):
    save_pickle({"array": array}, path)
    found = load_pickle(path)["array"]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(path, monkeypatch, broken):
    save_pickle({"old": 1}, path)

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="disk full"):
        save_pickle({"new": 2}, path)
    monkeypatch.undo()
    assert load_pickle(path) == {"old": 1}
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------- the restricted unpickler


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Callable, *args: object, state: object = None) -> None:
        self.call = function, args, state

    def __reduce__(self) -> tuple:
        return self.call


def refuse(path: Path, value: object, message: str) -> None:
    """Check that a file of ``value`` is refused although its checksum is right."""
    payload = pickle.dumps(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload + b"sha256:" + hashlib.sha256(payload).digest())
    with pytest.raises(UserError, match=message) as caught:
        load_pickle(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (Path("x"), r"pathlib\S*"),
        (ValueError("x"), "builtins.ValueError"),
        (functools.partial(int), "functools.partial"),
        (np.ma.array([1]), r"numpy\.ma\S+"),
        (np.random.default_rng(0), r"numpy\.random\S+"),
        (np.array([os.system], dtype=object), r"numpy\._core\.multiarray\._reconstruct"),
        (UnitKey("imit", "lr", 0, 0), "analysis.results.store.UnitKey"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_name_that_results_never_hold_is_refused(path, value, name):
    refuse(path, {"value": value}, f"it names {name}: ")


def test_a_refused_file_executes_nothing(path, tmp_path):
    marker = tmp_path / "ran"
    refuse(path, Call(os.mkdir, str(marker)), "it names posix.mkdir")
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [np.array(["a", 1], dtype=object), Call(np.ndarray, (0,), np.dtype("O")), np.dtype([("a", "O")])],
    ids=["array", "raw", "structured"],
)
def test_object_arrays_are_refused(path, value):
    """numpy.ndarray called on raw bytes as objects would make pointers of the file's choice."""
    refuse(path, {"value": value}, "object")


def test_object_arrays_are_not_written(path):
    with pytest.raises(TypeError, match="not object"):
        save_pickle({"value": np.array(["a", 1], dtype=object)}, path)
    assert not path.exists()


@pytest.mark.parametrize("value", [np.array(["2020"], "M8[D]"), np.zeros(1, [("a", "f4")]), np.str_("")])
def test_what_is_written_can_be_read(path, value):
    try:
        save_pickle({"value": value}, path)
    except TypeError:
        return
    assert load_pickle(path)["value"] == value


def test_a_file_that_is_no_dict_is_refused(path):
    refuse(path, [1, 2], "holds a list")


# ---------------------------------------------------------------- damaged files


def test_a_truncated_file_is_refused_by_name_at_any_length(path):
    save_pickle(RECORD, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a readable result file") as caught:
            load_pickle(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [Call(scalar, np.dtype([("a", "f4")]), b"\0" * 4), Call(np.dtype, "f4", False, True, state=5)]
)
def test_a_damaged_number_type_is_refused(path, value):
    refuse(path, {"value": value}, "is not a readable result file")


def test_a_file_without_checksum_is_refused(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps({"meta": {}}))
    with pytest.raises(UserError, match="checksum is missing"):
        load_pickle(path)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_noticed_wherever_it_is(path, bit):
    save_pickle(RECORD, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a readable result file") as caught:
            load_pickle(path)
        assert str(path) in str(caught.value)


# ---------------------------------------------------------------- identities


def test_a_result_of_the_same_settings_is_finished_and_of_others_an_error(path):
    identity = {"seed": 1, "shots": [0, 2], "model": "abc"}
    assert not finished(path, identity)
    write(path, {"x": 1}, identity, settings={"a": 1})
    assert finished(path, identity) and read(path, identity)["x"] == 1
    assert not finished(path, {**identity, "seed": 2}, overwrite=True)
    with pytest.raises(UserError) as caught:
        finished(path, {**identity, "seed": 2, "shots": [0]})
    message = str(caught.value)
    assert "seed: 1 there, 2 now" in message and "shots: [0, 2] there, [0] now" in message
    assert "model" not in message.removeprefix(str(path)) and "--overwrite" in message


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 1, "a": 2, "b": 3}])
def test_a_missing_or_new_field_is_a_mismatch(path, other):
    write(path, {}, {"seed": 1, "a": 2})
    with pytest.raises(UserError, match="a: 2 there, None now" if "a" not in other else "b: None there, 3"):
        read(path, other)


def test_a_result_says_where_it_comes_from(path):
    write(path, {}, {"seed": 1}, settings={"a": 1})
    meta = load_pickle(path)["meta"]
    assert meta["schema"] == store.SCHEMA and meta["settings"] == {"a": 1}
    assert meta["packages"]["numpy"] == np.__version__ and meta["packages"]["torch"] != "absent"


@pytest.mark.parametrize("meta", [{}, {"meta": 1}, {"meta": {"schema": 1}}])
def test_a_foreign_file_without_meta_data_is_refused(path, meta):
    save_pickle(meta, path)
    with pytest.raises(UserError, match="no meta data"):
        read(path)


def test_another_schema_is_refused(path):
    save_pickle({"meta": {"identity": {}, "schema": 99}}, path)
    with pytest.raises(UserError, match="schema 99, this version reads 2"):
        read(path)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("axis", ["lr", "pc1", "pc12", "lr_shuffled0", "random0", "meandiff", "lr_ensemble"])
def test_unit_names_round_trip(tmp_path, axis):
    results = Store(tmp_path, "org/m", "custom/d")
    keys = [
        UnitKey(kind, axis, layer, exp) for kind in ("imit", "pred") for layer in (1, 10) for exp in (0, 11)
    ]
    for key in keys:
        save_pickle({}, results.unit(key))
    assert sorted([*results.units("imit"), *results.units("pred")]) == sorted(keys)
    assert results.units("imit", axis=axis) == results.units("imit")
    assert results.folder == tmp_path / "org_m" / "custom_d"


def test_names_are_never_matched_by_their_beginning(tmp_path):
    results = Store(tmp_path, "m", "d")
    keys = [UnitKey("imit", a, layer, e) for a in ("pc1", "pc12") for layer in (1, 10) for e in (1, 10)]
    for key in keys:
        save_pickle({}, results.unit(key))
        save_pickle({}, results.axes(key.layer))
    assert results.units("imit", "pc1", 1) == [UnitKey("imit", "pc1", 1, e) for e in (1, 10)]
    assert {key.axis for key in results.units("imit", layer=10)} == {"pc1", "pc12"}
    assert {key.layer for key in results.units("imit", "pc12", 10)} == {10}
    assert results.layers() == [1, 10]


def test_unfinished_and_foreign_files_are_no_units(tmp_path):
    results = Store(tmp_path, "m", "d")
    for name in ("imit_lr_layer0_exp0.pkl.77.part", "imit_lr_layer0_exp0.csv", "imit_lr_layer0_exp0.pkl.pkl"):
        save_pickle({}, results.folder / name)
    assert results.units("imit") == []


def test_an_alias_and_its_model_share_a_folder(tmp_path):
    alias, full = (Store(tmp_path, m, "d").folder for m in ("llama3_8b", "meta-llama/Llama-3.1-8B-Instruct"))
    assert alias == full == tmp_path / "meta-llama_Llama-3.1-8B-Instruct" / "d"


@pytest.mark.parametrize("name", ["a/b", "/abs/path/", "..x", "..", ".", "", "/", "../.."])
def test_a_name_becomes_one_folder_below_the_results(tmp_path, name):
    assert (tmp_path / folder_name(name)).resolve().parent == tmp_path.resolve()
