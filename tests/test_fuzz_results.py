"""Result files of any content are taken or refused by plots, verify and runs alike: no traceback, no hang."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plot_imit
import plot_pred
from analysis.base.files import load_pickle, save_pickle
from analysis.pages import figures_folder
from analysis.results.store import Store, finished
from analysis.results.verify import check
from tests import fake_results
from tests.test_fuzz import STRANGE, exits, fuzz

# ---------------------------------------------------------------- results


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Store:
    """Two experiments on two axes of one layer."""
    return fake_results.write_study(
        tmp_path_factory.mktemp("study"), layers=(0,), n_layers=2, n_exp=2, shots=(0, 4), report_n=8
    )


CONTROL = (*fake_results.control_unit("lr", 0, np.random.default_rng(0), affected=["lr"], n_layers=1),)
REPORT = (*fake_results.report_unit(np.random.default_rng(0), 4),)
AXES = ("names", "directions", "mean", "scales", "thresholds", "variance_ratio", "accuracy", "scores")
WHOLE = {"number": 3, "text": "x", "none": None, "list": [], "mapping": {}}
CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "all nan": lambda a: np.full(a.shape, np.nan), "negative": lambda a: np.full(a.shape, -7),
    "large": lambda a: np.full(a.shape, 2**40), "complex": lambda a: a * 1j,
    "as text": lambda a: a.astype(str),
    "shorter": lambda a: a[:-1], "empty": lambda a: a[..., :0], "one more axis": lambda a: a[None],
    "transposed": lambda a: a.T, "twice": lambda a: np.concatenate([a, a]),
    "nothing, 2^40 wide": lambda a: np.empty((0, 2**40), np.float32),
}  # fmt: skip
HOW = [*WHOLE, *CHANGES, "deleted"]


def change(record: dict[str, Any], key: str, how: str) -> None:
    """Change one value of a record, or all values of a mapping in it."""
    if how == "deleted":
        del record[key]
    elif how in WHOLE:
        record[key] = WHOLE[how]
    else:
        parts = record[key] if isinstance(record[key], dict) else {"": record[key]}
        with contextlib.suppress(IndexError, TypeError, ValueError):  # not every change fits every value
            parts = {name: CHANGES[how](np.array(value)) for name, value in parts.items()}
        record[key] = parts if isinstance(record[key], dict) else parts[""]


def draws(study: Store, out: Path, path: Path, main: Callable, key: str, how: str, figure: str) -> None:
    """Change one file; plots, verify and a run take it or refuse it alike; put it back."""
    good = path.read_bytes()
    record = load_pickle(path)
    change(record, key, how)
    try:
        save_pickle(record, path)
        drawn = exits(main, ["--results", str(study.root), "--out", str(out), "--figure", figure]) == 0
        whole = path.name not in check(study.folder).corrupt
        kept = finished(path, record["meta"]["identity"])
    finally:
        path.write_bytes(good)
    assert drawn == whole == kept


@pytest.fixture
def unwritten(monkeypatch) -> None:
    """Figures are put together, but not rendered, which would take most of the time."""
    monkeypatch.setattr(figures_folder, "figure_files", lambda figure, stem, formats: {})


PLOTS = ["effect", "readout", "accumulation", "cosine", "scores"]


@STRANGE
@fuzz(max_examples=60)
@given(key=st.sampled_from(CONTROL), how=st.sampled_from(HOW), figure=st.sampled_from(PLOTS))
def test_a_control_unit_of_any_shape_is_drawn_or_refused_by_all(unwritten, study, tmp_path, key, how, figure):
    draws(study, tmp_path, study.unit(study.units("imit")[1]), plot_imit.main, key, how, figure)


@STRANGE
@fuzz(max_examples=60)
@given(key=st.sampled_from(REPORT), how=st.sampled_from(HOW))
def test_a_report_unit_of_any_shape_is_drawn_or_refused_by_all(unwritten, study, tmp_path, key, how):
    draws(study, tmp_path, study.unit(study.units("pred")[1]), plot_pred.main, key, how, "report")


@STRANGE
@fuzz(max_examples=40)
@given(key=st.sampled_from(AXES), how=st.sampled_from(HOW))
def test_an_axes_file_of_any_shape_is_drawn_or_refused_by_all(unwritten, study, tmp_path, key, how):
    draws(study, tmp_path, study.axes(0), plot_imit.main, key, how, "axes")
