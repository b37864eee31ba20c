"""Results folders of strangers: whatever files hold, nothing of it is executed and errors are one line."""

from __future__ import annotations

import contextlib
import copyreg
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

import plot_imit
import plot_pred
from analysis.base.errors import UserError
from analysis.base.files import ROOT, load_pickle, save_pickle
from analysis.results import store as results
from analysis.results.store import SCHEMA, Store, UnitKey
from tests import fake_results
from tests.hostile_payloads import BOMBS, EXTENSIONS, FIRED, NAMES, VARIABLE, executing, files, record, sealed

UNITS = {"imit": plot_imit.main, "pred": plot_pred.main}


# ---------------------------------------------------------------- readers


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail a test that hangs."""

    def stop(*args: object) -> None:
        pytest.fail(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def unit_paths(root: Path) -> dict[str, Path]:
    """Return where one unit of each kind goes."""
    store = Store(root, "smollm2", "commonsense")
    store.folder.mkdir(parents=True, exist_ok=True)
    return {kind: store.unit(UnitKey(kind, "lr", 0, 0)) for kind in UNITS}


def error_line(capsys: Any, main: Callable[[list[str]], int], root: Path, path: Path) -> str:
    """Run a plot script that must exit with 2 and name ``path`` in its one line."""
    capsys.readouterr()
    assert main(["--results", str(root), "--log_level", "error", "--all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(path) in line and line.isprintable() and len(line) < 2000
    return line


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where a payload would leave a trace; functions have extension codes meanwhile."""
    monkeypatch.delenv(VARIABLE, raising=False)
    FIRED.clear()
    for code, module, name in EXTENSIONS.values():
        copyreg.add_extension(module, name, code)
    yield tmp_path / "canary"
    for code, module, name in EXTENSIONS.values():
        copyreg.remove_extension(module, name, code)


def has_run(canary: Path) -> bool:
    return canary.exists() or bool(FIRED) or VARIABLE in os.environ


CHILD = """
import json, os, resource, signal, sys
from pathlib import Path
import utils

def attempt(path):
    signal.alarm(3)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        utils.load_pickle(path)
    except utils.UserError as error:
        os.write(out, f"refused: {error}"[:9000].encode(errors="replace"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    os._exit(3 if grown > 200 * 1024 else 0)

found = {}
for path in map(Path, json.load(sys.stdin)):
    end, out = os.pipe()
    child = os.fork()
    if not child:
        try:
            attempt(path)
        finally:
            os._exit(4)
    os.close(out)
    text = b"".join(iter(lambda: os.read(end, 1 << 16), b"")).decode()
    os.close(end)
    found[str(path)] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]
print(json.dumps(found))
"""
"""Reads each file in a process of its own: at most 1 GiB of address space and 3 s, and 200 MiB touched."""


