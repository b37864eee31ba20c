"""--dry_run of every script, and the sweep over models and datasets."""

from __future__ import annotations

import re
import shutil

import pytest

import main_imitexp
import main_predexp
import main_prep
import neurofeedback
from analysis.results.store import Store
from tests.test_determinism import words
from tests.test_pipeline import CONFIG


@pytest.fixture
def flags(tiny_folder, tmp_path) -> list[str]:
    """Flags of a small study in a new folder."""
    (tmp_path / "small.yml").write_text(f"{CONFIG}levels: [2, 6]\n")
    return words(tiny_folder, tmp_path / "small.yml", tmp_path / "results")


def lines(text: str) -> dict[str, list[str]]:
    """First word -> the other words of each line."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_a_dry_study_counts_all_stages_and_writes_nothing(flags, tmp_path, capsys):
    assert neurofeedback.main([*flags, "--dry_run"]) == 0
    found = lines(capsys.readouterr().out)
    assert found["preparation"][:2] == ["1", "0"]
    assert found["control"][:2] == ["24", "0"]  # axes x layers x levels x experiments
    assert found["report"][:2] == ["48", "0"]  # two axes more, the controls
    assert not (tmp_path / "results").exists()


def test_dry_counts_are_those_of_the_run(flags, tiny_folder, tmp_path, capsys):
    """Tokens of one unit of each kind, and what is kept, against what the run then does."""
    one = [*flags, "--layer", "1", "--levels", "6", "--clf", "lr"]
    assert main_prep.main([*flags, "--dry_run"]) == 0
    assert main_prep.main(flags) == 0
    assert main_imitexp.main([*one, "--imit_exp_end", "1", "--dry_run"]) == 0
    control = lines(capsys.readouterr().out)["control"]
    assert main_imitexp.main([*one, "--imit_exp_end", "1"]) == 0
    assert main_predexp.main([*one, "--pred_exp_end", "1", "--dry_run"]) == 0
    report = lines(capsys.readouterr().out)["report"]
    assert main_predexp.main([*one, "--pred_exp_end", "1"]) == 0
    from analysis.results.store import read

    store = Store(tmp_path / "results", str(tiny_folder), "commonsense")
    # what the model will write, and be given to read again, is guessed: everything else is exact
    for kind, counted, off in (("imit", control, 0.05), ("pred", report, 0.0)):
        (key,) = store.units(kind)
        done = read(store.unit(key))["tokens"]["prompt"]
        assert int(counted[2].replace(",", "")) == pytest.approx(done, rel=off, abs=0)
    assert main_imitexp.main([*one, "--imit_exp_end", "-1", "--dry_run"]) == 0
    assert lines(capsys.readouterr().out)["control"][:2] == ["2", "1"]
    assert main_imitexp.main([*one, "--imit_exp_end", "-1", "--dry_run", "--overwrite"]) == 0
    assert lines(capsys.readouterr().out)["control"][:2] == ["3", "0"]


def test_a_dry_run_refuses_what_the_run_would_refuse(flags, capsys):
    assert main_imitexp.main([*flags, "--dry_run", "--layer", "9"]) == 2
    assert "has layers 0..3" in capsys.readouterr().err
    assert main_prep.main([*flags, "--dry_run", "--dataset", "nosuch"]) == 2
    assert "unknown dataset 'nosuch'" in capsys.readouterr().err


def test_a_config_sweeps_over_models_and_datasets_and_flags_win(flags, tiny_folder, tmp_path, capsys):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    config = tmp_path / "sweep.yml"
    config.write_text(f"{CONFIG}models: [{tiny_folder}, {other}]\ndatasets: [commonsense, emotion]\n")
    sweep = ["--config", str(config), "--results", str(tmp_path / "results"), "--dry_run"]
    assert neurofeedback.main(sweep) == 0
    models = re.findall(r"^model +(\S+):", capsys.readouterr().out, re.MULTILINE)
    assert models == [str(tiny_folder)] * 2 + [str(other)] * 2
    assert neurofeedback.main([*sweep, "--model", str(other), "--dataset", "true_false"]) == 0
    assert re.findall(r"^model +(\S+):", capsys.readouterr().out, re.MULTILINE) == [str(other)]


def test_a_dry_run_learns_the_time_from_units_on_disk(flags, tiny_folder, tmp_path, capsys):
    """Units of 1,800 s on one GPU and 2,700 s on two, 22 to do: 1 hour each, as many tasks of an hour."""
    from analysis.base.files import load_pickle, save_pickle

    assert main_prep.main(flags) == 0
    argv = [*flags, "--clf", "lr", "--pc", "1", "--imit_exp_end", "-1"]
    assert main_imitexp.main([*argv, "--dry_run"]) == 0
    unknown = capsys.readouterr().out.splitlines()[-1]
    assert unknown.startswith("time     control: not known") and "with --shard 1/24 in place" in unknown
    store = Store(tmp_path / "results", str(tiny_folder), "commonsense")
    for shard, seconds, device in (("1/24", 1800.0, "cuda:0"), ("2/24", 2700.0, "cuda:0, cuda:1")):
        before = store.units("imit")
        assert main_imitexp.main([*argv, "--shard", shard]) == 0
        (new,) = set(store.units("imit")) - set(before)
        record = load_pickle(store.unit(new))
        record["seconds"], record["meta"]["device"] = seconds, device
        save_pickle(record, store.unit(new))
    assert main_imitexp.main([*argv, "--dry_run"]) == 0
    known = capsys.readouterr().out.splitlines()[-1]
    assert "control: 22.0 GPU-hours (22 units of 3,600.0 s, the mean of 2 on disk)" in known
    assert known.endswith("; sbatch --array=1-22 is 60.0 minutes a task")
    assert main_imitexp.main([*argv, "--dry_run", "--shard", "3/12"]) == 0
    assert "2.0 GPU-hours (2 units of 3,600.0 s, the mean of 2 on disk)" in capsys.readouterr().out
