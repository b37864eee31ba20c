"""The scripts end to end on a tiny model: files, resuming, pages, and a direction planted by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import main_imitexp
import main_predexp
import main_prep
import neurofeedback
from analysis.axes.read import load_axes
from analysis.engine.prefix_tree import PrefixTree
from analysis.experiments import machine, preparation, runs
from analysis.experiments import study as study_module
from analysis.experiments.control import Control
from analysis.experiments.trials import control_trials
from analysis.results.store import Store, UnitKey, read
from configs.settings import Settings
from data import load
from tests.conftest import SHARED, TINY, make_model
from utils import LoadedModel

CONFIG = """
n_axis: 40
n_trial: 40
max_pc: 8
axes: [lr, pc1]
layer: "1,2"
n_experiments: 3
shots: [0, 2, 4]
max_new_tokens: 6
report_examples: 12
"""


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Flags of every script for a small run in a folder of its own."""
    config = tmp_path / "small.yml"
    config.write_text(CONFIG)
    return ["--model", str(tiny_folder), "--config", str(config), "--results", str(tmp_path / "results")]


@pytest.fixture
def store(flags: list[str]) -> Store:
    """Where the run of ``flags`` writes."""
    return Store(Path(flags[-1]), flags[1], "commonsense")


def test_the_three_stages_write_what_the_next_one_reads(flags, store):
    assert main_prep.main(flags) == 0
    assert store.layers() == [0, 1, 2, 3]
    assert main_imitexp.main([*flags, "--pc", "1", "--imit_exp_end", "-1", "--layer", "2"]) == 0
    assert main_predexp.main([*flags, "--clf", "lr", "--pred_exp_end", "2", "--layer", "1"]) == 0
    assert store.units("imit") == [UnitKey("imit", "pc1", 2, e) for e in range(3)]
    assert store.units("pred") == [UnitKey("pred", "lr", 1, e) for e in range(2)]
    control = read(store.unit(UnitKey("imit", "pc1", 2, 0)))
    trials = 3 * 2 * 2 * 2  # N, flips, targets, modes
    assert control["scores"].shape == (trials, len(control["affected"]))
    assert control["by_layer"].shape == control["projection"].shape == (trials, 4)
    np.testing.assert_array_equal(control["want"], control["target"] ^ control["flip"])
    report = read(store.unit(UnitKey("pred", "lr", 1, 0)))
    assert report["logits"].shape == (2, 12, 2) and np.isfinite(report["logits"]).all()
    axes = read(store.axes(1))
    np.testing.assert_array_equal(report["scores"], axes["scores"][report["rows"], 0])
    np.testing.assert_array_equal(report["labels"], report["scores"] > axes["thresholds"][0])


def test_a_finished_grid_is_not_computed_again_and_loads_no_model(flags, store, monkeypatch):
    assert main_prep.main(flags) == 0
    argv = [*flags, "--pc", "1", "--layer", "2"]
    assert main_imitexp.main(argv) == 0
    before = store.unit(UnitKey("imit", "pc1", 2, 0)).stat().st_mtime_ns
    monkeypatch.setattr(machine, "load_model", lambda *a, **k: pytest.fail("loaded a model for nothing"))
    assert main_imitexp.main(argv) == 0
    assert store.unit(UnitKey("imit", "pc1", 2, 0)).stat().st_mtime_ns == before


def test_a_killed_run_resumes_to_the_same_tables(flags, store, monkeypatch):
    assert main_prep.main(flags) == 0
    argv = [*flags, "--pc", "1", "--imit_exp_end", "-1", "--layer", "2"]
    real, ran = Control.unit, []

    def killed(self, key):
        ran.append(key.exp)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return real(self, key)

    monkeypatch.setattr(Control, "unit", killed)
    assert main_imitexp.main(argv) == 130
    assert [key.exp for key in store.units("imit")] == [0]
    assert main_imitexp.main(argv) == 0
    assert ran == [0, 1, 1, 2]
    resumed = [read(store.unit(key)) for key in store.units("imit")]
    assert main_imitexp.main([*argv, "--overwrite"]) == 0
    for old, key in zip(resumed, store.units("imit"), strict=True):
        new = read(store.unit(key))
        np.testing.assert_array_equal(new["scores"], old["scores"])
        assert new["text"] == old["text"]


def test_another_token_budget_gives_the_same_scores(flags, store):
    assert main_prep.main(flags) == 0
    argv = [*flags, "--pc", "1", "--imit_exp_end", "1", "--layer", "2"]
    assert main_imitexp.main(argv) == 0
    first = read(store.unit(UnitKey("imit", "pc1", 2, 0)))
    assert main_imitexp.main([*argv, "--overwrite", "--token_budget", "50"]) == 0
    second = read(store.unit(UnitKey("imit", "pc1", 2, 0)))
    assert first["text"] == second["text"]
    np.testing.assert_allclose(second["scores"], first["scores"], rtol=1e-3, atol=1e-3)


