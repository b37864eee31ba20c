"""A figures folder: drawing adds and replaces; processes that draw at once, or are killed, lose nothing."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from analysis.base.errors import UserError
from analysis.base.files import ROOT
from analysis.figures import style
from analysis.pages.drawn import COLUMNS, Drawn
from analysis.pages.figures_folder import add_figures, read_records
from tests import fake_results

ABOUT = {"stage": "control", "model": "m", "dataset": "d"}


@pytest.fixture
def quick(monkeypatch) -> None:
    """Every figure becomes the same small image, since rendering is slow."""
    buffer = io.BytesIO()
    imsave(buffer, np.zeros((2, 3)), format="png")
    monkeypatch.setattr(style, "figure_bytes", lambda fig, form: buffer.getvalue())


def one(name: str, *values: float, group: str = "all layers", order: int = 0) -> Drawn:
    rows = [{"metric": "x", "n": i, "value": value} for i, value in enumerate(values)]
    return Drawn(name, group, f"Caption of {name}.", Figure((1, 1)), rows, "kind", order)


def add(folder: Path, *drawn: Drawn, **about: str) -> list[str]:
    return [w.name for w in add_figures(folder, drawn, ["png"], {**ABOUT, **about}, {"seed": 1})]


def summary(folder: Path) -> dict[str, list[str]]:
    """Return figure -> its values in summary.csv."""
    found: dict[str, list[str]] = {}
    with (folder / "summary.csv").open() as handle:
        for row in csv.DictReader(handle):
            found.setdefault(row["figure"], []).append(row["value"])
    return found


def listed(folder: Path) -> list[str]:
    """Return the names on the index page, in order."""
    return re.findall(r"<figcaption><code>(.*?)</code>", html.unescape((folder / "index.html").read_text()))


# ---------------------------------------------------------------- adding


def test_a_figure_is_added_and_nothing_else_is_dropped(tmp_path, quick):
    add(tmp_path, one("a", 1, 2), one("b", 3))
    add(tmp_path, one("c", 4))
    add(tmp_path, one("r", 5), stage="report")
    assert listed(tmp_path) == ["a", "b", "c", "r"]
    assert summary(tmp_path) == {"a": ["1", "2"], "b": ["3"], "c": ["4"], "r": ["5"]}


def test_a_figure_that_is_drawn_again_replaces_its_own_rows_only(tmp_path, quick):
    add(tmp_path, one("a", 1, 2), one("b", 3))
    add(tmp_path, one("a", 7))
    assert summary(tmp_path) == {"a": ["7"], "b": ["3"]} and listed(tmp_path) == ["a", "b"]


def test_what_has_no_image_any_more_is_listed_no_more(tmp_path, quick):
    add(tmp_path, one("a", 1), one("b", 2))
    (tmp_path / "a.png").unlink()
    add(tmp_path, one("c", 3))
    assert summary(tmp_path) == {"b": ["2"], "c": ["3"]} and listed(tmp_path) == ["b", "c"]
    add(tmp_path, one("a", 4))
    assert listed(tmp_path) == ["a", "b", "c"]


def test_the_order_does_not_depend_on_which_was_drawn_last(tmp_path, quick):
    parts = [one(f"f_layer{n}", n, group=f"layer {n}", order=1) for n in (2, 10)]
    parts += [one("first", 0, order=0), one("last", 9, group="models", order=2)]
    for part in random.Random(3).sample(parts, 4):
        add(tmp_path, part)
    assert listed(tmp_path) == ["first", "f_layer2", "f_layer10", "last"] == list(summary(tmp_path))


def test_known_kinds_stand_in_the_order_of_the_registry_and_studies_after_them(tmp_path, quick):
    for name, kind, about in (("s", "loop", "loop"), ("a", "cosine", "control"), ("z", "effect", "control"),
                              ("y", "observers", "report")):  # fmt: skip
        add(tmp_path, replace(one(name, 1), kind=kind), stage=about)
    assert listed(tmp_path) == ["y", "z", "a", "s"]


def test_missing_numbers_and_those_of_numpy_are_kept(tmp_path, quick):
    rows = [{"metric": "x", "value": float("nan"), "n": np.int64(3), "low": np.float64(0.1), "p": 1e-300}]
    add(tmp_path, Drawn("a", "g", "c", Figure(), rows))
    with (tmp_path / "summary.csv").open() as handle:
        (row,) = csv.DictReader(handle)
    assert (row["value"], row["n"], row["low"], row["p"], row["q"]) == ("", "3", "0.1", "1e-300", "")
    assert tuple(row) == COLUMNS and row["model"] == "m"


def test_nothing_to_draw_is_an_error_that_leaves_the_folder_as_it_was(tmp_path, quick):
    add(tmp_path, one("a", 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="allow none of the figures asked for"):
        add(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_overview_is_made_of_two_figures_of_a_layer_and_counts_all_that_were_ever_drawn(tmp_path):
    add(tmp_path, one("a_layer3", 1, group="layer 3"), one("b", 1))
    assert not list(tmp_path.glob("overview*"))
    add(tmp_path, one("c_layer3", 2, group="layer 3"))
    assert listed(tmp_path) == ["overview_layer3", "a_layer3", "c_layer3", "b"]
    small = imread(tmp_path / "overview_layer3.png").shape
    add(tmp_path, *(one(f"{name}_layer3", 2, group="layer 3") for name in "de"))
    assert imread(tmp_path / "overview_layer3.png").shape[0] > small[0]  # a second row


# ---------------------------------------------------------------- strange files


BROKEN = [
    b"", b"[1]", b"{}", b"\xff", b"[" * 10**5, b'{"stage": 1}', b"1" * 5000,
    *(json.dumps({"stage": "s", "kind": "k", "order": 0, "name": "x", "group": "g", "caption": "c",
                  "numbers": [], **change}).encode()
      for change in ({"order": "0"}, {"order": True}, {"name": "y"}, {"group": "../../x"}, {"caption": None},
                     {"numbers": 3}, {"numbers": [3]}, {"numbers": [{"n": [1]}]}, {"more": 1})),
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_no_record_is_named_and_left_out(content, tmp_path, quick, caplog):
    add(tmp_path, one("a", 1))
    (tmp_path / "x.json").write_bytes(content)
    (tmp_path / "x.png").write_bytes((tmp_path / "a.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        add(tmp_path, one("b", 2))
    assert listed(tmp_path) == ["a", "b"] and "x.json describes no figure" in caplog.text
    assert (tmp_path / "x.json").read_bytes() == content


def test_pipes_and_folders_in_place_of_records_are_left_out(tmp_path, quick):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    add(tmp_path, one("a", 1))
    assert listed(tmp_path) == ["a"]


def test_markup_in_a_record_is_text(tmp_path, quick):
    add(tmp_path, one("a", 1))
    record = json.loads((tmp_path / "a.json").read_text())
    evil = "<script>alert(1)</script>"
    (tmp_path / "a.json").write_text(json.dumps({**record, "caption": evil}))
    add(tmp_path, one("b", 2))
    page = (tmp_path / "index.html").read_text()
    assert evil not in page and html.escape(evil) in page


# ---------------------------------------------------------------- several processes


def fork(job: Callable[[], object]) -> int:
    """Run ``job`` in a child that exits with 0 if it comes to its end."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_processes_that_draw_at_once_lose_nothing(tmp_path, quick):
    for number in range(4):
        folder = tmp_path / str(number)
        names = {w: [f"{w}{i}" for i in range(4)] for w in ("imit", "pred", "loop")}

        def draw(who: str, folder: Path = folder, names: dict[str, list[str]] = names) -> None:
            for i, name in enumerate(names[who]):
                add(folder, one(name, i), stage=who)

        children = [fork(lambda who=who: draw(who)) for who in names]
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
        every = sorted(name for part in names.values() for name in part)
        assert sorted(summary(folder)) == every
        assert sorted(listed(folder)) == every
        assert not list(folder.glob("*.lock")) and not list(folder.glob("*.part"))


