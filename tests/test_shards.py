"""Units split over jobs with --shard."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import main_imitexp
import main_predexp
import main_prep
import neurofeedback
from analysis.base import processes
from analysis.base.errors import UserError
from analysis.base.files import ROOT
from analysis.base.processes import Shard
from analysis.experiments import machine, units
from analysis.results.store import Store
from tests.test_determinism import copy_of, same_tables, same_units, words
from tests.test_pipeline import CONFIG

counts = st.integers(1, 40)
GRID = ["--clf", "lr", "--pc", "1"]


@pytest.mark.parametrize("flag", ["0/4", "5/4", "a/b", "1/0", "-1/2", "1", "1/2/3", "1 /2", "", "²/3"])
@pytest.mark.parametrize("script", [main_prep, main_imitexp, main_predexp, neurofeedback])
def test_a_bad_shard_is_one_line_that_says_what_is_allowed(script, flag, tiny_folder, capsys):
    argv = ["--model", str(tiny_folder), f"--shard={flag}", "--dry_run"]
    assert script.main(argv) == 2
    assert f"error: --shard {flag}: give i/n with 1 <= i <= n, such as 2/4" in capsys.readouterr().err


def test_units_are_dealt_out_like_cards():
    assert Shard.parse("2/3").take("abcdefgh") == ["b", "e", "h"]
    assert Shard().take("abc") == ["a", "b", "c"]
    assert Shard.parse("7/9").take("abc") == []
    assert str(Shard.parse("2/3")) == "2/3"


@given(counts, counts)
def test_every_unit_is_in_exactly_one_shard_and_shards_are_even(units, count):
    parts = [Shard(index, count).take(range(units)) for index in range(1, count + 1)]
    assert sorted(sum(parts, [])) == list(range(units))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 60), st.integers(1, 6), st.integers(1, 6))
def test_processes_split_a_shard_among_them(units, count, processes):
    for index in range(1, count + 1):
        shard = Shard(index, count)
        parts = [shard.split(process, processes).take(range(units)) for process in range(processes)]
        assert sorted(sum(parts, [])) == shard.take(range(units))


@pytest.fixture(scope="module")
def prepared(tiny_folder, tmp_path_factory) -> tuple[list[str], Path]:
    """Flags up to the results folder, and such a folder with axes only."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "small.yml").write_text(CONFIG)
    flags = words(tiny_folder, folder / "small.yml", folder / "results")
    assert main_prep.main(flags) == 0
    return flags, folder / "results"


def in_folder(flags: Sequence[str], results: Path) -> list[str]:
    return [*flags, "--results", str(results)]


def test_three_shards_one_after_the_other_are_bit_identical_to_one_run(prepared, tiny_folder, tmp_path):
    flags, results = prepared
    stores = [Store(copy_of(results, tmp_path / name), str(tiny_folder), "commonsense") for name in "ab"]
    for store, parts in zip(stores, ([[]], [["--shard", f"{i}/3"] for i in (3, 1, 2)]), strict=True):
        for part in parts:
            argv = in_folder(flags, store.root)
            assert main_imitexp.main([*argv, *GRID, "--imit_exp_end", "-1", *part]) == 0
            assert main_predexp.main([*argv, *GRID, "--pred_exp_end", "-1", *part]) == 0
    assert same_units(*stores) == 24
    same_tables(*stores)


def test_a_shard_does_only_its_units_and_counts_only_those(prepared, tiny_folder, tmp_path, capsys):
    flags, results = prepared
    store = Store(copy_of(results, tmp_path), str(tiny_folder), "commonsense")
    argv = [
        *in_folder(flags, store.root),
        "--log_level",
        "info",
        *GRID,
        "--imit_exp_end",
        "-1",
        "--shard",
        "2/5",
    ]
    assert main_imitexp.main(argv) == 0
    assert "3 new, 0 kept" in capsys.readouterr().err
    grid = [(layer, axis, exp) for layer in (1, 2) for axis in ("lr", "pc1") for exp in range(3)]
    assert {(key.layer, key.axis, key.exp) for key in store.units("imit")} == {grid[1], grid[6], grid[11]}