def test_the_study_ends_with_tables_figures_and_one_page_and_then_resumes(flags, store, capsys):
    assert neurofeedback.main(flags) == 0
    out = capsys.readouterr().out
    assert "report.html" in out and "pc1" in out
    page = (store.folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert len(list(store.figures.glob("*.png"))) >= 5
    assert len(store.units("imit")) == 2 * 2 * 3  # axes, layers, experiments
    assert {key.axis for key in store.units("pred")} == {"lr", "pc1", "lr_shuffled0", "random0"}
    written = {p: p.stat().st_mtime_ns for p in store.folder.glob("*.pkl")}
    assert neurofeedback.main(flags) == 0
    assert written == {p: p.stat().st_mtime_ns for p in store.folder.glob("*.pkl")}


@pytest.mark.parametrize("method", ["mean", "last", "each"])
def test_other_pooling_methods_write_hidden_states_only(method, flags, store):
    assert main_prep.main([*flags, "--process_hidden_method", method]) == 0
    assert store.layers() == []
    record = read(store.hidden(3, method))
    n = len(read(store.split)["sentences"])
    if method == "each":
        assert len(record["offsets"]) == n + 1 and record["offsets"][-1] == len(record["hidden"])
    else:
        assert record["hidden"].shape == (n, TINY["hidden_size"])


def test_the_pooling_methods_agree_with_each_other(flags, store):
    for method in ("mean", "last", "each"):
        assert main_prep.main([*flags, "--process_hidden_method", method]) == 0
    each = read(store.hidden(2, "each"))
    mean, last = (read(store.hidden(2, method))["hidden"] for method in ("mean", "last"))
    for row in (0, 7):
        tokens = each["hidden"][each["offsets"][row] : each["offsets"][row + 1]]
        np.testing.assert_allclose(tokens.mean(0), mean[row], atol=1e-5)
        np.testing.assert_allclose(tokens[-1], last[row], atol=1e-5)


def test_one_model_can_report_the_scores_of_another(flags, store, tiny_lm, tmp_path):
    assert main_prep.main(flags) == 0
    other = tmp_path / "other"
    make_model(LlamaConfig(**TINY), seed=1).save_pretrained(other)
    tiny_lm.tokenizer.save_pretrained(other)
    argv = [*flags, "--config_e", str(other), "--pc", "1", "--layer", "2", "--pred_exp_end", "1"]
    assert main_predexp.main(argv) == 0
    assert main_predexp.main([*flags, "--pc", "1", "--layer", "2", "--pred_exp_end", "1"]) == 0
    (crossed,) = Path(flags[-1]).glob("*_from_*/commonsense/pred_pc1_layer2_exp0.pkl")
    a, b = read(crossed), read(store.unit(UnitKey("pred", "pc1", 2, 0)))
    np.testing.assert_array_equal(a["labels"], b["labels"])
    assert np.abs(a["logits"] - b["logits"]).max() > 1e-3


# ---------------------------------------------------------------- planted directions


def plant(tokenizer, gain: float = 0.0) -> tuple[LoadedModel, np.ndarray]:
    """Return a model that adds nothing to the embeddings but what is planted, and the direction v.

    "@" embeds as +v, "#" as -v. With ``gain``, block 0 attends to everything evenly and adds gain * v times
    the mean of a mark that the digits carry: + for 1, - for 0.
    """
    model = make_model(LlamaConfig(**TINY))
    core = model.model
    v, u = np.eye(TINY["hidden_size"], dtype=np.float32)[[3, 8]]
    for block in core.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    embedding = core.embed_tokens.weight
    embedding[:, [3, 8]] = 0
    ids = {c: tokenizer.convert_tokens_to_ids(c) for c in "@#01"}
    embedding[ids["@"]] = torch.tensor(v)
    embedding[ids["#"]] = -torch.tensor(v)
    embedding[ids["1"], 8], embedding[ids["0"], 8] = 20.0, -20.0
    attention = core.layers[0].self_attn
    for part in (attention.q_proj, attention.v_proj):
        part.weight.zero_()
    attention.v_proj.weight[0, 8] = 1.0
    attention.o_proj.weight[3, 0] = gain
    return LoadedModel(model, tokenizer, "org/planted", "planted"), v


def write_custom(folder: Path, rows: list[tuple[int, str, int]]) -> None:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("Made up for a test.")
    with (folder / "sentences.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "group", "sentence", "label"])
        writer.writerows((f"r{i}", *row) for i, row in enumerate(rows))


@pytest.fixture
def planted_data(tmp_path, monkeypatch) -> str:
    """Pairs that differ only in "@" against "#"."""
    words = ["mill", "lake", "barn", "tree", "shop", "town", "road", "farm", "hill", "park"]
    rows = [
        (
            3 * i + j,
            f"I saw {' ' + mark * (1 + j) + ' '} by the {a} and the {words[(i * j + 3) % 10]} {i}.",
            label,
        )
        for i, a in enumerate(words)
        for j in range(3)
        for label, mark in enumerate("#@")
    ]
    monkeypatch.setattr(load, "DATA_DIR", tmp_path / "data")
    write_custom(tmp_path / "data" / "custom" / "planted", rows)
    return "custom/planted"


def test_a_planted_direction_becomes_the_axis_and_gives_its_score(planted_data, tokenizer, tmp_path):
    lm, v = plant(tokenizer)
    settings = Settings(n_axis=30, n_trial=30, max_pc=4)
    store = Store(tmp_path / "results", lm.name, planted_data)
    preparation.prepare(lm, planted_data, settings, store)
    axes, record = load_axes(store, 1)
    meandiff = axes.directions[axes.index("meandiff")]
    assert meandiff @ v > 0.9999
    assert axes.directions[axes.index("lr")] @ v > 0.99
    split = read(store.split)
    # the share of "@" minus the share of "#" among a sentence's tokens is its position along v
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(" " + s)["input_ids"]) for s in split["sentences"]]
    along = np.array([(t.count("@") - t.count("#")) / len(t) for t in tokens])
    counted = np.array([sum(c in "@#" for c in s) for s in split["sentences"]])
    marks = np.array([t.count("@") + t.count("#") for t in tokens])
    whole = counted == marks  # rows whose marks the tokenizer does not merge
    assert whole.sum() >= 20
    hidden = read(store.hidden(1))["hidden"]
    np.testing.assert_allclose((hidden @ v)[whole], along[whole], atol=0.02)
    scores = record["scores"][:, axes.index("meandiff")]
    expected = (hidden - hidden[split["axis_rows"]].mean(0)) @ v
    expected = expected / expected[split["axis_rows"]].std()
    np.testing.assert_allclose(scores, expected, atol=0.02)
    assert record["accuracy"]["meandiff"][1] == 1.0


