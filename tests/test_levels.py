"""Quantile levels and lr_ensemble: the cuts, what is shown, the files, and runs of a tiny model."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.axes.ensemble import fit_ensemble
from analysis.axes.levels import level_cuts, to_levels
from analysis.axes.names import ENSEMBLE
from analysis.base.errors import UserError
from analysis.experiments import preparation, runs
from analysis.experiments import study as study_module
from analysis.experiments.control import ControlStage
from analysis.experiments.machine import Machine
from analysis.experiments.report import Baselines
from analysis.experiments.trials import ControlTrial, control_trials, control_turns, mirrored, report_turns
from analysis.process_prompts import load_prompts
from analysis.results.store import Store, UnitKey, read
from analysis.tables.read import load_control, load_report
from configs.settings import Settings
from data import load
from tests import fake_results
from tests.test_pipeline import write_custom

# ---------------------------------------------------------------- cuts


def test_cuts_are_quantiles_of_each_side_and_the_threshold_is_the_middle_one():
    scores = np.array([4, -9, 1, -6, 3, -3, 2, 0])  # below: -9 -6 -3 0, above: 1 2 3 4
    np.testing.assert_allclose(level_cuts(scores, 0, 2), [0])
    np.testing.assert_allclose(level_cuts(scores, 0, 4), [-4.5, 0, 2.5])
    np.testing.assert_allclose(level_cuts(scores, 0, 8), [-6.75, -4.5, -2.25, 0, 1.75, 2.5, 3.25])


def test_one_side_does_not_move_the_cuts_of_the_other():
    scores = np.array([-2.0, -1.0, 1.0, 2.0])
    far = np.array([-200.0, -100.0, 1.0, 2.0])
    assert level_cuts(scores, 0, 4)[2] == level_cuts(far, 0, 4)[2] == 1.5
    assert level_cuts(far, 0, 4)[0] == -150


def test_two_levels_are_the_scores_above_the_threshold(rng):
    scores = np.append(rng.normal(size=50), [0.25, 0.25])  # a score at the threshold is not above it
    labels = to_levels(scores, level_cuts(scores, 0.25, 2))
    np.testing.assert_array_equal(labels, scores > 0.25)
    assert labels.dtype == np.int64 and labels[-1] == 0


@pytest.mark.parametrize("levels", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("n", [40, 61])
def test_levels_of_a_side_are_equally_frequent_among_the_fitting_scores(levels, n, rng):
    scores = rng.exponential(size=n)
    threshold = np.quantile(scores, 0.4)
    labels = to_levels(scores, level_cuts(scores, threshold, levels))
    counts = np.bincount(labels, minlength=levels)
    assert len(counts) == levels and counts.sum() == n
    for side in np.split(counts, 2):
        assert side.max() - side.min() <= 1
    np.testing.assert_array_equal(labels >= levels / 2, scores > threshold)
    assert (np.diff(labels[np.argsort(scores)]) >= 0).all()


def test_too_few_sentences_on_a_side_are_an_error_with_both_counts():
    with pytest.raises(UserError, match=r"8 levels need 4 .* 3 below and 5 above"):
        level_cuts(np.array([-3, -2, -1, 1, 2, 3, 4, 5]), 0, 8)
    with pytest.raises(UserError, match="6 below and 2 above"):  # more on the other side does not help
        level_cuts(np.array([-6, -5, -4, -3, -2, -1, 1, 2]), 0, 6)
    assert len(level_cuts(np.array([-1.0, 1.0]), 0, 2)) == 1


def test_equal_scores_are_an_error():
    with pytest.raises(UserError, match="too many equal values for 6 levels"):
        level_cuts(np.array([-1, -1, -1, -1, 1, 2, 3, 4]), 0, 6)


# ---------------------------------------------------------------- what is shown


def test_flips_count_the_labels_from_the_other_end():
    assert mirrored([0, 1, 4, 5], 6) == [5, 4, 1, 0]
    assert mirrored(np.array([0, 1]), 2) == [1, 0]


@pytest.mark.parametrize(("flip", "shown"), [(False, "053"), (True, "502")])
def test_every_stage_shows_the_mirrored_level(flip, shown):
    prompts, sentences = load_prompts("commonsense"), ["One.", "Two.", "Three.", "Four."]
    control = control_turns(ControlTrial(3, flip, 5, "inactive", 6), prompts, sentences, [0, 5, 3, 1])
    report = report_turns(prompts, sentences[:3], [0, 5, 3], flip, 6)
    for turns in (control, report):
        texts = [turn.content for turn in turns if turn.role == "assistant"]
        assert "".join(re.findall(r"\[Score: (\d)\]", " ".join(texts))) == shown


def test_control_asks_for_the_lowest_and_the_highest_level():
    trials = control_trials((0, 2), ("active", "inactive"), levels=6)
    assert len(trials) == 16 and {trial.levels for trial in trials} == {6}
    assert {(t.target, t.flip, t.want) for t in trials} == {
        (0, False, 0), (5, False, 1), (0, True, 1), (5, True, 0)
    }  # fmt: skip
    turns = control_turns(trials[2], load_prompts("commonsense"), ["One."], [0])
    assert trials[2].target == 5 and "[Score: 5]" in turns[-1].content


@pytest.mark.parametrize("kind", ["control", "report"])
@pytest.mark.parametrize("levels", [2, 4, 6, 8, 10])
def test_the_system_text_names_the_lowest_and_the_highest_label(kind, levels):
    text = load_prompts("commonsense").system(kind, levels)
    assert re.findall(r"\[Score: (\d+)\]", text) == ["0", str(levels - 1)]
    assert "{" not in text


# ---------------------------------------------------------------- files


def test_units_of_two_and_of_eight_levels_lie_side_by_side(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=2, levels=(2, 8))
    names = {path.name for path in store.folder.glob("imit_*")}
    assert names == {f"imit_lr_layer15{part}_exp{e}.pkl" for part in ("", "_levels8") for e in (0, 1)}
    for kind in ("imit", "pred"):
        expected = [UnitKey(kind, "lr", 15, e, n) for e in (0, 1) for n in (2, 8)]
        assert store.units(kind) == expected
    assert [s.levels for s in load_control(store).series] == [2, 8]
    assert [s.logits.shape[-1] for s in load_report(store).series] == [2, 8]


# ---------------------------------------------------------------- runs of a tiny model

WORDS = "mill lake barn tree shop town road farm hill park".split()
SETTINGS = Settings(
    n_axis=48, n_trial=32, max_pc=4, shots=(0, 3), modes=("inactive",), report_examples=24, levels=(2, 6)
)


@pytest.fixture(scope="module")
def tiny(tiny_lm, tmp_path_factory) -> SimpleNamespace:
    """Units of 2 and 6 levels: control of lr_ensemble at two layers, report of lr at one."""
    root = tmp_path_factory.mktemp("levels")
    rows = [(i, f"The {WORDS[i % 10]} is by the {WORDS[i // 10]}.", i % 2) for i in range(100)]
    models = {tiny_lm.name: tiny_lm}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "DATA_DIR", root / "data")
        write_custom(root / "data" / "custom" / "words", rows)
        store = Store(root / "results", tiny_lm.name, "custom/words")
        preparation.prepare(tiny_lm, "custom/words", SETTINGS, store)
        done, _ = runs.run_control(store, SETTINGS, [ENSEMBLE], "1,2", [0], models=models)
        runs.run_report(store, store.model, SETTINGS, ["lr", ENSEMBLE], "2", [0], models=models)
    study = study_module.open_study(store, SETTINGS)
    return SimpleNamespace(store=store, study=study, models=models, done=done)


def test_a_report_unit_of_six_levels_has_six_logits_and_refines_the_unit_of_two(tiny):
    two, six = (read(tiny.store.unit(UnitKey("pred", "lr", 2, 0, n))) for n in (2, 6))
    assert two["logits"].shape == (2, 24, 2) and six["logits"].shape == (2, 24, 6)
    assert np.isfinite(six["logits"]).all()
    np.testing.assert_array_equal(two["rows"], six["rows"])
    np.testing.assert_array_equal(six["labels"] >= 3, two["labels"])
    assert set(six["labels"]) <= set(range(6)) and len(set(six["labels"])) > 2
    assert set(two["labels"]) == {0, 1}
    for name, chance in two["observers"].items():  # observers know sides only
        np.testing.assert_array_equal(six["observers"][name], chance)


def test_levels_of_a_study_cut_the_held_out_scores_evenly(tiny):
    for axis in ("lr", "pc1", ENSEMBLE):
        labels = tiny.study.labels(2, axis, 6)
        counts = np.bincount(labels[tiny.study.trial_rows], minlength=6)
        assert counts.min() >= 5 and counts.max() <= 6  # 32 / 6
        np.testing.assert_array_equal(labels >= 3, tiny.study.labels(2, axis))


def test_an_observer_is_asked_for_the_upper_half_of_the_levels(tiny):
    baselines, rows = Baselines(tiny.study), tiny.study.trial_rows[:20]
    six, two = np.arange(20) % 6, (np.arange(20) % 6 >= 3).astype(int)
    found = baselines.predict(UnitKey("pred", "lr", 2, 0, 6), rows, six)
    expected = baselines.predict(UnitKey("pred", "lr", 2, 0, 2), rows, two)
    for name, chance in found.items():
        np.testing.assert_array_equal(chance, expected[name])


def test_every_unit_of_the_grid_is_made_once_per_level(tiny):
    grid = tiny.study, [ENSEMBLE], "1,2", [0]
    keys = ControlStage(*grid, Machine()).units()
    assert tiny.done == 4 and tiny.store.units("imit") == sorted(keys)
    again = runs.run_control(tiny.store, SETTINGS, [ENSEMBLE], "1,2", [0], models=tiny.models)
    assert again == (0, 4)


def test_a_unit_of_two_levels_is_never_taken_for_one_of_six(tiny, tmp_path):
    key = UnitKey("pred", "lr", 2, 0, 6)
    path = tmp_path / "unit.pkl"
    path.write_bytes(tiny.store.unit(UnitKey("pred", "lr", 2, 0)).read_bytes())
    identity = study_module.unit_identity(tiny.study, key, ("report_examples",))
    with pytest.raises(UserError, match="levels: 2 there, 6 now"):
        read(path, identity)


def test_a_component_read_at_other_layers_is_turned_to_agree_with_the_targeted_one(tiny):
    key = UnitKey("imit", "pc1", 2, 0)
    rows = tiny.study.axis_rows
    turns = [tiny.study.turn(layer, key) for layer in tiny.study.layers]
    target = tiny.study.scores(2, "pc1")[rows]
    for layer, turn in enumerate(turns):
        assert np.corrcoef(turn * tiny.study.scores(layer, "pc1")[rows], target)[0, 1] > 0
    assert turns[2] == 1 and {tiny.study.turn(layer, UnitKey("imit", "lr", 2, 0)) for layer in range(4)} == {
        1
    }


def test_targets_on_disk_are_the_lowest_and_the_highest_level(tiny):
    for n in (2, 6):
        unit = read(tiny.store.unit(UnitKey("imit", ENSEMBLE, 1, 0, n)))
        assert set(unit["target"]) == {0, n - 1}
        np.testing.assert_array_equal(unit["want"], (unit["target"] > 0) ^ unit["flip"])


def test_too_few_sentences_for_the_levels_are_found_before_any_work(tiny):
    few = replace(tiny.study, trial_rows=tiny.study.trial_rows[:5])
    with pytest.raises(UserError, match="6 levels need 3 sentences"):
        few.check_sides([UnitKey("imit", ENSEMBLE, 2, 0, 6)])


# ---------------------------------------------------------------- lr_ensemble


def raw_ensemble(tiny) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over layers of all sentences' lr scores, and the held-out rows."""
    files = [read(tiny.store.axes(layer)) for layer in range(4)]
    mean = np.mean([f["scores"][:, f["names"].index("lr")].astype(float) for f in files], axis=0)
    return mean, read(tiny.store.split)["trial_rows"]


