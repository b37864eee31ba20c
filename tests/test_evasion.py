"""Evasion: metrics against scikit-learn, planted shifts of known size, and the study end to end."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

import main_prep
from analysis.classifiers import fit_axes
from analysis.engine.prefix_tree import PrefixTree
from analysis.experiments import machine
from analysis.experiments.study import open_study
from analysis.process_prompts import Prompter
from analysis.results.store import Store, read
from analysis.statistics.resampling import mean_ci
from analysis.statistics.signflips import sign_flip_p
from analysis.studies.evasion import command
from analysis.studies.evasion.experiment import Trials
from analysis.studies.evasion.flags import Plan
from analysis.studies.evasion.probes import (
    CONDITIONS,
    PROBES,
    auroc,
    fit_probes,
    probe_scores,
    smallest_fpr,
    threshold_at,
    tpr_at,
)
from analysis.studies.evasion.tables import Judged, probe_rows
from configs.settings import load_settings
from tasks import evasion


def test_auroc_is_scikit_learns_also_with_ties(rng):
    one, zero = rng.integers(0, 6, (3, 40)) + 1.0, rng.integers(0, 6, (3, 25)) * 1.0
    labels = np.repeat([1, 0], [40, 25])
    expected = [roc_auc_score(labels, np.concatenate(pair)) for pair in zip(one, zero, strict=True)]
    np.testing.assert_allclose(auroc(one, zero), expected)


@pytest.mark.parametrize("fpr", [0.01, 0.1, 1 / 25])
@pytest.mark.parametrize("ties", [False, True])
def test_tpr_is_that_of_scikit_learns_roc_at_the_last_point_within_the_fpr(fpr, ties, rng):
    one, zero = rng.normal(1, 1, 60), rng.normal(0, 1, 25)
    if ties:
        one, zero = one.round(), zero.round()
    false, true, _ = roc_curve(np.repeat([1, 0], [60, 25]), np.r_[one, zero], drop_intermediate=False)
    assert tpr_at(one, zero, fpr) == pytest.approx(true[false <= fpr + 1e-9].max())


def test_a_threshold_lets_the_allowed_share_of_negatives_through_and_that_is_one_at_least():
    negative = np.arange(300.0)
    assert threshold_at(negative, 0.01) == 296  # 297, 298 and 299 are above
    assert threshold_at(negative[:50], 0.01) == 49  # none
    assert smallest_fpr(300) == smallest_fpr(100) == 0.01
    assert smallest_fpr(40) == 0.025 and threshold_at(negative[:40], 0.025) == 38


def planted(away: float, separation: float = 1.5, seed: int = 0, experiments: int = 40) -> Judged:
    """Return scores of variance 1; class 1 is ``separation`` higher, ``away`` lower where low is wanted."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 400)
    sides = np.array([0.0, separation])[:, None]
    before = rng.normal(size=(experiments, 2, 12)) + sides
    control = rng.normal(size=(experiments, 2, 2, 2, 12)) + sides
    control[:, :, 0, 1] -= away
    written = rng.normal(size=(experiments, 2, 2, 3))
    written[:, :, 1] += separation
    return Judged(rng.normal(size=800) + labels * separation, labels, before, control, written)


def row(rows: list[dict], metric: str, condition: str, against: str = "") -> dict:
    """Return the one row for a number."""
    key = metric, condition, against
    (found,) = [r for r in rows if (r["metric"], r["condition"], r["against"]) == key]
    return found


@pytest.mark.parametrize("away", [0.0, 1.0, 3.0])
def test_a_planted_shift_lowers_the_auroc_to_what_theory_says(away):
    rows = probe_rows(planted(away))
    expected = {"before": norm.cdf(1.5 / 2**0.5), "evasion": norm.cdf((1.5 - away) / 2**0.5)}
    for condition, value in expected.items():
        found = row(rows, "auroc", condition)
        assert found["low"] <= value <= found["high"] and found["high"] - found["low"] < 0.08
    change = row(rows, "auroc", "evasion", "before")
    assert change["low"] <= expected["before"] - expected["evasion"] <= change["high"]
    assert (change["p"] < 0.001) == (away > 0)
    assert row(rows, "auroc", "amplification")["value"] == pytest.approx(expected["before"], abs=0.03)


