"""How long and how much memory the figures of a full grid take, from synthetic caches.

    python -m tasks.benchmarks.bench_plots               5 layers x 8 axes x 100 experiments x 9 N, 1.2 GiB
    python -m tasks.benchmarks.bench_plots --n_exp 4     a quick look

Writes synthetic results of the size that an 8B model makes (every PC as affected axis, hidden size 4096,
32 layers) to a temporary folder, then runs ``plot_imit.py --all`` and ``plot_pred.py --all`` on them, each in
a process of its own, and prints seconds and peak resident memory.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.axes.names import ENSEMBLE, LR, MEANDIFF, PAPER_AXES, RANDOM, SHUFFLED, numbered, pc
from analysis.base.files import ROOT
from analysis.results import store as results
from analysis.results.store import Store, UnitKey
from tests import fake_results

AFFECTED = (LR, MEANDIFF, numbered(RANDOM, 0), numbered(SHUFFLED, 0), *map(pc, range(1, 513)), ENSEMBLE)
LAYERS = (0, 8, 16, 23, 31)
SHOTS = (0, 2, 4, 8, 16, 32, 64, 128, 256)
N_LAYERS, HIDDEN = 32, 4096


def write_grid(root: Path, n_exp: int, report_n: int = 600) -> Store:
    """Write split, axes and all units of a full grid."""
    store, rng = fake_results.fake_store(root, "org/synthetic-8B"), np.random.default_rng(0)
    fake_results.write_split(store, rng)
    fake_results.write_axes(store, AFFECTED[:-1], N_LAYERS, rng, hidden=HIDDEN)
    about = {"model_name": store.model, "n_layers": N_LAYERS, "n_parameters": 8_030_261_248}
    for layer, axis, exp in itertools.product(LAYERS, PAPER_AXES, range(n_exp)):
        own = {"axis": axis, "layer": layer, "exp": exp, "levels": 2, "seed": 42}
        unit = fake_results.control_unit(
            axis, layer, rng, affected=AFFECTED, n_layers=N_LAYERS, shots=SHOTS, hidden=HIDDEN
        )
        results.write(store.unit(UnitKey("imit", axis, layer, exp)), unit, own, **about)
        report = fake_results.report_unit(rng, report_n)
        results.write(store.unit(UnitKey("pred", axis, layer, exp)), report, own, **about)
    return store


def timed(script: str, store: Store) -> tuple[float, float]:
    """Return seconds and peak resident memory in GiB of ``script --all`` in a process of its own."""
    words = [sys.executable, script, "--model", store.model, "--results", str(store.root), "--all"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, max(before, peak) / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n_exp", type=int, default=100, help="experiments (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the results here, and use what is there already")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.folder or Path(scratch)
        store = Store(root, "org/synthetic-8B", "commonsense")
        if not store.units("pred"):
            start = time.perf_counter()
            store = write_grid(root, args.n_exp)
            seconds = time.perf_counter() - start
            print(f"wrote {len(store.units('imit'))} control and as many report units in {seconds:.0f} s")
        size = sum(path.stat().st_size for path in store.folder.glob("*.pkl"))
        print(f"{size / 2**30:.2f} GiB in {store.folder}")
        for script in ("plot_imit.py", "plot_pred.py"):
            seconds, peak = timed(script, store)
            print(f"{script} --all: {seconds:.1f} s, peak of all scripts so far {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