def test_ensemble_scores_are_the_standardised_mean_of_the_layers_scores(tiny):
    mean, rows = raw_ensemble(tiny)
    expected = (mean - mean[rows].mean()) / mean[rows].std()
    np.testing.assert_allclose(tiny.study.scores(0, ENSEMBLE), expected, atol=1e-5)
    labels = tiny.study.labels(0, ENSEMBLE)
    np.testing.assert_array_equal(labels, expected > np.median(expected[rows]))
    unit = read(tiny.store.unit(UnitKey("pred", ENSEMBLE, 2, 0)))
    np.testing.assert_allclose(unit["scores"], expected[unit["rows"]], atol=1e-5)
    np.testing.assert_array_equal(unit["labels"], labels[unit["rows"]])


def test_ensemble_thresholds_are_the_median_or_zero():
    by_layer, rows = np.array([[0.0, 2.0], [1, 3], [9, 9], [50, 50]]), np.arange(3)  # means 1, 2, 9
    median, zero = (fit_ensemble(by_layer, rows, name) for name in ("median", "zero"))
    assert median.threshold == pytest.approx((2 - 4) / np.std([1, 2, 9])) and zero.threshold == 0
    np.testing.assert_allclose(median.scores, (np.array([1, 2, 9, 50]) - 4) / np.std([1, 2, 9]), rtol=1e-6)
    assert np.isnan(median.score(np.array([[np.nan, np.nan]]))).all()


