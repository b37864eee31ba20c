"""Units split over the processes of one `accelerate launch`, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.base.files import ROOT
from analysis.results.store import Store
from tests.test_determinism import same_tables, same_units, words
from tests.test_pipeline import CONFIG

UNITS = 2 * 2 * 3  # of each kind: axes x layers x experiments
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"),
    *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]


def start(*command: str | Path) -> subprocess.Popen[str]:
    """Start a command with one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory) -> dict[str, tuple[Store, str, str]]:
    """The study in two processes and in one: store, stdout, stderr."""
    folder = tmp_path_factory.mktemp("accelerate")
    (folder / "small.yml").write_text(CONFIG)
    running = {}
    for name, launch in (("two", LAUNCH), ("one", [sys.executable])):
        flags = words(tiny_folder, folder / "small.yml", folder / name)
        running[name] = start(*launch, ROOT / "neurofeedback.py", *flags, "--log_level", "info")
    found = {}
    for name, process in running.items():
        printed, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
        found[name] = Store(folder / name, str(tiny_folder), "commonsense"), printed, told
    return found


def test_two_processes_give_the_tables_of_one_bit_for_bit(runs):
    one, two = runs["one"][0], runs["two"][0]
    assert same_units(one, two) == 3 * UNITS  # report has the two control axes besides
    same_tables(one, two)


def test_each_process_does_half_of_the_units_and_the_main_one_prepares_and_draws(runs):
    store, printed, told = runs["two"]
    for stage, half in (("report", UNITS), ("control", UNITS // 2)):
        assert told.count(f"{stage}: {half} new, 0 kept") == 1  # the other process says nothing
    assert "another process has prepared" not in told
    assert told.count("figures and report page") == printed.count("figures: ") == 1
    assert (store.folder / "report.html").exists()
    assert not [*store.folder.glob("*.part"), *store.folder.glob("*.lock")]


def test_shown_figures_and_tables_are_those_of_one_process(runs):
    tables = [runs[name][1].split(" figures:")[0] for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_a_process_that_fails_ends_the_others(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "from analysis.base import processes\n"
        "from analysis.cli.script import script\n"
        "from analysis.base.errors import UserError\n"
        "@script\n"
        "def main(argv=None):\n"
        "    processes.current(None)\n"
        "    with processes.main_first():\n"
        "        if processes.is_main():\n"
        "            raise UserError('the disk is full')\n"
        "raise SystemExit(main())\n"
    )
    process = start("env", f"PYTHONPATH={ROOT}", *LAUNCH, script)
    _, told = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "error: the disk is full" in told