def test_without_a_shift_about_95_of_100_intervals_contain_0_and_few_p_are_small():
    changes = []
    for seed in range(100):
        pairs = planted(0.0, seed=seed).conditions()
        changes.append(auroc(*pairs["before"]).mean(axis=1) - auroc(*pairs["evasion"]).mean(axis=1))
    ends = [mean_ci(change, n_boot=1000) for change in changes]
    assert 90 <= sum(end.low <= 0 <= end.high for end in ends) <= 99
    assert sum(sign_flip_p(change, n_perm=1000) < 0.05 for change in changes) <= 10


def test_a_planted_shift_lowers_the_detection_rate_to_what_theory_says():
    rows = probe_rows(planted(1.0))
    expected = {"before": norm.sf(norm.ppf(0.99) - 1.5), "evasion": norm.sf(norm.ppf(0.99) - 0.5)}
    for condition, value in expected.items():
        assert row(rows, "tpr", condition)["value"] == pytest.approx(value, abs=0.08)
    assert row(rows, "tpr", "evasion")["negatives"] == 400
    assert row(rows, "alarms", "before")["value"] == pytest.approx(0.01, abs=0.015)
    change = row(rows, "tpr", "evasion", "before")
    assert change["low"] > 0 and change["p"] < 0.001


def test_all_conditions_share_the_fpr_that_the_fewest_negatives_resolve():
    judged = planted(0.0, experiments=4)
    rows = [r for r in probe_rows(judged) if r["metric"] == "tpr_own"]
    assert {r["fpr"] for r in rows} == {1 / 48}
    assert [row(rows, "tpr_own", name)["negatives"] for name in CONDITIONS] == [48, 192, 96, 96]
    one, zero = (part.ravel() for part in judged.conditions()["neutral"])
    assert row(rows, "tpr_own", "neutral")["value"] == (one > np.sort(zero)[-5]).mean()


def test_empty_replies_are_left_out_and_counted():
    judged = planted(0.0, experiments=3)
    judged.written[:, :, :, :2] = np.nan
    judged.written[0] = np.nan  # nothing at all in this experiment
    judged.written[1, :, 1, 2], judged.written[2, :, 1, 2] = 9.0, [9.0, -9.0]
    rows = probe_rows(judged)
    assert row(rows, "detected", "written high")["value"] == 0.75
    assert row(rows, "detected", "written high")["experiments"] == 2
    assert row(rows, "detected", "written low")["empty"] == 12 + 2 * 8


def test_the_conditions_pair_each_class_with_its_own_request():
    control = np.zeros((1, 1, 2, 2, 3))
    control[0, 0] = np.array([[10, 11], [20, 21]])[..., None]  # want, class
    judged = Judged(np.zeros(2), np.array([0, 1]), np.zeros((1, 2, 3)), control, np.zeros((1, 1, 2, 1)))
    pairs = judged.conditions()
    assert (pairs["evasion"][0] == 11).all() and (pairs["evasion"][1] == 20).all()
    assert (pairs["amplification"][0] == 21).all() and (pairs["amplification"][1] == 10).all()
    assert pairs["neutral"][0].tolist() == [[[11] * 3, [21] * 3]]


