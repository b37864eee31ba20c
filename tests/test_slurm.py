"""The templates and the chain on a real Slurm; skipped where there is none (.ci/run starts one)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from analysis.base.files import ROOT
from analysis.results.store import Store, UnitKey
from tests.test_determinism import same_tables, same_units
from tests.test_pipeline import CONFIG

PATIENCE = 600  # seconds, on a busy machine
UNITS = 2 * 2 * 3  # axes x layers x experiments
GRID = ["--clf", "lr", "--pc", "1"]
CONTROL = [*GRID, "--imit_exp_end", "-1"]
ONE_PROCESS = """
import sys, main_imitexp, main_predexp, main_prep
flags, grid = sys.argv[1:], ["--clf", "lr", "--pc", "1"]
codes = main_prep.main(flags), main_imitexp.main([*flags, *grid, "--imit_exp_end", "-1"])
sys.exit(max(*codes, main_predexp.main([*flags, *grid, "--pred_exp_end", "-1"])))
"""


def why_not() -> str | None:
    """Return why Slurm cannot be used here, None if it can."""
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH"
    try:
        ping, nodes = (
            subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout
            for words in (["scontrol", "ping"], ["sinfo", "-h", "-N", "-o", "%n"])
        )
    except subprocess.TimeoutExpired:
        return "slurmctld takes too long to answer"
    if " UP" not in ping:
        return "slurmctld does not answer"
    here = socket.gethostname().partition(".")[0]
    return None if set(nodes.split()) == {here} else "it has other hosts, which do not see pytest's folders"


NOT_HERE = why_not()
pytestmark = pytest.mark.skipif(NOT_HERE is not None, reason=f"no Slurm: {NOT_HERE}")


@dataclass(frozen=True)
class Site:
    """A folder to submit from, which shows the repository's scripts; every path has a space."""

    folder: Path
    environment: dict[str, str]
    jobs: list[str] = field(default_factory=list)

    @property
    def model(self) -> Path:
        return self.folder / "my model"

    def flags(self, results: str) -> list[str]:
        return ["--config", str(self.folder / "small.yml"), "--results", str(self.folder / results)]

    def store(self, results: str) -> Store:
        return Store(self.folder / results, str(self.model), "commonsense")

    def log(self, name: str) -> str:
        return (self.folder / "my logs" / f"{name}.log").read_text()

    def call(self, *words: str | Path) -> str:
        """Run a command here and return what it prints."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sbatch(self, *words: str | Path) -> str:
        """Submit a job and return its number."""
        self.jobs.append(self.call("sbatch", "--parsable", *words).strip())
        return self.jobs[-1]

    def chain(self, *words: str) -> dict[str, str]:
        """Submit a chain and return {stage: job}."""
        printed = dict(line.split() for line in self.call("tasks/submit_chain.sh", *words).splitlines())
        self.jobs.extend(printed.values())
        return printed

    def about(self, job: str, name: str = "JobState") -> set[str]:
        """Return a field of a job, of all tasks of an array."""
        shown = self.call("scontrol", "show", "job", "-o", job)
        return set(re.findall(rf"\b{name}=(\S+)", shown))

    def ended(self, job: str) -> set[str]:
        """Wait for a job, or all tasks of an array, and return the states."""
        wait_for(lambda: not self.about(job) & {"PENDING", "RUNNING", "COMPLETING"}, f"job {job} to end")
        return self.about(job)


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tiny_folder, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("my jobs")
    for source in (ROOT / "tasks", *ROOT.glob("*.slurm"), *ROOT.glob("*.py")):
        (folder / source.name).symlink_to(source)
    (folder / "my env" / "bin").mkdir(parents=True)
    (folder / "my env" / "bin" / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    (folder / "small.yml").write_text(CONFIG)
    shutil.copytree(tiny_folder, folder / "my model")
    sizes = {"OMP_NUM_THREADS": "1", "SBATCH_GRES": "none", "SBATCH_MEM_PER_NODE": "1000"}
    found = Site(folder, {**os.environ, "ENV": "my env", "LOGS": "my logs", **sizes})
    yield found
    if found.jobs:
        found.call("scancel", *found.jobs)


@pytest.fixture(scope="module")
def chain(site) -> dict[str, str]:
    """The whole study, arrays of four; submitted first, since it takes longest."""
    return site.chain(str(site.model), "commonsense", "4", *site.flags("of chain"), *GRID)


@pytest.fixture(scope="module")
def failing(site) -> dict[str, str]:
    """A chain whose preparation fails."""
    return site.chain(str(site.model), "nosuch", "2", *site.flags("none"), *GRID)


@pytest.fixture(scope="module")
def alone(failing, chain, site) -> Store:
    """The same study in one process, while the chain runs."""
    site.call(
        "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", ONE_PROCESS,
        "--model", str(site.model), *site.flags("alone"), "--log_level", "warning",
    )  # fmt: skip
    return site.store("alone")


@dataclass(frozen=True)
class Stopped:
    """A job that was stopped after its first unit, and then requeued."""

    job: str
    store: Store
    kept: dict[UnitKey, int]
    """When the units were written that were there when it had stopped."""
    litter: list[Path]
    """Files that were there then and should not have been."""


def stopped(site: Site, job: str, results: str) -> Stopped:
    store = site.store(results)
    litter = [*store.folder.glob("*.part"), *store.folder.glob("*.lock")]
    return Stopped(job, store, written(store, store.units("imit")), litter)


def written(store: Store, keys: Iterable[UnitKey]) -> dict[UnitKey, int]:
    return {key: store.unit(key).stat().st_mtime_ns for key in keys}


@pytest.fixture(scope="module")
def interrupted(site, alone) -> dict[str, Stopped]:
    """Two jobs that do all control units after a preparation: one cancelled, one told that its time is up."""
    jobs, units = {}, {alone.unit(key).name for kind in ("imit", "pred") for key in alone.units(kind)}
    for name in ("cancelled", "warned"):
        shutil.copytree(alone.root, site.folder / name, ignore=lambda _, names: units & set(names))
        words = "--model", str(site.model), *site.flags(name), *CONTROL
        jobs[name] = site.sbatch("submit_imit.slurm", *words)
    signals = {"cancelled": (), "warned": ("--signal=USR1", "--batch")}
    for name, job in jobs.items():
        wait_for(lambda name=name: site.store(name).units("imit"), "the first unit")
        site.call("scancel", *signals[name], job)
    wait_for(lambda: site.about(jobs["warned"], "Restarts") == {"1"}, "the job to be requeued")
    found = {"warned": stopped(site, jobs["warned"], "warned")}  # it starts again some seconds later
    assert site.ended(jobs["cancelled"]) == {"CANCELLED"}
    found["cancelled"] = stopped(site, jobs["cancelled"], "cancelled")
    site.call("scontrol", "requeue", jobs["cancelled"])
    return found


@pytest.mark.parametrize("how", ["cancelled", "warned"])
def test_a_job_that_is_stopped_midway_and_requeued_resumes(how, site, alone, interrupted):
    job, store, kept = interrupted[how].job, interrupted[how].store, interrupted[how].kept
    assert 1 <= len(kept) < UNITS and interrupted[how].litter == []
    log = site.log(f"nf-imit_{job}")
    assert "stopped by SIGTERM" in log
    assert (f"job {job} goes back into the queue" in log) == (how == "warned")
    assert site.ended(job) == {"COMPLETED"}
    assert f"{UNITS - len(kept)} new, {len(kept)} kept" in site.log(f"nf-imit_{job}_restart1")
    assert written(store, kept) == kept
    for key in alone.units("pred"):
        shutil.copy(alone.unit(key), store.unit(key))
    assert same_units(alone, store) == 2 * UNITS


def test_a_chain_with_arrays_of_four_gives_the_tables_of_one_process(site, chain, alone):
    assert list(chain) == ["prep", "imit", "pred", "plot"]
    for stage, job in chain.items():
        assert site.ended(job) == {"COMPLETED"}, stage
    store = site.store("of chain")
    assert same_units(alone, store) == 2 * UNITS
    same_tables(alone, store)
    for stage in ("imit", "pred"):
        for task in range(1, 5):
            assert f"{UNITS // 4} new, 0 kept" in site.log(f"nf-{stage}_{chain[stage]}_{task}")
    assert (store.figures / "control_layer1.png").exists() and (store.figures / "report_layer1.png").exists()
    assert not list(site.folder.glob("slurm_*"))


def test_a_failing_preparation_stops_the_chain_with_a_message(site, failing):
    assert [site.ended(job) for job in failing.values()] == [{"FAILED"}, *3 * [{"CANCELLED"}]]
    log = site.log(f"nf-prep_{failing['prep']}")
    assert "error: unknown dataset 'nosuch'" in log and "jobs that depend on it are cancelled" in log


@pytest.mark.parametrize("template", ["submit.slurm", "submit_imit.slurm", "submit_pred.slurm"])
def test_a_job_passes_its_arguments_on_and_is_named_after_them(template, site):
    fake = site.folder / "fake env" / "bin"
    fake.mkdir(parents=True, exist_ok=True)
    (fake / "activate").write_text(f'PATH="{fake}:$PATH"\n')
    (fake / "python").write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\n')
    (fake / "python").chmod(0o755)
    words = ["--dataset", "custom/a b", "--results", 'it\'s "here"', "*"]
    job = site.sbatch("--export=ALL,ENV=fake env", template, *words)
    assert site.ended(job) == {"COMPLETED"}
    stage = template.removesuffix(".slurm").removeprefix("submit").strip("_") or "prep"
    printed = site.log(f"nf-{stage}_{job}").splitlines()
    assert [line for line in printed if line.startswith("<")][1:] == [f"<{word}>" for word in words]
    assert f"JobName=nf-{stage} dataset custom/a b" in site.call("scontrol", "show", "job", job)
