"""python -m tasks.verify: what is there, what is missing, and the command that makes it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main_imitexp
import main_predexp
import main_prep
import plot_imit
from analysis.base.files import ROOT, this_host
from analysis.results.claims import claim, lock_file
from analysis.results.store import Store, UnitKey, read, write
from analysis.results.verify import check
from tasks.verify import main
from tests.test_cli_errors import KEY, config, flags  # noqa: F401

MAINS = {"main_prep.py": main_prep, "main_imitexp.py": main_imitexp, "main_predexp.py": main_predexp}


@pytest.fixture(scope="module")
def complete(config, tiny_folder, tmp_path_factory) -> Path:  # noqa: F811
    """A results folder of two axes, two layers and two experiments of both kinds."""
    results = tmp_path_factory.mktemp("results")
    words = flags(tiny_folder, config, results)
    grid = ["--clf", "lr", "--pc", "1", "--layer", "1,2"]
    assert main_prep.main(words) == 0
    assert main_imitexp.main([*words, *grid, "--imit_exp_end", "2", "--n_train", "0", "1"]) == 0
    assert main_predexp.main([*words, *grid, "--pred_exp_end", "2", "--n_train", "4"]) == 0
    return results


@pytest.fixture
def store(complete, tiny_folder, tmp_path) -> Store:
    """A copy to be damaged."""
    return Store(Path(shutil.copytree(complete, tmp_path / "results")), str(tiny_folder), KEY)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_complete_folder_is_well_at_every_level(store, capsys, level):
    folder = [store.root, store.folder.parent, store.folder][level]
    assert main([str(folder)]) == 0
    out = lines(capsys.readouterr().out)
    assert out[0] == str(store.folder) and out[-1] == "all is well"
    assert "preparation  10 complete, 0 missing, 0 corrupt" in out
    grid = "of the largest grid seen: axes lr pc1 x layers 1 2 x levels 2 x experiments 0..1"
    assert f"control      8 complete, 0 missing, 0 corrupt {grid}" in out
    assert f"report       8 complete, 0 missing, 0 corrupt {grid}" in out


def test_the_commands_printed_complete_the_grid(store, capsys):
    store.unit(UnitKey("imit", "lr", 2, 1)).unlink()
    store.unit(UnitKey("pred", "pc1", 1, 0)).write_bytes(b"not a result")
    store.axes(3).unlink()
    store.hidden(0).write_bytes(store.hidden(0).read_bytes()[:-1])
    assert main([str(store.root)]) == 1
    out = lines(capsys.readouterr().out)
    assert "preparation  8 complete, 1 missing, 1 corrupt" in out
    assert any(line.startswith("control      7 complete, 1 missing, 0 corrupt") for line in out)
    assert any(line.startswith("report       7 complete, 0 missing, 1 corrupt") for line in out)
    assert "missing      axes_layer3.pkl, imit_lr_layer2_exp1.pkl" in out
    for name in ("hidden_layer0.pkl", "pred_pc1_layer1_exp0.pkl"):
        assert any(re.match(rf"corrupt +{name}: its checksum is missing .* a run keeps it", x) for x in out)
    commands = [shlex.split(line)[1:] for line in out if line.startswith("run ")]
    assert [words[1] for words in commands] == list(MAINS)
    for words in commands:
        assert MAINS[words[1]].main([*words[2:], "--log_level", "error"]) == 0
    assert main([str(store.root)]) == 0
    assert "set aside    2: hidden_layer0.pkl.corrupt, pred_pc1_layer1_exp0.pkl.corrupt" in lines(
        capsys.readouterr().out
    )


def test_locks_and_parts_of_dead_processes_are_removed_and_others_listed(store, capsys):
    key, other = UnitKey("imit", "lr", 1, 0), UnitKey("imit", "lr", 1, 1)
    dead = 1 + int(Path("/proc/sys/kernel/pid_max").read_text())  # a number that no process ever has
    lock_file(store.unit(other)).write_text(json.dumps({"host": this_host(), "pid": dead}))
    names = [
        f"x.pkl.{this_host()}.{dead}.part",
        f"x.pkl.{this_host()}.{os.getpid()}.part",
        "x.pkl.far.7.part",
    ]
    for name in names:
        (store.folder / name).write_bytes(b"half")
    with claim(store.unit(key)):
        assert main([str(store.folder)]) == 0
        out = lines(capsys.readouterr().out)
        assert lock_file(store.unit(key)).exists()
    assert f"removed      2: {store.unit(other).name}.lock, {names[0]}" in out
    assert f"leftovers    2: {names[2]}, {names[1]}" in out
    assert any(
        line.startswith(f"locked       {lock_file(store.unit(key))} (process {os.getpid()}") for line in out
    )
    assert sorted(path.name for path in store.folder.glob("*.part")) == sorted(names[1:])
    assert not list(store.folder.glob("*.lock"))


def test_a_unit_under_another_units_name_is_found(store):
    shutil.copy(store.unit(UnitKey("imit", "lr", 1, 0)), store.unit(UnitKey("imit", "lr", 1, 1)))
    (why,) = check(store.folder).corrupt.items()
    assert why[0] == "imit_lr_layer1_exp1.pkl" and why[1].startswith("its settings say exp 0; a run keeps it")


def test_units_of_different_settings_are_found(store):
    path = store.unit(UnitKey("imit", "lr", 1, 0))
    record = read(path)
    meta = record.pop("meta")
    write(path, record, {**meta["identity"], "temperature": 0.1})
    found = check(store.folder)
    assert found.mixed == ["control: temperature"] and not found.well


@pytest.mark.parametrize("name", ["axes_layer2.pkl", "split.pkl", "imit_lr_layer1_exp0.pkl"])
def test_files_of_another_preparation_are_found_and_refused_by_plots_and_runs(store, config, name, capsys):  # noqa: F811
    """Whole in themselves, such as a file that was copied from another folder."""
    path = store.folder / name
    record = read(path)
    meta = record.pop("meta")
    part = "preparation" if name.startswith("imit") else "seed"
    write(path, record, {**meta.pop("identity"), part: 7}, **meta)
    kind = "control" if name.startswith("imit") else "preparation"
    found = check(store.folder)
    assert not found.well and not found.corrupt and f"{kind}: {part}" in found.mixed
    words = flags(store.model, config, store.root)
    assert plot_imit.main([*words[:2], *words[4:], "--figure", "scores", "--layer", "2,1"]) == 2
    assert main_imitexp.main([*words, "--clf", "lr", "--layer", "1,2", "--n_train", "0", "1"]) == 2
    assert part in capsys.readouterr().err


def test_results_of_two_models_need_no_preparation_and_name_both(store, tiny_folder, capsys):
    crossed = Store(store.root, f"reader_from_{tiny_folder}", KEY)
    for exp in (0, 2):
        path = store.unit(UnitKey("pred", "lr", 1, 0))
        record, key = read(path), UnitKey("pred", "lr", 1, exp)
        meta = {**record.pop("meta"), "model_name": "reader"}
        identity = {**meta.pop("identity"), "exp": exp}
        write(crossed.unit(key), record, identity, **meta)
    assert main([str(crossed.folder)]) == 1
    out = lines(capsys.readouterr().out)
    assert "missing      pred_lr_layer1_exp1.pkl" in out
    (command,) = [line for line in out if line.startswith("run ")]
    assert f"main_predexp.py --config_s {tiny_folder} --config_e reader --dataset {KEY}" in command
    assert "--layer 1 --pred_exp_end 3 " in command and command.endswith("--n_train 4")


@pytest.mark.parametrize("argv", [["no/such/folder"], [str(ROOT / "docs")]])
def test_a_folder_without_results_is_an_error(argv, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {argv[0]} ")


def test_the_command_line_is_that_of_the_documentation(store):
    words = [sys.executable, "-m", "tasks.verify", str(store.root)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n") and done.stderr == ""