@pytest.fixture(scope="module")
def fitted() -> tuple:
    """Three layers of states whose first coordinate tells the classes apart: states, labels, axes, probes."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 60)
    layers = {}
    for layer in (0, 1, 2):
        layers[layer] = rng.normal(size=(120, 6)).astype(np.float32)
        layers[layer][:, 0] += 2 * labels
    few = {"lr_c": 1.0, "max_pc": 2, "n_random": 0, "n_shuffled": 0, "threshold": "median", "seed": 0}
    axes = {layer: fit_axes(states, labels, **few, layer=layer) for layer, states in layers.items()}
    return layers, labels, axes, {n: fit_probes(s, labels, axes[n], seed=3) for n, s in layers.items()}


def test_the_probes_are_deterministic_and_tell_the_classes_apart(fitted):
    layers, labels, axes, probes = fitted
    again = fit_probes(layers[0], labels, axes[0], seed=3)
    assert tuple(again) == PROBES
    for name, probe in again.items():
        scores = probe(layers[0])
        np.testing.assert_array_equal(scores, probes[0][name](layers[0]))
        assert roc_auc_score(labels, scores) > 0.85
    other = fit_probes(layers[0], labels, axes[0], seed=4)
    assert np.abs(other["MLP"](layers[0]) - again["MLP"](layers[0])).max() > 1e-6


def test_the_ensemble_is_the_mean_of_the_layers_and_empty_replies_stay_nan(fitted):
    layers, _, _, probes = fitted
    states = {layer: part.reshape(3, 40, 6).copy() for layer, part in layers.items()}
    for part in states.values():
        part[1, 7] = np.nan
    scores = probe_scores(probes, states, target=1)
    assert list(scores) == [(name, scope) for name in PROBES for scope in ("layer 1", "ensemble")]
    for name in PROBES:
        singles = [probes[layer][name](layers[layer]) for layer in layers]
        known = np.isfinite(scores[name, "ensemble"].ravel())
        assert (~known).nonzero()[0].tolist() == [47]
        np.testing.assert_allclose(scores[name, "ensemble"].ravel()[known], np.mean(singles, axis=0)[known])
        np.testing.assert_allclose(scores[name, "layer 1"].ravel()[known], singles[1][known])


# ---------------------------------------------------------------- end to end

CONFIG = "n_axis: 40\nn_trial: 40\nmax_pc: 4\nmax_new_tokens: 6\nreport_examples: 12\n"
SIZES = ["--n_examples", "4", "--n_test", "8", "--n_written", "2", "--n_experiments", "3"]


@pytest.fixture(scope="module")
def prepared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a small prepared run, not to be written to."""
    folder = tmp_path_factory.mktemp("prepared")
    config = folder / "small.yml"
    config.write_text(CONFIG)
    found = ["--model", str(tiny_folder), "--config", str(config), "--results", str(folder / "results")]
    assert main_prep.main(found) == 0
    return found