def test_after_a_kill_at_any_moment_everything_is_whole_and_the_next_process_lists_it(tmp_path, quick):
    folder, rng = tmp_path / "figures", random.Random(0)
    add(folder, one("before", 0))

    def draw() -> None:
        for i in range(1000):
            add(folder, one(f"f{i % 20}", *range(50), group=f"layer {i % 3}"))

    for number in range(12):
        pid = fork(draw)
        time.sleep(0.02 + 0.15 * rng.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for path in folder.glob("*.png"):
            assert imread(path).size
        for path in folder.glob("*.json"):
            assert json.loads(path.read_text())["name"] == path.stem
        assert {"before"} <= set(summary(folder)) and all(
            len(values) in (1, 50) for values in summary(folder).values()
        )
        add(folder, one(f"after{number}", 1))
        known = {record.name for record in read_records(folder)}
        assert known == set(summary(folder)) == {name for name in listed(folder) if "overview" not in name}
        assert {"before", *(f"after{i}" for i in range(number + 1))} <= known


def test_both_plot_scripts_at_once_list_every_figure_of_both(tmp_path):
    store = fake_results.write_study(
        tmp_path, axes=("lr",), layers=(0,), n_layers=1, n_exp=2, shots=(0, 2), report_n=8
    )
    flags = ["--results", str(tmp_path), "--log_level", "warning"]
    words = [[sys.executable, script, *flags] for script in ("plot_imit.py", "plot_pred.py")]
    running = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) for line in words]
    assert [process.wait(600) for process in running] == [0, 0]
    figures = {path.stem for path in store.figures.glob("*.json")}
    assert {"control_layer0", "axes_overview", "report_layer0", "report_observers"} <= figures
    assert set(summary(store.figures)) == figures
    assert {*listed(store.figures)} == {*figures, "overview_layer0"}
