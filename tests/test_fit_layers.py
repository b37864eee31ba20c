"""Axes of many layers are fitted side by side, with the same results."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from analysis.axes.solvers import svd_rotation
from analysis.base import pickles
from analysis.base.errors import UserError
from analysis.base.files import load_pickle
from analysis.classifiers import fit_layers
from analysis.cli.script import script
from analysis.experiments import preparation
from analysis.experiments.preparation import prepare
from analysis.results.store import Store
from configs.settings import Settings
from data.load import load_dataset


def test_the_number_of_threads_changes_no_bit_of_a_prepared_folder(tiny_lm, tmp_path, monkeypatch):
    settings, made = Settings(n_axis=40, n_trial=40, max_pc=8), []
    for number in (1, 4):
        monkeypatch.setattr("analysis.classifiers.cores", lambda number=number: number)
        store = Store(tmp_path / str(number), tiny_lm.name, "commonsense")
        prepare(tiny_lm, "commonsense", settings, store)
        made.append({path.name: load_pickle(path) for path in store.folder.iterdir()})
    assert len(made[0]) == 2 + 2 * tiny_lm.n_layers and made[0].keys() == made[1].keys()
    for name, record in made[0].items():
        one, many = ({k: v for k, v in r.items() if k != "meta"} for r in (record, made[1][name]))
        assert pickles.dumps(one) == pickles.dumps(many), name
    dataset = load_dataset("commonsense", settings.seed, 40, 40).compact().dataset
    encoded = preparation.encode_sentences(tiny_lm, dataset, preparation.load_prompts(dataset.key))
    tree = preparation.PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    for layer in range(tiny_lm.n_layers):
        expected = preparation.pool_sentences(tree, encoded, [layer])[:, 0]
        np.testing.assert_allclose(made[1][f"hidden_layer{layer}.pkl"]["hidden"], expected, rtol=1e-6)


def test_layers_are_fitted_side_by_side_as_many_as_workers_on_one_blas_thread_each():
    together, most, blas, order = threading.Barrier(3, timeout=600), 0, set(), []
    at_work, lock = set(), threading.Lock()

    def one(layer):
        nonlocal most
        with lock:
            at_work.add(layer)
            most = max(most, len(at_work))
        together.wait()  # breaks if fewer than three are ever at work
        blas.update(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
        with lock:
            at_work.remove(layer)

    with threadpool_limits(2, user_api="blas"):
        fit_layers(one, range(12), lambda: order.append(len(order)), workers=3)
        after = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
    assert most == 3 and blas == {1} and after == {2} and len(order) == 12


def test_a_decomposition_lets_other_threads_run(rng):
    data, ticks = rng.standard_normal((700, 900)), [time.perf_counter()]
    with threadpool_limits(1, user_api="blas"):
        thread = threading.Thread(target=svd_rotation, args=(data, data.mean(axis=0), 0))
        thread.start()
        while thread.is_alive():
            time.sleep(0.0005)
            ticks.append(time.perf_counter())
    assert np.diff(ticks).max() < (ticks[-1] - ticks[0]) / 2, "this thread stood still"


def test_the_error_of_the_first_bad_layer_is_raised_and_no_layer_begins_after_it():
    begun, second = [], threading.Event()

    def one(layer):
        begun.append(layer)
        if layer == 2:
            second.set()
            raise UserError("layer 2")
        if layer == 1:
            assert second.wait(600)
            raise UserError("layer 1")
        time.sleep(0.01 * (layer > 2))

    with pytest.raises(UserError, match="layer 1"):
        fit_layers(one, range(500), workers=2)
    assert sorted(begun) == list(range(len(begun))) and 3 <= len(begun) < 400


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_layers_in_work_end_and_begins_no_other(number, code, capsys):
    begun, ended = [], []

    def one(layer):
        begun.append(layer)
        if layer == 2:
            os.kill(os.getpid(), number)
        time.sleep(0.01)
        ended.append(layer)

    assert script(lambda argv=None: fit_layers(one, range(500), workers=2))() == code
    assert "resume" in capsys.readouterr().err
    assert sorted(begun) == sorted(ended) and 3 <= len(begun) < 400