@pytest.fixture
def flags(prepared: list[str], tmp_path: Path) -> list[str]:
    """Flags of a copy of it."""
    return [*prepared[:-1], str(shutil.copytree(prepared[-1], tmp_path / "results"))]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the probes, which tests of the trials do not need."""
    monkeypatch.setattr(command, "present", lambda stage: "")


@pytest.fixture
def store(flags: list[str]) -> Store:
    return Store(Path(flags[-1]), flags[1], "commonsense")


def test_the_study_writes_states_tables_and_figures_and_resumes_without_the_model(
    flags, store, capsys, monkeypatch
):
    argv = [*flags, *SIZES, "--layer", "2", "--layers", "1,3"]
    assert evasion.main(argv) == 0
    out = capsys.readouterr().out
    record = read(store.study("evasion_exp0", "lr", 2))
    assert record["pooled"].shape == (2, 2, 2, 4, 3, 32)  # flips, sides, classes, sentences, layers, size
    assert record["pooled"].dtype == np.float32 and record["written"].shape == (2, 2, 2, 3, 32)
    assert (read(store.split)["labels"][record["tests"]] == [[0], [1]]).all() and len(record["shown"]) == 4
    assert not set(record["tests"].ravel()) & set(record["shown"])
    assert np.abs(record["pooled"][0, 0] - record["pooled"][0, 1]).max() > 1e-4  # the request is read
    folder = store.figures / "evasion_lr_layer2"
    assert sorted(p.stem for p in folder.glob("*.png")) == ["auroc", "scores", "tpr", "written"]
    rows = list(csv.DictReader((folder / "summary_evasion.csv").open()))
    assert {(r["probe"], r["scope"]) for r in rows} == {
        (p, s) for p in PROBES for s in ("layer 2", "ensemble")
    }
    assert "5 % (the fewest resolvable, not 1 %)" in out and "AUROC: before - evasion" in out
    monkeypatch.setattr(machine, "load_model", lambda *a, **k: pytest.fail("loaded a model for nothing"))
    assert evasion.main(argv) == 0
    assert capsys.readouterr().out == out


def test_a_killed_run_keeps_its_finished_experiments(flags, store, monkeypatch, no_figures):
    argv, ran, real = [*flags, *SIZES], [], Trials.requests

    def killed(self, prompter, exp):
        ran.append(exp)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return real(self, prompter, exp)

    monkeypatch.setattr(Trials, "requests", killed)
    assert evasion.main(argv) == 130
    assert evasion.main(argv) == 0
    assert ran == [0, 1, 1, 2]


def test_a_test_sentence_is_read_as_in_a_forward_pass_of_its_own(flags, store, tiny_lm, no_figures):
    assert evasion.main([*flags, *SIZES, "--layer", "2"]) == 0
    study = open_study(store, load_settings(flags[1], flags[3]))
    trials = Trials(study, Plan("lr", 2, [0, 1, 2, 3], 4, 8, 2))
    requests = trials.requests(Prompter(tiny_lm.tokenizer, tiny_lm.name), 0)
    last_of_flip = requests[8 + 2 + 7]  # labels as they are, high wanted, the last sentence of class 1
    (plain,) = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False).read([last_of_flip], range(4))
    record, text = read(store.study("evasion_exp0", "lr", 2)), tiny_lm.tokenizer.decode(last_of_flip.ids)
    np.testing.assert_allclose(record["pooled"][0, 1, 1, 3], plain.pooled[0], rtol=1e-3, atol=1e-4)
    assert text.endswith(study.sentences[record["tests"][1, 3]])
    assert ("[Score: 1] while you say" in text) == trials.class_1_high


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--n_test", "7"], "n_test must be even"),
        (["--n_examples", "38"], "half of it must be left of each class"),
        (["--layer", "1,2"], "give one layer"),
        (["--axis", "nonsense"], "unknown axis 'nonsense'"),
    ],
)
def test_wrong_flags_are_errors_in_one_line(wrong, message, flags, capsys):
    assert evasion.main([*flags, *SIZES, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_counts_the_work_and_does_none(flags, store, capsys, no_figures):
    argv = [*flags, *SIZES, "--layer", "2"]
    assert evasion.main([*argv, "--dry_run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evasion")]
    assert line.split()[1:3] == ["3", "0"] and not list(store.folder.glob("study_*"))
    assert evasion.main(argv) == 0
    taken = [read(path)["tokens"]["prompt"] for path in store.folder.glob("study_*")]
    assert int(line.split()[3].replace(",", "")) == round(np.mean(taken))


def test_shards_of_the_study_leave_the_figures_to_the_last_command(flags, store, no_figures, capsys):
    for index, exps in (("2/2", {1}), ("1/2", {0, 1, 2})):
        assert evasion.main([*flags, *SIZES, "--layer", "2", "--shard", index]) == 0
        assert {int(path.name.split("_")[2][3:]) for path in store.folder.glob("study_*")} == exps
    assert "shard 1/2 is done; when all are, figures" in capsys.readouterr().err
    assert evasion.main([*flags, *SIZES, "--layer", "2"]) == 0
    assert "evasion: 0 new, 3 kept" in capsys.readouterr().err


def test_other_sizes_in_the_same_folder_are_an_error(flags, capsys, no_figures):
    assert evasion.main([*flags, *SIZES, "--layer", "2"]) == 0
    assert evasion.main([*flags, *SIZES, "--layer", "2", "--n_written", "1"]) == 2
    assert "n_written: 2 there, 1 now" in capsys.readouterr().err