def read_apart(paths: list[Path]) -> dict[str, tuple[int, str]]:
    """Return path -> exit status (0 if all is well) and what was said."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CHILD], input=json.dumps([str(path) for path in paths]),
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """What happened to every hostile file in a process of its own."""
    folder = tmp_path_factory.mktemp("apart")
    paths = {name: folder / f"{i}.pkl" for i, name in enumerate(NAMES)}
    for name, content in files(folder / "canary").items():
        paths[name].write_bytes(content)
    found = read_apart(list(paths.values()))
    assert not (folder / "canary").exists()
    return {name: (*found[str(path)], path) for name, path in paths.items()}


# ---------------------------------------------------------------- hostile contents


@pytest.mark.parametrize("name", executing(Path("x")))
def test_an_ordinary_pickle_load_would_execute_the_payload(canary, name):
    """Otherwise the tests below could not fail."""
    with contextlib.suppress(Exception):
        pickle.loads(record(executing(canary)[name]))
    ran = has_run(canary)
    os.environ.pop(VARIABLE, None)
    assert ran


@pytest.mark.parametrize("name", [n for n in NAMES if n not in BOMBS])
def test_a_hostile_file_is_refused_by_every_reader_and_nothing_runs(canary, capsys, tmp_path, name):
    content, paths = files(canary)[name], unit_paths(tmp_path)
    with within(10):
        for kind, path in paths.items():
            path.write_bytes(content)
            for read in (load_pickle, results.read):
                with pytest.raises(UserError) as caught:
                    read(path)
                assert str(path) in str(caught.value)
            error_line(capsys, UNITS[kind], tmp_path, path)
    assert not has_run(canary)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_costs_neither_memory_nor_time_nor_the_process(apart, name):
    status, said, path = apart[name]
    assert status == 0, f"exit status {status} (negative: signal, 3: memory, 4: another error)"
    assert said.startswith(f"refused: {path}")


def test_files_damaged_anywhere_are_refused_or_read_as_data(tmp_path, rng):
    """Cut and flipped payloads under a right checksum, as a stranger could write it."""
    path = tmp_path / "unit.pkl"
    save_pickle({"meta": {"identity": {"n": [1, 2]}, "schema": SCHEMA}, "x": np.ones(3), "t": "abc"}, path)
    payload = path.read_bytes()[:-39]
    assert sealed(payload) == path.read_bytes()
    flipped = [bytearray(payload) for _ in range(600)]
    for damaged in flipped:
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    cut = [payload[:end] for end in range(len(payload))]
    refused = 0
    for damaged in [*cut, *flipped]:
        path.write_bytes(sealed(bytes(damaged)))
        try:
            assert isinstance(load_pickle(path), dict)
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > len(cut)


# ---------------------------------------------------------------- files that are no files


def _strange(path: Path, kind: str) -> None:
    make = {
        "folder": lambda: path.mkdir(), "pipe": lambda: os.mkfifo(path),
        "zeros without end": lambda: path.symlink_to("/dev/zero"), "loop": lambda: path.symlink_to(path),
        "link to nothing": lambda: path.symlink_to(path.with_name("absent")),
    }  # fmt: skip
    make[kind]()


STRANGE = ("folder", "pipe", "zeros without end", "loop", "link to nothing")


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, capsys, kind):
    paths = unit_paths(tmp_path)
    for path in paths.values():
        _strange(path, kind)
    ((status, said),) = read_apart([paths["imit"]]).values()
    assert status == 0 and said.startswith("refused: ") and str(paths["imit"]) in said
    with within(5):
        for name, path in paths.items():
            error_line(capsys, UNITS[name], tmp_path, path)


# ---------------------------------------------------------------- meta data


def nested() -> list:
    """Return a list of 23 levels that prints as 2^23 items: one of 60 would never end."""
    value: list = ["x"]
    for _ in range(23):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "meta",
    [
        None, [], {}, {"identity": [1], "schema": SCHEMA}, {"identity": "exp", "schema": SCHEMA},
        {"identity": {}}, {"identity": {}, "schema": 99}, {"identity": {}, "schema": "x" * 10**6},
        {"identity": {}, "schema": nested()}, {"identity": {}, "schema": np.array([SCHEMA, 1])},
    ],
    ids=["none", "list", "empty", "list", "text", "no schema", "other", "long", "nested", "array"],
)  # fmt: skip
def test_foreign_meta_data_is_refused_in_one_short_line(tmp_path, capsys, meta):
    for kind, path in unit_paths(tmp_path).items():
        save_pickle({"meta": meta}, path)
        with within(2):
            error_line(capsys, UNITS[kind], tmp_path, path)


@pytest.mark.parametrize(
    "value", [nested(), np.zeros(3), {"a": float("nan")}], ids=["nested", "array", "nan"]
)
def test_identities_of_strange_values_do_not_hang_or_break_the_comparison(tmp_path, capsys, value):
    store = fake_results.fake_store(tmp_path)
    for exp in (0, 1):
        unit = fake_results.report_unit(np.random.default_rng(0), 8)
        identity = {"axis": "lr", "layer": 0, "exp": exp, "levels": 2, "strange": value}
        meta = {"identity": identity, "schema": SCHEMA}
        save_pickle({"meta": meta, **unit}, store.unit(UnitKey("pred", "lr", 0, exp)))
    capsys.readouterr()
    with within(2):
        code = plot_pred.main(["--results", str(tmp_path), "--log_level", "error"])
    printed = capsys.readouterr().err
    assert (code, len(printed.splitlines())) in ((0, 0), (2, 1)) and len(printed) < 2000


def test_a_record_of_a_figure_does_not_say_where_files_are_written(tmp_path):
    root = tmp_path / "results"
    store = fake_results.write_study(root, axes=("lr",), layers=(0,), n_layers=1, n_exp=1, report_n=4)
    store.figures.mkdir()
    about = {"stage": "control", "kind": "k", "order": 0, "caption": "", "numbers": []}
    for name, group in (("a", "layer/../../../../../escaped"), ("b", "layer 0"), ("c", "layer 0")):
        image.imsave(store.figures / f"{name}.png", np.zeros((9, 9)))
        record = {**about, "name": "../../../b" if name == "b" else name, "group": group}
        (store.figures / f"{name}.json").write_text(json.dumps(record))
    plot_pred.main(["--results", str(root), "--log_level", "error", "--figure", "report"])
    assert list(tmp_path.iterdir()) == [root]
    page = (store.figures / "index.html").read_text()
    assert "c.png" in page and "a.png" not in page and "b.png" not in page
