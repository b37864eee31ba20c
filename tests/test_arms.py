"""Arms of control (true, sham, pushed), and what a written sentence tells by itself."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest

from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.experiments.control import Control, control_identity
from analysis.experiments.preparation import mean_embeddings, prepare
from analysis.experiments.study import open_study
from analysis.experiments.text_probes import fit_probe
from analysis.experiments.trials import ControlTrial, axis_turns, control_trials, sham_labels
from analysis.process_prompts import Prompter
from analysis.results.store import Store, UnitKey, read, write
from analysis.tables.read import load_control
from configs.settings import ARMS, Settings, arm_shots
from utils import LoadedModel

KEY = UnitKey("imit", "lr", 2, 1)
SETTINGS = Settings(
    n_axis=60, n_trial=60, max_pc=2, shots=(0, 2, 6), max_new_tokens=12, temperature=1.0, push=3.0
)


@pytest.fixture(scope="module")
def control(tiny_lm: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Control:
    """Control units of the tiny model."""
    store = Store(tmp_path_factory.mktemp("arms"), tiny_lm.name, "commonsense")
    prepare(tiny_lm, "commonsense", SETTINGS, store)
    return Control(tiny_lm, open_study(store, SETTINGS), PrefixTree(tiny_lm.model, tiny_lm.tokenizer))


@pytest.fixture(scope="module")
def unit(control: Control) -> dict:
    """One unit."""
    return control.unit(KEY)


def rows(unit: dict, **wanted: object) -> np.ndarray:
    """Return the numbers of the trials with these values."""
    columns = [np.array(unit[name]) == value for name, value in wanted.items()]
    return np.flatnonzero(np.logical_and.reduce(columns))


def test_sham_needs_examples_and_a_push_is_run_at_both_ends():
    assert arm_shots("true", (0, 2, 4, 8)) == [0, 2, 4, 8]
    assert arm_shots("sham", (0, 2, 4, 8)) == [2, 4, 8]
    assert arm_shots("pushed", (0, 2, 4, 8)) == [0, 8]
    assert arm_shots("pushed", (4,)) == [4]
    assert len(control_trials((0, 2), ("active", "inactive"), 2, ARMS)) == 8 * (2 + 1 + 2)


def test_sham_shows_the_same_scores_and_says_nothing_of_the_sentences():
    labels = np.repeat([0, 1], 500)
    drawn = np.stack([sham_labels(42, exp, labels) for exp in range(200)])
    assert (drawn.sum(axis=1) == 500).all()
    agree = (drawn == labels).mean(axis=1)
    assert abs(agree.mean() - 0.5) < 4 * agree.std() / np.sqrt(200)
    assert len({tuple(row) for row in drawn}) == 200
    np.testing.assert_array_equal(sham_labels(42, 7, labels), drawn[7])


def true_twin(trial: ControlTrial) -> ControlTrial:
    return dataclasses.replace(trial, arm="true")


def test_the_prompts_of_the_arms_differ_in_the_shown_scores_alone(control):
    requests = dict(zip(control.trials(KEY), control.requests(KEY), strict=True))
    decode = control.lm.tokenizer.decode
    shown = {
        trial: re.sub(r"(sentence|[.!?]) \[Score: \d\]", r"\1 [Score: #]", decode(request.ids))
        for trial, request in requests.items()
    }
    for trial, request in requests.items():
        assert shown[trial] == shown[true_twin(trial)]
        same = np.array_equal(request.ids, requests[true_twin(trial)].ids)
        assert same or trial.arm == "sham"
    assert not any(
        np.array_equal(request.ids, requests[true_twin(trial)].ids)
        for trial, request in requests.items()
        if trial.arm == "sham" and trial.n == 6
    )


def test_a_push_moves_the_score_of_a_sentence_that_is_read_by_its_strength(unit):
    column = unit["affected"].index("lr")
    for n, want, flip in itertools.product((0, 6), (0, 1), (False, True)):
        same = dict(n=n, want=want, flip=flip, mode="inactive")
        true, pushed = rows(unit, arm="true", **same), rows(unit, arm="pushed", **same)
        moved = unit["scores"][pushed, column] - unit["scores"][true, column]
        np.testing.assert_allclose(moved, 3.0 if want else -3.0, atol=1e-3)
        layers = unit["layers"].tolist()
        before = [layers.index(layer) for layer in layers if layer < KEY.layer]
        earlier = unit["by_layer"][:, before]
        np.testing.assert_allclose(earlier[pushed], earlier[true], rtol=1e-5)


def test_a_push_acts_on_all_that_is_written_and_on_no_earlier_token(control):
    for trial, request in zip(control.trials(KEY), control.requests(KEY), strict=True):
        if trial.arm != "pushed":
            assert not request.steering
        elif trial.mode == "active":
            assert [(s.start, s.stop) for s in request.steering] == [(len(request.ids) - 1, None)]
        else:
            assert [(s.start, s.stop) for s in request.steering] == [request.spans[0]]


def test_the_other_arms_leave_the_true_one_as_it_is(control, unit, tiny_lm):
    alone = dataclasses.replace(SETTINGS, arms=("true",))
    study = dataclasses.replace(control.study, settings=alone)
    other = Control(tiny_lm, study, PrefixTree(tiny_lm.model, tiny_lm.tokenizer)).unit(KEY)
    true = rows(unit, arm="true")
    assert [unit["text"][t] for t in true] == other["text"]
    np.testing.assert_allclose(unit["scores"][true], other["scores"], rtol=1e-4, atol=1e-4)


def test_an_axis_without_a_direction_has_no_pushed_arm(control):
    ensemble = control.trials(UnitKey("imit", "lr_ensemble", 2, 1))
    assert {trial.arm for trial in ensemble} == {"true", "sham"}


def test_the_text_alone_is_scored_as_if_it_were_a_sentence_of_the_dataset(control, unit, tiny_lm):
    prompter = Prompter(tiny_lm.tokenizer, tiny_lm.name)
    axes = control.study.axes(KEY.layer)
    plain = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False)
    for t, text in enumerate(unit["text"]):
        if not text:
            assert np.isnan(unit["neutral"][t]).all() and np.isnan(unit["words"][t])
            continue
        encoded = prompter.encode(axis_turns(control.study.prompts, text))
        state = plain.read([Request(encoded.ids, encoded.spans)], [KEY.layer])[0].pooled[0]
        np.testing.assert_allclose(unit["neutral"][t, :-1], axes.scores(state)[0], rtol=1e-3, atol=1e-3)
    prepared = control.study.scores(KEY.layer, "lr")
    inactive = rows(unit, mode="inactive")
    place = [control.study.sentences.index(unit["text"][t]) for t in inactive]
    np.testing.assert_allclose(unit["neutral"][inactive, 0], prepared[place], rtol=1e-3, atol=1e-3)


def test_the_probes_of_the_text_see_the_text_alone(control, unit, tiny_lm):
    inactive = rows(unit, mode="inactive")
    by_text = {}
    for t in inactive:
        by_text.setdefault(unit["text"][t], set()).add((unit["words"][t], unit["embedding"][t]))
    assert all(len(values) == 1 for values in by_text.values())
    text = unit["text"][inactive[0]]
    encoded = Prompter(tiny_lm.tokenizer, tiny_lm.name).encode(axis_turns(control.study.prompts, text))
    stored = read(control.study.store.embedding)["hidden"][control.study.sentences.index(text)]
    np.testing.assert_allclose(mean_embeddings(tiny_lm, [encoded])[0], stored, rtol=1e-5, atol=1e-6)


def test_a_probe_finds_what_is_in_the_features_and_scales_it_by_held_out_sentences(rng):
    truth = rng.standard_normal(30)
    features, others = rng.standard_normal((400, 30)), rng.standard_normal((300, 30))
    wanted = features @ truth + 0.1 * rng.standard_normal(400)
    probe = fit_probe(features, wanted, np.repeat(np.arange(200), 2), others)
    found = probe.score(others)
    assert np.corrcoef(found, others @ truth)[0, 1] > 0.99
    assert abs(found.std() - 1) < 1e-5 and abs(found.mean()) < 1e-5
    assert fit_probe(np.ones((20, 3)), rng.standard_normal(20), np.arange(20), np.ones((5, 3))) is None


def test_the_arms_of_stored_units_become_series_of_their_own(control, unit, tiny_lm):
    store, identity = control.study.store, control_identity(control.study, KEY)
    write(store.unit(KEY), {**unit, "seconds": 1.0}, identity, **control.study.meta(tiny_lm))
    data = load_control(store)
    assert {arm: [s.shots.tolist() for s in series] for arm, series in data.arms.items()} == {
        "true": [[0, 2, 6]], "sham": [[2, 6]], "pushed": [[0, 6]],
    }  # fmt: skip
    for arm, (series,) in data.arms.items():
        for t in rows(unit, arm=arm):
            cell = (
                0, series.shots.tolist().index(unit["n"][t]), series.modes.index(unit["mode"][t]),
                int(unit["flip"][t]), unit["want"][t],
            )  # fmt: skip
            column = unit["affected"].index("lr")
            assert series.target[cell] == unit["scores"][t, column]
            assert series.neutral[cell][series.affected.index("lr")] == unit["neutral"][t, column]
            assert (series.measured["words"][cell], series.measured["embedding"][cell]) == (
                unit["words"][t],
                unit["embedding"][t],
            )
            assert series.text[cell] == unit["text"][t]


def test_a_unit_of_before_the_arms_is_read_as_the_true_one(control, unit, tiny_lm, tmp_path):
    true = rows(unit, arm="true")
    old = {
        k: ([v[t] for t in true] if isinstance(v, list) and len(v) == len(unit["n"]) else v)
        for k, v in unit.items()
    }
    old = {
        k: v[true] if isinstance(v, np.ndarray) and len(v) == len(unit["n"]) else v for k, v in old.items()
    }
    for name in ("arm", "neutral", "words", "embedding"):
        del old[name]
    identity = {k: v for k, v in control_identity(control.study, KEY).items() if k not in ("arms", "push")}
    store = Store(tmp_path, tiny_lm.name, "commonsense")
    write(store.unit(KEY), {**old, "seconds": 1.0}, identity, **control.study.meta(tiny_lm))
    data = load_control(store)
    assert [s.arm for s in data.series] == ["true"] and not data.arms["sham"] and not data.arms["pushed"]
    assert np.isnan(data.series[0].neutral).all() and np.isfinite(data.series[0].target[:, :, 1]).all()
