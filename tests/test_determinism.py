"""The same numbers, bit for bit, whatever the order of the work and however often it was stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import main_imitexp
import main_predexp
import main_prep
from analysis.base.files import ROOT
from analysis.experiments import runs
from analysis.experiments import study as study_module
from analysis.experiments.control import Control
from analysis.results.store import Store, UnitKey, read
from analysis.tables import control as control_tables
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from tests.test_pipeline import CONFIG
from utils import load_model

VOLATILE = ("meta", "seconds", "tokens")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Sizes of test_pipeline, with two kinds of labels."""
    path = tmp_path_factory.mktemp("config") / "small.yml"
    path.write_text(f"{CONFIG}levels: [2, 6]\n")
    return path


@pytest.fixture(scope="module")
def prepared(tiny_folder, config, tmp_path_factory) -> Path:
    """A results folder with axes only."""
    results = tmp_path_factory.mktemp("prepared")
    assert main_prep.main(words(tiny_folder, config, results)) == 0
    return results


@pytest.fixture(scope="module")
def undisturbed(prepared, tiny_folder, config, tmp_path_factory) -> Store:
    """All units done in one go."""
    results = copy_of(prepared, tmp_path_factory.mktemp("undisturbed"))
    run(words(tiny_folder, config, results))
    return Store(results, str(tiny_folder), "commonsense")


def words(model: Path, config: Path, results: Path) -> list[str]:
    return [
        "--model",
        str(model),
        "--config",
        str(config),
        "--results",
        str(results),
        "--log_level",
        "warning",
    ]


def copy_of(results: Path, parent: Path) -> Path:
    return Path(shutil.copytree(results, parent / "results"))


def run(flags: list[str], *more: str) -> None:
    assert main_imitexp.main([*flags, "--clf", "lr", "--pc", "1", "--imit_exp_end", "-1", *more]) == 0
    assert main_predexp.main([*flags, "--clf", "lr", "--pc", "1", "--pred_exp_end", "-1", *more]) == 0


def same_units(a: Store, b: Store, rtol: float = 0.0) -> int:
    """Compare every unit of two results folders and return how many there are."""
    count = 0
    for kind in ("imit", "pred"):
        assert a.units(kind) == b.units(kind)
        for key in a.units(kind):
            count += 1
            same(read(a.unit(key)), read(b.unit(key)), rtol)
    return count


def same(a: object, b: object, rtol: float) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a.keys() - set(VOLATILE):
            same(a[name], b[name], rtol)
    elif isinstance(a, np.ndarray) and a.dtype.kind == "f" and rtol:
        np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol
        )  # all of a size near 1, but differences of states
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def same_tables(a: Store, b: Store) -> None:
    """The tables that are printed and plotted are equal, not just close."""
    for build, load in (
        (control_tables.control_table, tables_read.load_control),
        (report_tables.report_table, tables_read.load_report),
    ):
        for row, other in zip(build(load(a)), build(load(b)), strict=True):
            assert str(row) == str(other)


def test_units_done_in_another_order_are_bit_identical(undisturbed, prepared, config, tmp_path):
    """The last unit first, each with a study and an engine of its own."""
    store = Store(copy_of(prepared, tmp_path), undisturbed.model, "commonsense")
    settings = study_module.open_study(store, loaded_settings(config)).settings
    models = {store.model: load_model(store.model)}
    for key in reversed([*undisturbed.units("imit"), *undisturbed.units("pred")]):
        one = replace(settings, levels=(key.levels,))
        grid = one, [key.axis], str(key.layer), [key.exp]
        if key.kind == "imit":
            assert runs.run_control(store, *grid, models=models) == (1, 0)
        else:
            assert runs.run_report(store, store.model, *grid, models=models)[:2] == (1, 0)
    assert same_units(undisturbed, store) == 2 * (
        2 * 2 * 2 * 3
    )  # kinds x axes x layers x levels x experiments
    same_tables(undisturbed, store)


def loaded_settings(config: Path):
    from configs.settings import load_settings

    return load_settings("tiny", config)


def test_a_run_stopped_at_any_unit_ends_bit_identical(
    undisturbed, prepared, config, tiny_folder, tmp_path, monkeypatch
):
    store = Store(copy_of(prepared, tmp_path), undisturbed.model, "commonsense")
    real, done = Control.unit, []

    def stops(self, key: UnitKey):
        done.append(key)
        if len(done) % 4 == 0:
            raise KeyboardInterrupt
        return real(self, key)

    monkeypatch.setattr(Control, "unit", stops)
    flags = words(tiny_folder, config, store.root)
    control = [*flags, "--clf", "lr", "--pc", "1", "--imit_exp_end", "-1"]
    stopped = 0
    while main_imitexp.main(control) == 130:
        stopped += 1
        assert not list(store.folder.glob("*.part"))
    assert stopped >= 5
    run(flags)
    same_units(undisturbed, store)


def test_two_processes_that_share_the_experiments_are_bit_identical(
    undisturbed, prepared, config, tiny_folder, tmp_path
):
    store = Store(copy_of(prepared, tmp_path), undisturbed.model, "commonsense")
    flags = words(tiny_folder, config, store.root)
    parts = (("0", "2"), ("2", "3"))
    work = [
        [
            sys.executable,
            script,
            *flags,
            "--clf",
            "lr",
            "--pc",
            "1",
            f"--{kind}_exp_start",
            a,
            f"--{kind}_exp_end",
            b,
        ]
        for a, b in parts
        for script, kind in (("main_imitexp.py", "imit"),)
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # as in this process
    running = [subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for line in work]
    for process in running:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    assert main_predexp.main([*flags, "--clf", "lr", "--pc", "1", "--pred_exp_end", "-1"]) == 0
    same_units(undisturbed, store)


def test_another_token_budget_agrees_to_a_ten_thousandth(
    undisturbed, prepared, config, tiny_folder, tmp_path
):
    store = Store(copy_of(prepared, tmp_path), undisturbed.model, "commonsense")
    run(words(tiny_folder, config, store.root), "--token_budget", "48")
    same_units(undisturbed, store, rtol=1e-4)
