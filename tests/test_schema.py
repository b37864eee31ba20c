"""One schema: whoever writes, reads, resumes, draws or verifies a file takes it or refuses it alike."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main_imitexp
import main_predexp
import main_prep
import neurofeedback
from analysis.base.errors import UserError
from analysis.base.files import load_pickle, save_pickle
from analysis.experiments.study import open_study
from analysis.pages.axes import load_axes
from analysis.results.fields import Wrong
from analysis.results.schema import KINDS, Kind, kind_of
from analysis.results.store import Store, finished, read, read_meta, write
from analysis.results.verify import Findings, check
from analysis.studies.causal.tables import causal_table, slope, stacked
from analysis.studies.closed_loop.tables import build_series, drift_table
from analysis.tables.control import control_table
from analysis.tables.read import load_control, load_report
from analysis.tables.report import report_table
from configs.settings import load_settings
from tasks import causal_report, evasion, steering_curve
from tasks.fault_harness import VOLATILE, equal
from tests.test_cli_errors import KEY, config, flags  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")  # of numpy, about means of nothing
MAINS: dict[str, Callable[[Sequence[str]], int]] = {
    "main_prep.py": main_prep.main, "main_imitexp.py": main_imitexp.main,
    "main_predexp.py": main_predexp.main, "neurofeedback.py": neurofeedback.main,
    "-m tasks.causal_report": causal_report.main, "-m tasks.steering_curve": steering_curve.main,
    "-m tasks.evasion": evasion.main,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A results folder and what its runs were started with."""

    store: Store
    config: Path

    def one_of(self, kind: Kind) -> Path:
        """Return a file of ``kind``: the last one, whose experiments end a study."""
        return sorted(path for path in self.store.folder.glob("*.pkl") if kind_of(path.name) is kind)[-1]


@pytest.fixture(scope="module")
def whole(config, tiny_folder, tmp_path_factory) -> Place:  # noqa: F811
    """A folder with a file of every kind, made by the scripts."""
    results = tmp_path_factory.mktemp("results")
    words, grid = flags(tiny_folder, config, results), ["--layer", "1"]
    few = ["--n_examples", "2", "--n_test", "2", "--n_experiments", "2"]
    assert main_prep.main(words) == 0
    assert main_prep.main([*words, "--process_hidden_method", "each"]) == 0
    assert main_imitexp.main([*words, *grid, "--clf", "lr", "--imit_exp_end", "2"]) == 0
    assert main_predexp.main([*words, *grid, "--clf", "lr", "--pred_exp_end", "2"]) == 0
    assert causal_report.main([*words, *grid, *few]) == 0
    assert causal_report.main([*words, *grid, *few, "--repeat_sentence"]) == 0
    assert steering_curve.main([*words, *grid, *few, "--alphas", "-1", "0", "1"]) == 0
    assert evasion.main([*words, *grid, *few, "--layers", "1,2", "--n_written", "2"]) == 0
    loop = [
        "--axes",
        "lr",
        "--loop",
        "2",
        "--loop_examples",
        "2",
        "--loop_mode",
        "write",
        "--n_experiments",
        "2",
    ]
    assert neurofeedback.main([*words, *grid, *loop]) == 0
    store = Store(results, str(tiny_folder), KEY)
    for stem in ("causal", "causal_repeated", "steering"):
        _as_once(store, stem)
    return Place(store, config)


def _as_once(store: Store, stem: str) -> None:
    """Write the experiments of a study into one file, as an earlier version did."""
    records = [read(store.study(f"{stem}_exp{exp}", "lr", 1)) for exp in (0, 1)]
    meta = [record.pop("meta") for record in records][0]
    identity = {key: value for key, value in meta.pop("identity").items() if key not in ("exp", "levels")}
    answers = [
        {key: value for key, value in one.items() if key not in ("tokens", "seconds")} for one in records
    ]
    write(store.study(stem, "lr", 1), {"experiments": answers}, identity, **meta)


