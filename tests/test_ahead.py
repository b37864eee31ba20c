"""What the next unit needs is made in a thread of its own, once, and errors come where it is taken."""

from __future__ import annotations

import threading

import pytest

from analysis.base.errors import UserError
from analysis.experiments import runs
from analysis.experiments.ahead import Ahead
from analysis.experiments.preparation import prepare
from analysis.results.store import Store, UnitKey
from configs.settings import Settings

KEYS = [UnitKey("imit", "lr", 1, exp, 2) for exp in range(3)]


def test_the_next_unit_is_made_while_the_present_one_is_in_work():
    made, second = [], threading.Event()

    def make(key):
        made.append((key.exp, threading.current_thread() is threading.main_thread()))
        if key.exp == 1:
            second.set()
        return key.exp

    ahead = Ahead(make)
    ahead.keep(KEYS[0], KEYS[1])
    assert ahead.take(KEYS[0]) == 0
    assert second.wait(20), "the second unit is not begun before the first is done"
    ahead.keep(KEYS[1], KEYS[2])
    assert [ahead.take(key) for key in KEYS[1:]] == [1, 2]
    assert made == [(0, False), (1, False), (2, False)]  # each once, in order


def test_what_was_made_for_units_done_elsewhere_is_let_go():
    made = []
    ahead = Ahead(lambda key: made.append(key.exp) or key.exp)
    ahead.keep(KEYS[0], KEYS[1])
    ahead.keep(KEYS[2], None)
    assert list(ahead.begun) == [KEYS[2]] and ahead.take(KEYS[2]) == 2
    assert ahead.take(KEYS[1]) == 1, "it is made again when it is needed after all"


def test_an_error_is_raised_where_the_thing_is_taken_and_the_next_one_is_made():
    def make(key):
        if key.exp == 0:
            raise UserError("no sentence")
        return key.exp

    ahead = Ahead(make)
    ahead.keep(KEYS[0], KEYS[1])
    with pytest.raises(UserError, match="no sentence"):
        ahead.take(KEYS[0])
    assert ahead.take(KEYS[1]) == 1


@pytest.mark.parametrize("stage", ["control", "report"])
def test_a_grid_tells_each_unit_and_the_one_after_it(stage, tiny_lm, tmp_path, monkeypatch):
    lm, told = tiny_lm, []
    settings = Settings(n_axis=20, n_trial=20, max_pc=1, shots=(0, 2), max_new_tokens=3, report_examples=6)
    store = Store(tmp_path, lm.name, "commonsense")
    prepare(lm, store.dataset, settings, store)
    real = Ahead.keep
    monkeypatch.setattr(Ahead, "keep", lambda self, *keys: told.append(keys) or real(self, *keys))
    options = {"models": {lm.name: lm}}
    if stage == "control":
        runs.run_control(store, settings, ["lr"], "1", range(3), **options)
    else:
        runs.run_report(store, lm.name, settings, ["lr"], "1", range(3), **options)
    assert [[key and key.exp for key in keys] for keys in told] == [[0, 1], [1, 2], [2, None]]