def test_a_shard_reads_the_files_of_its_own_units_only(prepared, tiny_folder, tmp_path, capsys, monkeypatch):
    """A unit with other settings is in the first of four shards, and no other shard looks at it."""
    flags, results = prepared
    store = Store(copy_of(results, tmp_path), str(tiny_folder), "commonsense")
    argv = [*in_folder(flags, store.root), *GRID]
    assert main_imitexp.main([*argv, "--n_train", "0", "2", "--imit_exp_end", "-1", "--shard", "1/12"]) == 0
    looked, real = [], units.finished
    monkeypatch.setattr(units, "finished", lambda path, *rest: looked.append(path) or real(path, *rest))
    assert main_imitexp.main([*argv, "--imit_exp_end", "-1", "--shard", "2/4"]) == 0
    assert len(store.units("imit")) == 1 + 3 and len(set(looked)) == 3
    assert main_imitexp.main([*argv, "--imit_exp_end", "-1", "--shard", "1/4"]) == 2
    assert "made with other settings (shots" in capsys.readouterr().err


def test_a_shard_without_units_loads_no_model(prepared, tmp_path, monkeypatch):
    flags, results = prepared
    argv = in_folder(flags, copy_of(results, tmp_path))
    monkeypatch.setattr(machine, "load_model", lambda *a, **k: pytest.fail("loaded a model for nothing"))
    assert main_imitexp.main([*argv, "--layer", "1", "--imit_exp_end", "2", "--shard", "3/3"]) == 0
    assert main_prep.main([*argv, "--shard", "2/3"]) == 0  # the preparation is the first shard's


def test_a_shard_of_a_study_leaves_the_figures_to_the_run_without_shard(
    prepared, tiny_folder, tmp_path, capsys
):
    flags, results = prepared
    store = Store(copy_of(results, tmp_path), str(tiny_folder), "commonsense")
    assert neurofeedback.main([*in_folder(flags, store.root), "--log_level", "info", "--shard", "1/12"]) == 0
    assert len(store.units("imit")) == 1 and len(store.units("pred")) == 2  # report has two axes more
    assert not store.figures.exists()
    assert "shard 1/12 is done; when all are, figures" in capsys.readouterr().err


# ---------------------------------------------------------------- launchers, without starting one


def test_without_a_launcher_neither_accelerate_nor_torch_is_imported_at_start_up():
    check = (
        "import sys, main_imitexp, main_predexp, main_prep, neurofeedback\n"
        "from analysis.base.processes import current, own_device, wait_for_all\n"
        "assert str(current('2/4')) == '2/4' and own_device('auto') == 'auto'\n"
        "wait_for_all()\n"
        "print([name for name in ('accelerate', 'torch', 'transformers') if name in sys.modules])"
    )
    clean = {
        key: value for key, value in os.environ.items() if key not in (*processes._COUNT, *processes._INDEX)
    }
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_launch_on_cpus_that_starts_one_process_says_so(monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert processes.current(None) == Shard() and "--multi_gpu --num_processes n" in caplog.text
    assert processes.own_device("auto") == "cpu" and processes.own_device("cuda") == "cuda"


def test_one_model_over_all_gpus_is_refused_in_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="cannot run in several processes: start the script with python"):
        processes.own_device("map")


@pytest.mark.parametrize("names", list(zip(processes._COUNT, processes._INDEX, strict=True)))
def test_only_the_main_process_shows_a_bar(names, monkeypatch):
    from analysis.base.progress import bar

    assert not bar(total=1).disable
    monkeypatch.setenv(names[0], "2")
    monkeypatch.setenv(names[1], "1")
    assert bar(total=1).disable and processes.launched() and not processes.is_main()
    monkeypatch.setenv(names[1], "0")
    assert not bar(total=1).disable