def test_a_control_unit_has_the_ensemble_of_the_layers_scores_of_its_sentences(tiny):
    mean, rows = raw_ensemble(tiny)
    unit = read(tiny.store.unit(UnitKey("imit", ENSEMBLE, 1, 0)))
    assert unit["affected"][-1] == ENSEMBLE and unit["scores"].shape == (12, len(unit["affected"]))
    # by_layer of lr_ensemble holds its members, the lr score at every layer
    expected = (unit["by_layer"].astype(float).mean(axis=1) - mean[rows].mean()) / mean[rows].std()
    np.testing.assert_allclose(unit["scores"][:, -1], expected, atol=1e-4)
    np.testing.assert_allclose(unit["by_layer"][:, 1], unit["scores"][:, unit["affected"].index("lr")])
    assert np.isnan(unit["projection"]).all() and np.ptp(expected) > 0


def test_the_ensemble_is_the_same_at_whichever_layer_it_is_filed(tiny):
    one, two = (read(tiny.store.unit(UnitKey("imit", ENSEMBLE, layer, 0, 6))) for layer in (1, 2))
    assert one["text"] == two["text"]
    for column in ("by_layer", "want", "rows"):
        np.testing.assert_array_equal(one[column], two[column])
    np.testing.assert_array_equal(one["scores"][:, -1], two["scores"][:, -1])
    assert np.abs(one["scores"][:, 0] - two["scores"][:, 0]).max() > 1e-3  # the other axes are the layer's


def test_originals_of_the_ensemble_are_the_scores_of_the_trial_sentences(tiny):
    data = load_control(tiny.store)
    expected = tiny.study.scores(1, ENSEMBLE)[tiny.study.trial_rows]
    np.testing.assert_allclose(data.originals[ENSEMBLE, 1], expected, rtol=1e-6)
