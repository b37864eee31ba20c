"""Nothing is lost: killed processes, shared work, a clock that is set, damaged files."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import main_imitexp
import main_prep
import plot_imit
from analysis.base.files import load_pickle, save_pickle
from analysis.experiments import control, preparation, runs, units
from analysis.experiments.preparation import prepare
from analysis.results import claims
from analysis.results.store import Store, UnitKey, read
from tasks.fault_harness import SETTINGS, Lost, compare, control_job, equal, files_job, spawn, trial
from tests.test_claims import code_of
from tests.test_cli_errors import SIZES
from utils import LoadedModel


@pytest.fixture(scope="module", name="prepared")
def prepared_once(tiny_lm, tmp_path_factory) -> Path:
    """A results folder with the axes of the tiny model."""
    root = tmp_path_factory.mktemp("prepared") / "results"
    prepare(tiny_lm, "commonsense", SETTINGS, Store(root, tiny_lm.name, "commonsense"))
    return root


@pytest.fixture(name="store")
def copied_store(prepared, tiny_lm, tmp_path) -> Store:
    """A copy to work in."""
    return Store(Path(shutil.copytree(prepared, tmp_path / "results")), tiny_lm.name, "commonsense")


def run_control(store: Store, lm: LoadedModel, layer: str = "1", exps: int = 2, **more: object) -> tuple:
    return runs.run_control(store, SETTINGS, ["lr"], layer, range(exps), models={lm.name: lm}, **more)


def run_report(store: Store, lm: LoadedModel, **more: object) -> tuple:
    return runs.run_report(store, lm.name, SETTINGS, ["lr"], "1", [0], models={lm.name: lm}, **more)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.suffix in (".part", ".lock")]


# ---------------------------------------------------------------- kill -9


def test_twenty_kills_among_writes_and_locks_lose_nothing(tmp_path):
    found = trial(files_job, None, "org/tiny", tmp_path, kills=20, longest=0.03)
    assert found.kills == 20 and found.collisions == 0 and found.begun >= found.units == 120


def test_kills_of_three_processes_end_in_the_tables_of_an_undisturbed_run(prepared, tiny_lm, tmp_path):
    found = trial(control_job(tiny_lm), prepared, tiny_lm.name, tmp_path, kills=6, longest=0.4)
    assert found.kills == 6 and found.collisions == 0 and found.units == 24


def test_the_harness_notices_claims_that_do_not_hold(tmp_path, monkeypatch):
    """Processes that do the units in the same order, each holding a claim on all of them."""
    monkeypatch.setattr(claims, "_take", lambda lock: claims._Held(lock, os.open(os.devnull, os.O_RDONLY)))
    try:
        collisions = trial(same_order, None, "org/tiny", tmp_path, kills=3, longest=0.5).collisions
    except Lost as error:
        assert "kills cost" in str(error)
    else:
        assert collisions


def same_order(store: Store, notes: Path, number: int) -> None:
    files_job(store, notes, 0)


def test_units_of_another_process_are_left_to_it_and_counted(store, tiny_lm, caplog):
    key = UnitKey("imit", "lr", 1, 0)
    with claims.claim(store.unit(key)), caplog.at_level(logging.INFO):
        assert run_control(store, tiny_lm) == (1, 1)
    assert store.units("imit") == [UnitKey("imit", "lr", 1, 1)]
    assert (
        "1 units done here, 0 meanwhile by other processes, 1 are being done by other processes"
        in caplog.text
    )
    assert f"{store.unit(key).name}.lock (process {os.getpid()}" in caplog.text
    assert run_control(store, tiny_lm) == (1, 1)


def test_a_unit_that_another_process_finishes_meanwhile_is_not_done_again(store, tiny_lm, monkeypatch):
    """Before this process comes to it, and while this process is at another unit; also with --overwrite."""
    for overwrite in (False, True):
        done, real = [], control.Control.unit

        def unit(self, key, done=done, real=real, overwrite=overwrite):
            done.append(key.exp)
            if len(done) == 1:
                monkeypatch.undo()
                os.waitpid(spawn(lambda: run_control(store, tiny_lm, overwrite=overwrite)), 0)
                monkeypatch.setattr(control.Control, "unit", unit)
            return real(self, key)

        monkeypatch.setattr(control.Control, "unit", unit)
        assert run_control(store, tiny_lm, overwrite=overwrite) == (1, 1)
        monkeypatch.undo()
        assert done == [0] and len(store.units("imit")) == 2


def test_two_processes_prepare_a_folder_once(tiny_lm, tmp_path):
    store, log = Store(tmp_path, tiny_lm.name, "commonsense"), tmp_path / "log"

    def job() -> None:
        real = preparation.pool_sentences

        def pool(*args: object, **more: object) -> np.ndarray:
            with log.open("a") as handle:
                handle.write("pooled\n")
            return real(*args, **more)

        preparation.pool_sentences = pool
        units.log.info = lambda text, *args: log.open("a").write(f"{text % args}\n")
        claims.log.info = lambda text, *args: log.open("a").write(f"{text % args}\n")
        prepare(tiny_lm, "commonsense", SETTINGS, store)

    for pid in [spawn(job) for _ in range(3)]:
        assert code_of(pid) == 0
    lines = log.read_text().splitlines()
    assert lines.count("pooled") == 1
    assert sum("waiting for another process" in line for line in lines) <= 2
    assert sum("1 meanwhile" in line for line in lines) <= 2  # one may come when all is there already
    assert len(list(store.folder.glob("*.pkl"))) == 10 and not leftovers(tmp_path)


def test_the_clock_may_be_set_back_and_forward(store, tiny_lm, monkeypatch, prepared):
    real = time.time
    for shift in (-4e8, 4e8, -8e8):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        monkeypatch.setattr(time, "strftime", lambda form, shift=shift: f"{shift:.0f}")
        exp = len(store.units("imit"))
        assert run_control(store, tiny_lm, exps=exp + 1) == (1, exp)
        assert run_control(store, tiny_lm, exps=exp + 1) == (0, exp + 1)
    monkeypatch.undo()
    other = Store(Path(shutil.copytree(prepared, store.root.parent / "b")), store.model, store.dataset)
    assert run_control(other, tiny_lm, exps=3) == (3, 0)
    assert compare(store, other) == 3


# ---------------------------------------------------------------- damaged files


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        save_pickle({"someone": "else's"}, path)


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_unit_is_named_kept_and_done_again(store, tiny_lm, caplog, how):
    caplog.set_level(logging.WARNING)
    run_control(store, tiny_lm)
    path = store.unit(UnitKey("imit", "lr", 1, 0))
    good, others = read(path), path.with_name(f"{path.name}.corrupt")
    for name in (others, path.with_name(f"{path.name}.corrupt1")):
        damage(path, how)
        bad = path.read_bytes()
        caplog.clear()
        assert run_control(store, tiny_lm) == (1, 1)
        assert name.read_bytes() == bad
        assert f"{path} is not a readable result file" in caplog.text and name.name in caplog.text
        a, b = ({k: v for k, v in r.items() if k not in ("meta", "seconds")} for r in (good, read(path)))
        assert equal(a, b)
    assert others.exists() and not leftovers(store.root)


@pytest.mark.parametrize("name", ["split", "hidden_layer2", "axes_layer2", "hidden_embedding"])
def test_a_damaged_file_of_the_preparation_alone_is_made_again(store, tiny_lm, caplog, name):
    caplog.set_level(logging.WARNING)
    path = store.folder / f"{name}.pkl"
    good = {p: (p.stat().st_mtime_ns, load_pickle(p)) for p in store.folder.glob("*.pkl")}
    damage(path, "flipped")
    bad = path.read_bytes()
    prepare(tiny_lm, "commonsense", SETTINGS, store)
    assert path.with_name(f"{name}.pkl.corrupt").read_bytes() == bad and f"{path} is not" in caplog.text
    for other, (written, record) in good.items():
        assert (other.stat().st_mtime_ns == written) == (other != path)
        now = load_pickle(other)
        assert now.pop("meta")["identity"] == record.pop("meta")["identity"] and equal(now, record)


def test_a_damaged_file_met_by_another_stage_names_the_command_that_repairs_it(tiny_folder, tmp_path, capsys):
    config = tmp_path / "small.yml"
    config.write_text("\n".join(f"{k}: {v}" for k, v in SIZES.items()))
    words = ["--model", str(tiny_folder), "--config", str(config), "--results", str(tmp_path / "r")]
    quiet, grid = ["--log_level", "error"], ["--clf", "lr", "--layer", "1"]
    assert main_prep.main([*words, *quiet]) == 0
    assert main_imitexp.main([*words, *grid, *quiet]) == 0
    store = Store(tmp_path / "r", str(tiny_folder), "commonsense")
    cases = {
        store.unit(UnitKey("imit", "lr", 1, 1)): (plot_imit.main, main_imitexp.main, words[:2] + words[4:]),
        store.axes(1): (main_imitexp.main, main_prep.main, [*words, *grid]),
        store.split: (main_imitexp.main, main_prep.main, [*words, *grid]),
    }
    for path, (reader, maker, argv) in cases.items():
        damage(path, "truncated")
        capsys.readouterr()
        assert reader([*argv, *quiet]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path} is not a readable result file")
        (command,) = re.findall("`(.*)`", line)
        assert maker([*shlex.split(command)[2:], *quiet]) == 0
        assert read(path) and path.with_name(f"{path.name}.corrupt").exists()
