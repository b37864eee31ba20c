"""The Slurm templates hand their arguments on intact (run here without Slurm, with a stand-in python)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = {
    "submit.slurm": "main_prep.py",
    "submit_imit.slurm": "main_imitexp.py",
    "submit_pred.slurm": "main_predexp.py",
}


@pytest.mark.parametrize(("template", "script"), TEMPLATES.items())
def test_arguments_with_spaces_and_quotes_survive(template, script, tmp_path):
    bin_folder = tmp_path / "my env" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    python = bin_folder / "python"
    python.write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\n')
    python.chmod(0o755)
    env = {**os.environ, "ENV": str(tmp_path / "my env"), "SLURM_SUBMIT_DIR": str(ROOT)}
    words = ["--dataset", "custom/a b", "--results", 'it\'s "here"', "*"]
    done = subprocess.run(
        ["bash", ROOT / template, *words], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"<{word}>" for word in (script, *words)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_missing_environment_stops_the_job(template, tmp_path):
    env = {**os.environ, "ENV": str(tmp_path / "nowhere"), "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(["bash", ROOT / template], env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "nowhere" in done.stderr
