"""The causal studies on models whose answer to a push is set by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import main_prep
from analysis.base.errors import UserError
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.experiments import machine, preparation
from analysis.experiments.study import Study, open_study
from analysis.process_prompts import Prompter, load_prompts
from analysis.results.store import Store, read, write
from analysis.studies.causal import experiment as causal
from analysis.studies.causal.experiment import ARMS, MAPPINGS, SIGNS, CausalReport, SteeringCurve
from analysis.studies.causal.flags import CausalSizes, CurveSizes
from analysis.studies.causal.tables import Row, causal_table, causal_verdict, slope
from configs.settings import Settings
from data import load
from tasks import causal_report, steering_curve
from tests.conftest import TINY, make_model
from tests.test_determinism import same
from tests.test_pipeline import write_custom
from tests.test_steering import plain_states
from utils import LoadedModel

KEY, AXIS, LAYER = "custom/planted", "meandiff", 0
SIZES = CausalSizes(n_examples=10, n_test=2)
EXPERIMENTS = 8  # the fewest whose smallest p, 2 / 2^8, survives a correction for 6 arms


# ---------------------------------------------------------------- models with weights set by hand


def learner(tokenizer, gain: float = 1.0) -> LoadedModel:
    """Return a Llama that learns from the examples which side of v goes with which digit.

    "@" embeds as +v, "#" as -v, the digits as +1 and -1 on ``label``. Block 0 adds nothing, so that a push
    after it is seen by all that follows:
        block 1, attention   side = mean of v over the last tokens (a Gaussian window by RoPE's cosine)
        block 1, MLP         match = side * label, which is 0 but at digits (silu(a) b - silu(-a) b = a b)
        block 2, attention   code = mean of match over everything before
        block 2, MLP         answer = side * code, which the head turns into digit 1 minus digit 0
    ``gain`` scales the answer; with 0 the model ignores its state.
    """
    model = make_model(LlamaConfig(**TINY))
    steady, v, side, match, code, label, answer = 1, 3, 5, 6, 7, 8, 9
    zero, one = Prompter(tokenizer, "planted").answer_ids(load_prompts(KEY).shown, (0, 1))
    embedding = model.model.embed_tokens.weight
    embedding[:, [v, side, match, code, label, answer]] = 0
    embedding[:, steady] = 1000.0  # so large that the norm is the same for every token
    rms = 1000.0 / np.sqrt(TINY["hidden_size"])
    plus, minus = tokenizer.convert_tokens_to_ids(["@", "#"])
    embedding[plus, v], embedding[minus, v], embedding[one, label], embedding[zero, label] = 1, -1, 1, -1
    for block in model.model.layers:
        for part in (*block.self_attn.children(), *block.mlp.children()):
            if isinstance(part, torch.nn.Linear):
                part.weight.zero_()
    window, slowest, speed = 12.0, 3, 1e-3  # of the 4 frequencies of 8 dimensions per head
    first, second = model.model.layers[1], model.model.layers[2]
    strength = np.sqrt(np.sqrt(8) / (window * speed) ** 2 / TINY["hidden_size"])
    for part in (first.self_attn.q_proj, first.self_attn.k_proj):
        part.weight[slowest, steady] = strength
    for block, source, target, factor in ((first, v, side, 1.0), (second, match, code, 1000.0)):
        block.self_attn.v_proj.weight[0, source] = rms
        block.self_attn.o_proj.weight[target, 0] = factor
    for block, a, b, target in ((first, side, label, match), (second, side, code, answer)):
        for row, sign in enumerate((1, -1)):
            block.mlp.gate_proj.weight[row, a] = sign * rms
            block.mlp.up_proj.weight[row, b] = sign * rms
            block.mlp.down_proj.weight[target, row] = 1.0
    model.lm_head.weight[[zero, one]] = 0
    model.lm_head.weight[[zero, one], answer] = gain * 10 * rms * torch.tensor([-1.0, 1.0])
    return LoadedModel(model, tokenizer, "org/planted", f"planted {gain}")


@pytest.fixture(scope="module")
def studies(tokenizer, tmp_path_factory) -> dict[str, tuple[LoadedModel, Study]]:
    """A model that learns the code and one that ignores its state, prepared on pairs of "@" and "#"."""
    folder = tmp_path_factory.mktemp("planted")
    words = ["mill", "lake", "barn", "tree", "shop", "town", "road", "farm", "hill", "park"]
    texts = [
        (10 * i + j, f"I saw {'a b c'[: 2 * (j % 3) + 1]} {mark} by the {a} and the {b}.", side)
        for i, a in enumerate(words)
        for j, b in enumerate(words[:3])
        for side, mark in enumerate("#@")
    ]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "DATA_DIR", folder / "data")
        write_custom(folder / "data" / "custom" / "planted", texts)
        for name, gain in (("learns", 1.0), ("ignores", 0.0)):
            lm, settings = learner(tokenizer, gain), Settings(n_axis=30, n_trial=30, max_pc=2)
            store = Store(folder / name, lm.name, KEY)
            preparation.prepare(lm, KEY, settings, store)
            found[name] = lm, open_study(store, settings)
    return found


def causal_work(studies, name: str, sizes: CausalSizes = SIZES) -> CausalReport:
    lm, study = studies[name]
    return CausalReport(study, Prompter(lm.tokenizer, lm.name), AXIS, LAYER, sizes)


def table_of(studies, name: str, n: int, sizes: CausalSizes) -> dict[str, Row]:
    lm, work = studies[name][0], causal_work(studies, name, sizes)
    tree = PrefixTree(lm.model, lm.tokenizer)
    lean = np.stack([work.unit(tree, exp)["lean"] for exp in range(n)])
    return {row["arm"]: row for row in causal_table(lean)}


# ---------------------------------------------------------------- the causal report


def test_a_model_that_learns_the_code_is_right_in_both_mappings_and_at_chance_elsewhere(studies):
    rows = table_of(studies, "learns", EXPERIMENTS, CausalSizes(16, 1))
    target = rows["target"]
    assert target["accuracy"] == target["accuracy_mapping0"] == target["accuracy_mapping1"] == 1.0
    assert target["accuracy_q"] < 0.05 and target["code"] > 2 and target["code_q"] < 0.05
    assert "no detectable effect" not in causal_verdict(target)
    for arm in ARMS[1:]:
        row = rows[arm]
        assert row["accuracy_low"] <= 0.5 <= row["accuracy_high"], arm
        assert "no detectable effect: accuracy 0." in causal_verdict(row)
    assert rows["clean"]["accuracy"] == rows["query_only"]["accuracy"] == 0.5


def test_a_model_that_ignores_its_state_is_at_chance_in_every_arm(studies):
    for arm, row in table_of(studies, "ignores", 2, CausalSizes(4, 1)).items():
        assert row["accuracy"] == row["accuracy_low"] == row["accuracy_high"] == 0.5, arm
        assert row["accuracy_p"] == 1.0 and np.isnan(row["code"])


def test_a_learner_given_one_repeated_sentence_is_right_as_well(studies):
    sizes = CausalSizes(n_examples=10, repeat_sentence=True)
    work = causal_work(studies, "learns", sizes)
    assert len(work.draw(0)[0]) == 11 and len(set(work.draw(0)[0])) == 1
    assert table_of(studies, "learns", 2, sizes)["target"]["accuracy"] == 1.0


def test_the_visible_text_is_the_same_in_every_arm_mapping_and_sign(studies):
    work = causal_work(studies, "learns")
    grid = np.array(work.requests(3), dtype=object).reshape(len(ARMS), 2, SIZES.n_test, 2)
    texts = [{request.ids.tobytes() for request in grid[:, :, j].flat} for j in range(SIZES.n_test)]
    assert [len(one) for one in texts] == [1, 1] and texts[0] != texts[1]
    assert sum(causal_signs(grid[0, 0, 0, 1])[: SIZES.n_examples]) == 0


def causal_signs(request: Request) -> list[int]:
    return [int(np.sign(one.alpha)) for one in request.steering]


def test_what_is_injected_follows_the_labels_by_mapping_and_stands_on_the_sentences(studies, tokenizer):
    work = causal_work(studies, "learns")
    rows, labels, shuffled = work.draw(1)
    grid = np.array(work.requests(1), dtype=object).reshape(len(ARMS), 2, SIZES.n_test, 2)
    arms = dict(zip(ARMS, grid, strict=True))
    sides = (2 * labels - 1).tolist()
    for s, sign in enumerate(SIGNS):
        for m, mapping in enumerate(MAPPINGS):
            for arm in ("target", "random", "random_norm"):
                assert causal_signs(arms[arm][m, 0, s]) == [mapping * side for side in sides] + [sign]
            assert causal_signs(arms["shuffled"][m, 1, s]) == [*shuffled[m], sign]
            assert causal_signs(arms["query_only"][m, 0, s]) == [sign]
            assert causal_signs(arms["clean"][m, 0, s]) == []
    request = arms["target"][0, 1, 0]
    texts = [tokenizer.decode(request.ids[one.start : one.stop]).strip() for one in request.steering]
    assert texts == [work.study.sentences[row] for row in [*rows[: SIZES.n_examples], rows[-1]]]


def test_random_directions_are_orthogonal_and_matched_in_variance_or_in_norm(studies):
    work = causal_work(studies, "learns")
    grid = np.array(work.requests(2), dtype=object).reshape(len(ARMS), -1)
    target, random, norm = (arm[0].steering[0] for arm in grid[:3])
    assert abs(random.directions[0] @ target.directions[0]) < 1e-6
    np.testing.assert_array_equal(random.directions, norm.directions)
    hidden = read(work.study.store.hidden(LAYER))["hidden"][work.study.axis_rows]
    np.testing.assert_allclose(random.scales[0], (hidden @ random.directions[0]).std(), rtol=1e-3)
    assert norm.scales[0] == target.scales[0]
    assert not np.allclose(work.random_direction(3)[0], random.directions[0], atol=0.1)


def test_the_engine_gives_what_plain_forward_passes_with_other_hooks_give(studies, tiny_lm):
    _, study = studies["learns"]
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    prompter = Prompter(tiny_lm.tokenizer, tiny_lm.name)
    work = CausalReport(study, prompter, AXIS, LAYER, CausalSizes(4, 1, 10.0))
    requests = work.requests(0)
    (_, lean, tokens), plain = work.read(tree, requests), []
    assert tokens["prompt"] < tokens["asked"] == sum(len(request.ids) for request in requests)
    for request in requests:
        logits = plain_states(tiny_lm.model, request.ids, request.steering)[1][request.logits_at[0]]
        plain.append(float(logits[work.digits[1]] - logits[work.digits[0]]))
    np.testing.assert_allclose(lean, plain, atol=1e-5 * np.abs(plain).max(), rtol=0)
    spread = np.ptp(lean.reshape(len(ARMS), -1), axis=1)
    assert (spread[:-1] > 4e-3).all() and spread[-1] == 0  # pushes change the answers


def test_shuffled_signs_agree_with_the_labels_as_often_as_not(studies):
    work = causal_work(studies, "learns")
    drawn = [work.draw(exp) for exp in range(200)]
    agree = np.array([shuffled @ (2 * labels - 1) for _, labels, shuffled in drawn]) > 0  # 10: never even
    assert 0.45 < agree.mean() < 0.55
    assert abs(np.corrcoef(agree.T)[0, 1]) < 0.2  # the mappings are drawn apart


# ---------------------------------------------------------------- the validation curve


def test_a_push_moves_the_score_by_alpha_and_the_reported_label_with_it(studies):
    lm, study = studies["learns"]
    sizes = CurveSizes(n_examples=10, n_test=2, alphas=(-4.0, -1.0, 0.0, 1.5, 4.0))
    work = SteeringCurve(study, Prompter(lm.tokenizer, lm.name), AXIS, LAYER, sizes)
    found = [work.unit(PrefixTree(lm.model, lm.tokenizer), exp) for exp in range(2)]
    alphas = np.array(sizes.alphas)
    assert work.layers_read == [0, 1, 2, 3]
    for one in found:
        alone = study.scores(LAYER, AXIS)[one["rows"][10:]]
        np.testing.assert_allclose(one["measured"][:, 2, 0], alone, atol=1e-3)  # as without steering
        for scores in (one["measured"], *one["in_report"]):
            moved = scores[..., 0] - scores[:, 2:3, 0]
            np.testing.assert_allclose(moved, np.broadcast_to(alphas, moved.shape), atol=1e-3)
        assert (one["lean"][..., 0] < 0).all() and (one["lean"][..., -1] > 0).all()
        assert (np.diff(one["lean"], axis=-1) > 0).all()
    row = slope(np.stack([one["lean"] for one in found]), alphas)
    assert row["slope"] > 0 and row["experiments"] == 2


# ---------------------------------------------------------------- files and scripts


@pytest.fixture(scope="module")
def flags(tiny_folder, tmp_path_factory) -> list[str]:
    """Flags of a prepared tiny model."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "small.yml").write_text("n_axis: 40\nn_trial: 40\nmax_pc: 2\n")
    common = ["--model", str(tiny_folder), "--config", str(folder / "small.yml"), "--log_level", "error"]
    common += ["--results", str(folder / "results")]
    assert main_prep.main(common) == 0
    return common


SCRIPTS = {"causal": (causal_report, "target: "), "steering": (steering_curve, "reported label: ")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_write_what_they_say_and_load_no_model_twice(name, flags, monkeypatch, capsys):
    script, line = SCRIPTS[name]
    argv = [*flags, "--layer", "2", "--n_examples", "4", "--n_test", "1", "--n_experiments", "2"]
    assert script.main(argv) == 0
    assert line in capsys.readouterr().out
    (folder,) = (Path(flags[-1])).glob("*/commonsense")
    files = {folder / f"study_{name}_exp{exp}_lr_layer2.pkl" for exp in range(2)}
    assert set(folder.glob(f"study_{name}_*_lr_layer2.pkl")) == files
    for ending in ("csv", "png"):
        assert (folder / "figures" / f"{name}_lr_layer2.{ending}").stat().st_size > 500
    monkeypatch.setattr(machine, "load_model", lambda *a, **k: pytest.fail("loaded a model for nothing"))
    assert script.main(argv) == 0


SMALL = ["--n_examples", "4", "--n_test", "1"]


@pytest.fixture
def apart(flags, tmp_path) -> tuple[list[str], Path]:
    """Flags of a copy of the prepared folder, and where its results are."""
    ignore = shutil.ignore_patterns("study_*", "figures")
    results = shutil.copytree(flags[-1], tmp_path / "results", ignore=ignore)
    (folder,) = results.glob("*/commonsense")
    return [*flags, *SMALL, "--results", str(results)], folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_shards_of_a_study_are_what_one_run_makes_and_the_last_command_shows_it(name, apart, capsys):
    (argv, folder), script = apart, SCRIPTS[name][0]
    argv += ["--layer", "1,2", "--n_experiments", "3"]
    for index in ("2/2", "1/2"):
        assert script.main([*argv, "--shard", index]) == 0
        assert not capsys.readouterr().out and not (folder / "figures").exists()
    files = sorted(folder.glob("study_*"))
    parts = [read(path) for path in files]
    assert script.main(argv) == 0 and SCRIPTS[name][1] in capsys.readouterr().out
    assert len(files) == 6 and read(files[0])["meta"] == parts[0]["meta"]
    assert script.main([*argv, "--overwrite"]) == 0
    for path, part in zip(files, parts, strict=True):
        same(part, read(path), 0.0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_study_counts_the_tokens_of_the_run_and_writes_nothing(name, apart, capsys):
    """Steered tokens are not shared with others, and counted so."""
    (argv, folder), script = apart, SCRIPTS[name][0]
    argv += ["--layer", "2", "--n_experiments", "2"]
    assert script.main([*argv, "--dry_run"]) == 0
    starts = ("causal report ", "steering curve ")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(starts)]
    units, on_disk, tokens = (int(word.replace(",", "")) for word in line.split()[2:5])
    assert (units, on_disk) == (2, 0) and not list(folder.glob("study_*"))
    assert script.main(argv) == 0
    assert tokens == round(np.mean([read(path)["tokens"]["prompt"] for path in folder.glob("study_*")]))
    capsys.readouterr()
    assert script.main([*argv, "--n_experiments", "5", "--dry_run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(starts)]
    assert line.split()[2:4] == ["3", "2"]


def test_experiments_of_an_earlier_version_get_files_of_their_own(apart, monkeypatch, capsys):
    """It kept all experiments of a layer in one file."""
    argv, folder = apart
    argv += ["--layer", "2", "--n_experiments", "2", "--log_level", "info"]
    assert causal_report.main(argv) == 0
    files = sorted(folder.glob("study_*"))
    records = [read(path) for path in files]
    table = (folder / "figures" / "causal_lr_layer2.csv").read_text()
    identity = {k: v for k, v in records[0]["meta"]["identity"].items() if k not in ("exp", "levels")}
    experiments = [{name: record[name] for name in ("rows", "labels", "lean")} for record in records]
    old = folder / "study_causal_lr_layer2.pkl"
    write(old, {"experiments": experiments}, identity)
    for path in files:
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(machine, "load_model", lambda *a, **k: pytest.fail("loaded a model for nothing"))
        assert causal_report.main(argv) == 0
    assert f"2 experiments of {old} have files of their own" in capsys.readouterr().err
    assert (folder / "figures" / "causal_lr_layer2.csv").read_text() == table and old.exists()
    assert causal_report.main([*argv, "--n_experiments", "3"]) == 0  # goes on after them
    for path in folder.glob("study_causal_exp*"):
        path.unlink()
    capsys.readouterr()
    assert causal_report.main([*argv, "--alpha", "2"]) == 0  # other settings: not used, and said so
    said = capsys.readouterr().err
    assert "not used" in said and "alpha: 4.0 there, 2.0 now" in said
    assert len(list(folder.glob("study_causal_exp*"))) == 2


@pytest.mark.parametrize(
    ("script", "more", "message"),
    [
        (causal_report, ["--n_examples", "5"], "5 examples: give an even number"),
        (causal_report, ["--alpha", "0"], "alpha 0.0: give a number above 0"),
        (causal_report, ["--axis", "lrr", "--layer", "1"], "unknown axis 'lrr'"),
        (steering_curve, ["--alphas", "1", "2"], "rising numbers, one of them 0"),
        (steering_curve, ["--shard", "3/2"], "--shard 3/2: give i/n"),
    ],
)
def test_mistakes_end_in_one_line(script, more, message, flags, capsys):
    assert script.main([*flags, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("text", ["causal_system: say {label}", "causal_system: 3", "system: hello", ""])
def test_a_broken_prompt_file_is_refused_by_name(text, tmp_path, monkeypatch):
    (tmp_path / "study_prompts.yml").write_text(text)
    monkeypatch.setattr(causal, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match="study_prompts.yml: it must hold one text, causal_system"):
        causal.load_causal_system()