@pytest.fixture
def place(whole, tmp_path) -> Place:
    """A copy to be damaged."""
    root = Path(shutil.copytree(whole.store.root, tmp_path / "results"))
    return Place(Store(root, whole.store.model, KEY), whole.config)


def test_there_is_a_file_of_every_kind_and_all_is_well(whole):
    names = [path.name for path in whole.store.folder.glob("*.pkl")]
    assert {kind_of(name) for name in names} == set(KINDS)
    assert check(whole.store.folder).well
    for name in names:
        assert read_meta(whole.store.folder / name) == load_pickle(whole.store.folder / name)["meta"]


# ---------------------------------------------------------------- who uses a file


def _use_hidden(place: Place, path: Path) -> object:
    study = open_study(place.store, load_settings(place.store.model, str(place.config), {}))
    return read(path, study.identity)["hidden"][study.axis_rows]


def _use_loop(place: Place, path: Path) -> object:
    arms = read_meta(path)["identity"]["arms"]
    return drift_table([build_series("lr", 1, 2, "write", arms, [read(path)])])


def _use_causal(place: Place, path: Path) -> object:
    return causal_table(_stacked(path))


def _use_curve(place: Place, path: Path) -> object:
    return slope(_stacked(path), [-1, 0, 1])


def _stacked(path: Path) -> np.ndarray:
    record = read(path)
    return stacked(record.get("experiments", [record]))["lean"]


USES: dict[str, Callable[[Place, Path], object]] = {
    "split": lambda place, path: load_control(place.store),
    "hidden": _use_hidden,
    "embedding": _use_hidden,
    "tokens": lambda place, path: read(path),
    "axes": lambda place, path: load_axes(place.store),
    "control": lambda place, path: control_table(load_control(place.store)),
    "report": lambda place, path: report_table(load_report(place.store)),
    "closed loop": _use_loop,
    "closed loop, donor": _use_loop,
    "causal report": _use_causal,
    "causal report, one sentence": _use_causal,
    "causal report, in one file": _use_causal,
    "causal report, one sentence, in one file": _use_causal,
    "steering curve": _use_curve,
    "steering curve, in one file": _use_curve,
    "evasion": lambda place, path: read(path),
}


def taken(function: Callable[[Place, Path], object], place: Place, path: Path) -> bool:
    """Return whether a reader takes the file; the only other way is an error of one line."""
    try:
        function(place, path)
    except UserError as error:
        assert path.name in str(error) and len(str(error).splitlines()) == 1
        return False
    return True


# ---------------------------------------------------------------- changed files


def changes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (how, changed value): what a bug, another version or a stranger may have left in a field."""
    yield from (("lacking", None), ("a number", 3), ("text", "x"), ("a list", []), ("a mapping", {}))
    if isinstance(value, np.ndarray):
        yield from _changed_arrays(value)
    elif isinstance(value, list) and value:
        yield from (("shorter", value[:-1]), ("twice the first", [value[0], value[0], *value[2:]]))
        yield from (("another type in it", [*value[:-1], 7.5]), ("reversed", value[::-1]))
        if isinstance(value[0], dict):
            for how, part in within(value[0]):
                yield how, [part, *value[1:]]
    elif isinstance(value, dict) and value:
        first = next(iter(value))
        yield "a name more", {**value, "other": value[first]}
        yield "a number as name", {**value, 7: value[first]}
        for how, part in changes(value[first]):
            yield f"first {how}", {**value, first: part}
    elif isinstance(value, float):
        yield from (("nan", float("nan")), ("negative", -1.0))


def _changed_arrays(value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "as text", value.astype(str)
    yield "as numbers of another kind", value.astype(int if value.dtype.kind == "f" else float)
    yield "complex", value * 1j
    yield "one axis more", value[None]
    yield "empty", value[..., :0]
    yield "negative", np.full(value.shape, -7, value.dtype if value.dtype.kind != "b" else int)
    yield "large", np.full(value.shape, 2**40, value.dtype if value.dtype.kind != "b" else int)
    yield "the first again", np.concatenate([value[:1], value[:-1]])
    yield "reversed", value[::-1]
    for axis in range(value.ndim):
        yield f"shorter along {axis}", value.take(range(value.shape[axis] - 1), axis)
    if value.ndim > 1:
        yield "axes swapped", value.swapaxes(0, 1)
    if value.dtype.kind == "f":
        for what in (np.nan, np.inf):
            some = value.copy()
            some.ravel()[0] = what
            yield from ((f"one {what}", some), (f"all {what}", np.full_like(value, what)))


def within(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (field and how, record) with one field of ``record`` changed, deleted where it is None."""
    for name, value in record.items():
        for how, new in changes(value):
            rest = {key: other for key, other in record.items() if key != name}
            yield f"{name} {how}", rest if new is None else {**record, name: new}