def test_a_planted_effect_is_measured_as_large_as_it_is(planted_data, tokenizer, tmp_path):
    lm, v = plant(tokenizer, gain=5.0)
    settings = Settings(n_axis=30, n_trial=30, max_pc=4, shots=(0,), modes=("inactive",), n_experiments=2)
    store = Store(tmp_path / "results", lm.name, planted_data)
    preparation.prepare(lm, planted_data, settings, store)
    study = study_module.open_study(store, settings)
    control = Control(lm, study, PrefixTree(lm.model, lm.tokenizer))
    key = UnitKey("imit", "meandiff", 1, 0)
    record = control.unit(key)
    scores, unflipped = record["scores"][:, record["affected"].index("meandiff")], ~record["flip"]
    high, low = (scores[unflipped & (record["want"] == want)] for want in (1, 0))
    # what it should be, by one plain forward pass per prompt and the definition of the score
    axes = study.axes(1)
    rows, labels, trials = control.order(0), np.zeros(1, int), control_trials((0,), ("inactive",))
    sentences = [study.sentences[row] for row in rows]
    requests = [control.request(key, trial, sentences, labels) for trial in trials]
    plain = PrefixTree(lm.model, lm.tokenizer, packed=False).read(requests, [1])
    along = np.array([reading.pooled[0, 0] @ axes.directions[axes.index("meandiff")] for reading in plain])
    expected = (along[1] - along[0]) / axes.scales[axes.index("meandiff")]
    assert expected > 0.1
    np.testing.assert_allclose(high - low, expected, rtol=1e-3)


# ---------------------------------------------------------------- real sentences


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published datasets are not beside this checkout")
def test_published_sentences_run_through_preparation_and_control(smollm2, tmp_path, monkeypatch):
    """64 short sentences of the published commonsense set (is_short, pairs are neighbouring rows)."""
    with (SHARED / "commonsense" / "cm_test.csv").open(newline="", encoding="utf-8") as handle:
        short = [row for row in csv.DictReader(handle) if row["is_short"] == "True"]
    rows, seen = [], set()
    for i, row in enumerate(short):
        sentence = " ".join(row["input"].split())
        if sum(r[2] == int(row["label"]) for r in rows) < 32 and sentence not in seen:
            seen.add(sentence)
            rows.append((i, sentence, int(row["label"])))
    monkeypatch.setattr(load, "DATA_DIR", tmp_path / "data")
    write_custom(tmp_path / "data" / "custom" / "cm", rows)
    settings = Settings(n_axis=32, n_trial=32, max_pc=8, shots=(0, 2), max_new_tokens=8, n_experiments=1)
    store = Store(tmp_path / "results", "smollm2", "custom/cm")
    preparation.prepare(smollm2, "custom/cm", settings, store)
    assert runs.run_control(store, settings, ["lr"], "middle", [0], models={"smollm2": smollm2}) == (1, 0)
    record = read(store.unit(UnitKey("imit", "lr", 15, 0)))
    assert np.isfinite(record["scores"][~record["empty"]]).all()
    given = [t for t, mode in zip(record["text"], record["mode"], strict=True) if mode == "inactive"]
    assert len(given) == 8 and set(given) <= seen
