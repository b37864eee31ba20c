"""The Slurm templates, run here without Slurm: with a stand-in python, and a stand-in scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = {
    "submit.slurm": "main_prep.py",
    "submit_imit.slurm": "main_imitexp.py",
    "submit_pred.slurm": "main_predexp.py",
}
ECHO = 'for a in "$@"; do echo "<$a>"; done'


def site(folder: Path, python: str, **more: str) -> dict[str, str]:
    """Return an environment whose python and scontrol are the given shell scripts."""
    bin_folder = folder / "my env" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    for name, text in (("python", python), ("scontrol", f'echo "$@" >>"{folder}/scontrol"')):
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return {**clean, "ENV": str(folder / "my env"), "SLURM_SUBMIT_DIR": str(ROOT), **more}


def run(template: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / template, *words], env=environment, capture_output=True, text=True, check=False
    )


def array(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    values = zip(names, (task, first, last, count, step), strict=True)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values}


@pytest.mark.parametrize(("template", "script"), TEMPLATES.items())
def test_arguments_with_spaces_and_quotes_survive(template, script, tmp_path):
    words = ["--dataset", "custom/a b", "--results", 'it\'s "here"', "*", ""]
    done = run(template, site(tmp_path, ECHO), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"<{word}>" for word in (script, *words)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_missing_environment_stops_the_job(template, tmp_path):
    done = run(template, site(tmp_path, ECHO, ENV=str(tmp_path / "nowhere")))
    assert done.returncode != 0 and "nowhere" in done.stderr and "<" not in done.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_job_submitted_from_another_folder_says_from_which(template, tmp_path):
    done = run(template, site(tmp_path, ECHO, SLURM_SUBMIT_DIR=str(tmp_path)))
    assert done.returncode == 2 and "sbatch this file in the folder of main_" in done.stderr


def test_the_templates_differ_in_their_names_only():
    texts = [(ROOT / template).read_text().splitlines() for template in TEMPLATES]
    for lines in zip(*texts, strict=True):
        common = {line for line in lines if not any(w in line for w in ("Usage", "main_", "nf-"))}
        assert len(common) <= 1


@pytest.mark.parametrize(
    ("task", "shard"),
    [
        (array(1, 1, 4, 4), "1/4"),
        (array(7, 0, 7, 8), "8/8"),
        (array(6, 2, 8, 4, step=2), "3/4"),
        (array(9, 1, 10, 5, step=2), "5/5"),
        (array(5, 5, 5, 1), "1/1"),
    ],
)
def test_tasks_of_an_array_do_a_shard_each(task, shard, tmp_path):
    done = run("submit_imit.slurm", site(tmp_path, ECHO, **task), "--pc", "1")
    assert done.stdout.split() == ["<main_imitexp.py>", "<--pc>", "<1>", "<--shard>", f"<{shard}>"]


def test_an_array_with_gaps_is_refused(tmp_path):
    done = run("submit_imit.slurm", site(tmp_path, ECHO, **array(3, 1, 7, 3)))
    assert done.returncode == 2 and "--array with gaps" in done.stderr and done.stdout == ""


def test_a_launcher_takes_the_place_of_python(tmp_path):
    done = run("submit_imit.slurm", site(tmp_path, ECHO, LAUNCH="python -m accelerate"), "--pc", "1")
    assert done.stdout.split() == ["<-m>", "<accelerate>", "<main_imitexp.py>", "<--pc>", "<1>"]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
@pytest.mark.parametrize(("code", "ends"), [(143, 143), (1, 1)])
def test_a_signal_stops_python_and_only_usr1_requeues(number, requeued, code, ends, tmp_path):
    """The job is a task of an array, and is named as such: its own number is also that of the whole array."""
    python = f'trap "echo stopped; exit {code}" TERM; touch "{tmp_path}/up"; while :; do sleep 0.05; done'
    job = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "LOGS": str(tmp_path), **array(4, 1, 4, 4)}
    environment = site(tmp_path, python, **job)
    environment["PATH"] = f"{environment['ENV']}/bin:{environment['PATH']}"
    process = subprocess.Popen(
        ["bash", ROOT / "submit_imit.slurm"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == ends and b"stopped" in out
    told = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert ("requeue 12_4" in told) == requeued
    assert (b"goes back into the queue" in errors) == requeued


def test_work_that_is_finished_when_usr1_comes_is_not_requeued(tmp_path):
    python = f'trap "exit 0" TERM; touch "{tmp_path}/up"; while :; do sleep 0.05; done'
    environment = site(tmp_path, python, SLURM_JOB_ID="12", LOGS=str(tmp_path))
    process = subprocess.Popen(["bash", ROOT / "submit.slurm"], env=environment, stderr=subprocess.PIPE)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=600)
    assert process.returncode == 0 and not (tmp_path / "scontrol").exists()


# ---------------------------------------------------------------- the chain, with a stand-in sbatch


def chain(folder: Path, sbatch: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = site(folder, ECHO)
    for name, text in (("sbatch", sbatch), ("scancel", f'echo "$@" >>"{folder}/scancel"')):
        (folder / "my env" / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "my env" / "bin" / name).chmod(0o755)
    environment["PATH"] = f"{folder}/my env/bin:{environment['PATH']}"
    return subprocess.run(
        [ROOT / "tasks" / "submit_chain.sh", *words], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", [(), ("model", "data"), ("model", "data", "0"), ("model", "data", "--pc")])
def test_a_chain_with_missing_arguments_prints_its_usage(words, tmp_path):
    done = chain(tmp_path, "echo 1", *words)
    assert done.returncode == 2 and "Usage: tasks/submit_chain.sh MODEL DATASET" in done.stderr


def test_a_chain_gives_each_stage_its_flags(tmp_path):
    record = f'printf "<%s>" "$@" >>"{tmp_path}/calls"; echo >>"{tmp_path}/calls"; wc -l <"{tmp_path}/calls"'
    words = ["--results", "my runs", "--pc", "1", "2", "--seed", "7", "--pred_exp_end", "3"]
    done = chain(tmp_path, record, "org/tiny", "my data", "8", *words)
    assert done.stdout.splitlines() == ["prep 1", "imit 2", "pred 3", "plot 4"]
    prep, imit, pred, plot = (tmp_path / "calls").read_text().splitlines()
    common = "<--dataset><my data><--results><my runs><--seed><7>"
    named = "<--parsable><--job-name=nf-{} org/tiny my data>"
    after = "<--dependency=afterok:{}><--kill-on-invalid-dep=yes>"
    assert prep == f"{named.format('prep')}<submit.slurm><--model><org/tiny>{common}"
    begin = f"{named.format('imit')}{after.format(1)}<--array=1-8><submit_imit.slurm><--model><org/tiny>"
    assert imit == f"{begin}{common}<--pc><1><2><--imit_exp_end><-1>"
    begin = f"{named.format('pred')}{after.format(2)}<--array=1-8><submit_pred.slurm><--config_s><org/tiny>"
    assert pred == f"{begin}{common}<--pc><1><2><--pred_exp_end><-1><--pred_exp_end><3>"
    assert plot.startswith(named.format("plot") + after.format(3))


def test_a_chain_that_cannot_be_submitted_whole_is_cancelled(tmp_path):
    count = f'echo x >>"{tmp_path}/n"; n=$(wc -l <"{tmp_path}/n")'
    refuse = f'{count}; [ "$n" -lt 3 ] || exit 1; echo "4$n"'
    done = chain(tmp_path, refuse, "tiny", "commonsense", "2")
    assert done.returncode == 1 and "submitting failed: 41 42 cancelled" in done.stderr
    assert (tmp_path / "scancel").read_text().split() == ["41", "42"]