NAMES = [kind.name.replace(", ", "-").replace(" ", "-") for kind in KINDS]
EACH = 24
"""Changes of a file that are tried, drawn from all."""


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_verify_plots_and_runs_take_or_refuse_a_changed_file_alike(place, kind):
    """A right checksum, and one field that is not as it was."""
    path = place.one_of(kind)
    record = load_pickle(path)
    content = {name: value for name, value in record.items() if name != "meta"}
    every = list(within(content))
    chosen = np.random.default_rng(len(every)).permutation(len(every))[:EACH]
    refused = 0
    for how, changed in (every[number] for number in chosen):
        save_pickle({"meta": record["meta"], **changed}, path)
        used = taken(USES[kind.name], place, path)
        kept = finished(path, record["meta"]["identity"])
        found = path.name not in check(place.store.folder).corrupt
        assert used == kept == found == writable(path, changed, record["meta"]), how
        refused += not used
    assert refused > len(chosen) / 3


def writable(path: Path, content: dict[str, Any], meta: dict[str, Any]) -> bool:
    """Return whether our own code may write it: a slip of ours shows where it is made."""
    try:
        write(path, content, **meta)
    except Wrong:
        return False
    return True


# ---------------------------------------------------------------- what the printed command mends


def run_printed(found: Findings) -> None:
    """Run every command that verify prints."""
    for line in dict.fromkeys(found.missing.values()):
        script, rest = re.fullmatch(r"python (-m \S+|\S+)(.*)", line).groups()
        assert MAINS[script]([*shlex.split(rest), "--log_level", "error"]) == 0, line


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_command_that_verify_prints_makes_a_damaged_file_again(place, kind):
    """Wrong content under a right checksum, where a run once answered that all is there already."""
    path = place.one_of(kind)
    good = load_pickle(path)
    content = {name: value for name, value in good.items() if name != "meta"}
    bad = next(
        one for how, one in within(content) if "shorter" in how and not writable(path, one, good["meta"])
    )
    save_pickle({"meta": good["meta"], **bad}, path)
    found = check(place.store.folder)
    assert list(found.corrupt) == [path.name] and not found.well
    run_printed(found)
    after = check(place.store.folder)
    assert after.well and after.aside == [f"{path.name}.corrupt"]
    if kind.name.endswith("in one file"):
        assert not path.exists()  # its experiments have files of their own
        return
    again = load_pickle(path)
    assert equal(
        *({key: value for key, value in one.items() if key not in VOLATILE} for one in (good, again))
    )


def test_experiments_that_a_study_lacks_are_missing_and_made(place):
    lost = [path for path in place.store.folder.glob("study_*exp0*.pkl")]
    assert len(lost) > 1
    for path in lost:
        path.unlink()
    found = check(place.store.folder)
    assert set(found.missing) == {path.name for path in lost} and not found.well
    run_printed(found)
    assert check(place.store.folder).well
