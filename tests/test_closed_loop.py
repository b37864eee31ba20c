"""A closed loop shows what it says it shows, forwards each token once, and finds a drift that is planted."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import neurofeedback
from analysis.base.errors import UserError
from analysis.base.processes import Shard
from analysis.engine.dialogues import Forwarded
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply, Sampling
from analysis.experiments.machine import Machine
from analysis.experiments.preparation import prepare
from analysis.experiments.study import Study, open_study
from analysis.experiments.units import run
from analysis.results.store import Store, UnitKey, read
from analysis.studies.closed_loop import experiment, prompts
from analysis.studies.closed_loop.experiment import (
    ClosedLoop,
    fed_back,
    given_labels,
    loop_trials,
    normalised,
)
from analysis.studies.closed_loop.flags import ARMS, Loop
from analysis.studies.closed_loop.prompts import NO_SCORE
from analysis.studies.closed_loop.stage import LINK, LoopStage, LoopUnit
from analysis.studies.closed_loop.tables import comparison_table, drift_table, load_series, turn_table
from configs.settings import Settings
from tests.test_determinism import same
from utils import LoadedModel

SETTINGS = Settings(
    n_axis=40, n_trial=40, max_pc=4, axes=("lr",), layer="2", n_experiments=8, max_new_tokens=7, shots=(0, 2)
)


@pytest.fixture(scope="module")
def study(tiny_lm: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The tiny model, prepared on shipped sentences."""
    store = Store(tmp_path_factory.mktemp("results"), "org/tiny", "commonsense")
    prepare(tiny_lm, "commonsense", SETTINGS, store)
    return open_study(store, SETTINGS)


def closed(lm: LoadedModel, study: Study, loop: Loop) -> ClosedLoop:
    return ClosedLoop(lm, study, PrefixTree(lm.model, lm.tokenizer, packed=True), loop)


def grid(lm: LoadedModel, study: Study, loop: Loop, **more: object) -> LoopStage:
    study = replace(study, settings=replace(study.settings, **more))
    return LoopStage(study, loop, Machine(known={study.store.model: lm}))


# ---------------------------------------------------------------- what is shown


def test_true_and_flipped_arms_show_opposite_labels_and_the_others_what_was_given():
    trials = loop_trials(ARMS, levels=4)
    assert [t.want for t in trials[:4]] == [
        0,
        1,
        1,
        0,
    ]  # as they are: low, high; mirrored: low target is high
    labels, given = np.array([3, 1, 3, NO_SCORE] * 4), np.full(16, 2)
    shown = fed_back(trials, labels, given)
    assert shown[:4].tolist() == [3, 1, 0, NO_SCORE]  # the last two are mirrored
    assert shown[4:8].tolist() == [0, 2, 3, NO_SCORE]
    assert shown[8:].tolist() == [2] * 8


def test_yoked_labels_are_the_donors_and_random_ones_have_the_same_rate():
    donor = np.arange(20).reshape(4, 5)
    given = given_labels(loop_trials(ARMS, 2), donor, 5, 0, "loop")
    assert not given[:8].any()
    np.testing.assert_array_equal(given[12:], donor)
    assert sorted(given[8:12].ravel()) == list(range(20)) and (given[8:12] != donor).any()
    assert given_labels(loop_trials(("true",), 2), None, 5, 0).shape == (4, 5)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("i went  Home", True), ('"I went home."', True), ("I went home!\n", True),
        ("**I went home.**", True), ("I went home. Then I slept.", False), ("I go home.", False), ("", False),
    ],
)  # fmt: skip
def test_a_repetition_may_differ_in_case_quotes_and_final_marks_only(text, same):
    assert (normalised(text) == normalised("I went home.")) == same


def said(*texts: str) -> list[tuple[Reply, np.ndarray]]:
    """Return replies as the engine does, with activations of 0; NaN for an empty one."""
    found = []
    for text in texts:
        reply = Reply(Sampling(4))
        reply.text = text
        found.append((reply, np.full((1, 32), 0.0 if text else np.nan, np.float32)))
    return found


def test_turns_that_do_not_comply_get_no_score_and_are_counted(tiny_lm, study):
    key, right = UnitKey("loop", "lr", 2, 0), "We helped her."
    one = closed(tiny_lm, study, Loop(3))
    turn = one.measured(key, said("we helped her", "We left.", "", right), np.array([-99.0]), right)
    assert turn["complied"].tolist() == [True, False, False, True]
    assert turn["empty"].tolist() == [False, False, True, False]
    assert turn["label"].tolist() == [1, NO_SCORE, NO_SCORE, 1]
    free = one.measured(key, said("we helped her", "We left.", "", right), np.array([-99.0]), None)
    assert free["complied"].tolist() == [True, True, False, True]
    with pytest.raises(UserError, match="not finite"):
        one.measured(key, [(said("We left.")[0][0], said("")[0][1])], np.array([0.0]), None)


# ---------------------------------------------------------------- a world with a known answer

STEP = 0.4


class Climber:
    """Stands in for the conversations: speaks with a score of its own, and goes on where it is rewarded.

    It starts in a direction of its own, keeps it while it is shown the label that it is asked for, and turns
    with a double step if not. Text and activation are all that the study sees of it.
    """

    def __init__(self, tree, openings, layers, room):
        self.tokenizer, self.tokens, n = tree.tokenizer, Forwarded(), len(openings)
        self.position, self.heading, self.pace = np.zeros(n), None, np.full(n, STEP)

    def write(self, samplings):
        if self.heading is None:  # without the turn: the same in every arm
            self.heading = np.array([np.random.default_rng(s.seed[:-1]).choice([-1, 1]) for s in samplings])
        self.position = self.position + self.heading * self.pace
        axes, replies = Climber.axes, said(*["Hm."] * len(self.position))
        k, scores = axes.index("lr"), self.position + axes.threshold("lr")
        states = axes.mean + scores[:, None] * axes.scales[k] * axes.directions[k]
        return [(reply, state[None]) for (reply, _), state in zip(replies, states, strict=True)]

    def add(self, messages):
        for b, message in enumerate(messages):
            shown, wanted = (part[0] for part in self.tokenizer.decode(message).split("Score: ")[1:])
            self.heading[b] *= 1 if shown == wanted else -1
            self.pace[b] = STEP if shown == wanted else 2 * STEP


@pytest.fixture(scope="module")
def climbed(tiny_lm, study):
    """A loop of six turns in that world, on disk."""
    Climber.axes, loop = study.axes(2), Loop(6, modes=("write",), examples=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Dialogues", Climber)
        stage = grid(tiny_lm, study, loop)
        assert run(stage) == (9, 0)  # a donor before eight experiments
    return stage, load_series(stage)


def test_a_planted_drift_is_found_in_the_true_arm_with_its_sign_and_not_in_the_random_arm(climbed):
    rows = {row["arm"]: row for row in drift_table(climbed[1])}
    assert rows["true"]["finding"] == "drift towards the goal"
    assert rows["flipped"]["finding"] == "drift away from the goal"
    assert rows["random"]["finding"] == rows["yoked"]["finding"] == "no detectable drift"
    assert 0.5 * STEP < rows["true"]["slope"] < 1.2 * STEP and rows["true"]["gain"] > STEP
    assert rows["true"]["same"] == 1 and 0.3 < rows["random"]["same"] < 0.7
    assert rows["true"]["experiments"] == 8 and rows["true"]["complied"] == 8 * 4 * 6
    against = {row["against"]: row for row in comparison_table(climbed[1])}
    assert {row["finding"] for row in against.values()} == {"difference towards the goal"}
    difference = rows["true"]["slope"] - rows["flipped"]["slope"]
    assert against["flipped"]["slope"] == pytest.approx(difference)
    last = [row for row in turn_table(climbed[1]) if row["turn"] == 6]
    assert {row["arm"]: row["d"] > 1 for row in last} == {
        "true": True, "flipped": False, "random": False, "yoked": False
    }  # fmt: skip


def unit(exp: int, donor: bool = False) -> LoopUnit:
    return LoopUnit("write", UnitKey("loop", "lr", 2, exp), donor)


def test_on_disk_yoked_labels_are_the_next_true_arms_and_the_last_has_a_donor(climbed):
    stage = climbed[0]
    for exp in range(8):
        record = read(stage.path(unit(exp)))
        after = read(stage.path(unit(exp + 1, donor=exp == 7)))
        donor = after["shown"][:4]
        assert after["arm"][:4] == ["true"] * 4
        np.testing.assert_array_equal(record["shown"][12:], donor)
        assert record["shown"][8:12].sum() == donor.sum()
        unflipped = ~record["flip"][:4]
        np.testing.assert_array_equal(record["shown"][:4][unflipped], record["label"][:4, :-1][unflipped])


# ---------------------------------------------------------------- real replies of the tiny model


@pytest.mark.parametrize(("mode", "axis", "levels"), [("write", "lr_ensemble", 2), ("repeat", "pc1", 4)])
def test_a_unit_of_a_real_model_is_scored_and_repeatable(tiny_lm, study, mode, axis, levels):
    one, key = closed(tiny_lm, study, Loop(3, examples=2)), UnitKey("loop", axis, 2, 0, levels)
    first = one.unit(key, mode, ("true", "flipped"))
    assert first["score"].shape == (8, 3)
    np.testing.assert_array_equal(np.isfinite(first["score"]), ~first["empty"])
    assert first["label"].max() < levels and first["shown"].shape == (8, 2)
    if mode == "write":  # arms share seeds, so before the first feedback they are alike
        assert [t[0] for t in first["text"][:4]] == [t[0] for t in first["text"][4:]]
        assert (first["label"] >= 0).any()
        assert one.unit(key, mode, ("true", "flipped"))["text"] == first["text"]
    tokens = first["tokens"]
    assert tokens["opening"] + tokens["added"] + tokens["written"] < tokens["replayed"]


def test_a_loop_that_may_outgrow_the_context_is_refused_before_any_work(tiny_lm, study):
    with pytest.raises(UserError, match="at most [0-9]+ turns fit"):
        run(grid(tiny_lm, study, Loop(200, modes=("repeat",))))


SMALL = """
n_axis: 40
n_trial: 40
max_pc: 4
axes: [lr]
layer: "2"
n_experiments: 3
max_new_tokens: 4
"""


def test_a_killed_loop_keeps_its_units_and_ends_with_figures_and_numbers(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    config = tmp_path / "small.yml"
    config.write_text(SMALL)
    argv = ["--model", str(tiny_folder), "--config", str(config), "--results", str(tmp_path / "results")]
    argv += ["--loop", "3", "--loop_examples", "1", "--loop_mode", "write"]
    real, ran = ClosedLoop.unit, []

    def killed(self, key, *rest):
        ran.append(key.exp)
        if ran == [3, 2, 1]:
            raise KeyboardInterrupt
        return real(self, key, *rest)

    monkeypatch.setattr(ClosedLoop, "unit", killed)
    assert neurofeedback.main(argv) == 130
    assert neurofeedback.main(argv) == 0
    assert ran == [3, 2, 1, 1, 0]  # the donor, then the last experiment first
    printed, told = capsys.readouterr()
    assert "closed loop: 2 new, 2 kept" in told and "complied" in printed
    folder = Store(tmp_path / "results", str(tiny_folder), "commonsense").figures
    names = {path.name for path in folder.glob("loop_*.png")}
    assert names == {f"loop_{kind}_lr_layer2.png" for kind in ("scores", "effect", "drift")}
    with (folder / "summary_loop.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    rates = [row for row in rows if row["metric"] == "complied_rate"]
    assert [row["arm"] for row in rates] == list(ARMS) and "loop_drift" in (folder / "index.html").read_text()
    assert neurofeedback.main([*argv, "--loop", "4"]) == 2
    assert "turns: 3 there, 4 now" in capsys.readouterr().err


# ---------------------------------------------------------------- links and shards


def test_a_chain_is_cut_into_links_and_each_ends_with_a_donor(tiny_lm, study):
    stage = grid(tiny_lm, study, Loop(3, modes=("write",)), n_experiments=2 * LINK + 3)
    donors = [one for one in stage.units() if one.donor]
    assert [one.key.exp for one in donors] == [2 * LINK + 3, 2 * LINK, LINK]
    givers = {one.key.exp: stage.needs(one) for one in stage.units() if not one.donor}
    assert givers.keys() == set(range(2 * LINK + 3))
    for exp, (giver,) in givers.items():
        last = exp in (LINK - 1, 2 * LINK - 1, 2 * LINK + 2)
        assert giver.key.exp == exp + 1 and (giver in donors) == last
    without = grid(tiny_lm, study, Loop(3, ("true", "flipped"), ("write",)))
    assert not any(map(without.needs, without.units())) and len(without.units()) == 8


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_links_are_dealt_out_whole_and_every_unit_is_in_one_share(count, tiny_lm, study):
    stage = grid(tiny_lm, study, Loop(3), n_experiments=2 * LINK + 3, levels=(2, 4))
    shares = [stage.share(Shard(index, count)) for index in range(1, count + 1)]
    assert sorted(sum(shares, []), key=str) == sorted(stage.units(), key=str)
    for share in shares:
        for place, one in enumerate(share):
            assert set(stage.needs(one)) <= set(share[:place])


def test_three_shards_are_bit_identical_to_one_run(tiny_lm, study, tmp_path, monkeypatch):
    """The last shard first, in links of two experiments, with replies of the real model."""
    monkeypatch.setattr("analysis.studies.closed_loop.stage.LINK", 2)
    records = []
    for name, shards in (("one", ["1/1"]), ("three", ["3/3", "1/3", "2/3"])):
        store = replace(study.store, root=Path(shutil.copytree(study.store.root, tmp_path / name)))
        for path in store.folder.glob("study_*"):
            path.unlink()
        stage = grid(tiny_lm, replace(study, store=store), Loop(3, examples=1), n_experiments=5)
        done = [run(stage, Shard.parse(shard))[0] for shard in shards]
        assert sum(done) == 2 * (5 + 3) and min(done) >= 4
        records.append([read(stage.path(one)) for one in stage.units()])
        assert len(list(store.folder.glob("study_loop_*donor*"))) == 2 * 3
    for one, other in zip(*records, strict=True):
        same(one, other, 0.0)


def test_a_dry_loop_counts_its_tokens_and_does_nothing(tiny_folder, tmp_path, capsys):
    (tmp_path / "small.yml").write_text(SMALL)
    argv = ["--model", str(tiny_folder), "--config", str(tmp_path / "small.yml")]
    argv += ["--results", str(tmp_path / "results"), "--loop", "3", "--loop_examples", "1"]
    assert neurofeedback.main([*argv, "--dry_run"]) == 0
    (line,) = re.findall("^closed loop.*$", capsys.readouterr().out, re.MULTILINE)
    units, on_disk, tokens = (int(word.replace(",", "")) for word in line.split()[2:5])
    assert (units, on_disk) == (2 * (3 + 1), 0) and not (tmp_path / "results").exists()
    assert neurofeedback.main([*argv, "--n_experiments", "1"]) == 0
    (folder,) = (tmp_path / "results").glob("*/commonsense")
    taken = [read(path)["tokens"] for path in folder.glob("study_loop_*")]
    each = [one["opening"] + one["added"] for one in taken]
    # here a donor for each experiment; messages are counted at their longest
    assert len(each) == 4 and 0.8 * np.mean(each) < tokens < 1.6 * np.mean(each)
    capsys.readouterr()
    assert neurofeedback.main([*argv, "--dry_run"]) == 0
    (line,) = re.findall("^closed loop.*$", capsys.readouterr().out, re.MULTILINE)
    assert line.split()[2:4] == ["6", "2"]  # the donor of one experiment is none of three


def test_a_shard_of_a_loop_leaves_the_figures_to_the_run_without_shard(tiny_folder, tmp_path, capsys):
    (tmp_path / "small.yml").write_text(SMALL)
    argv = ["--model", str(tiny_folder), "--config", str(tmp_path / "small.yml")]
    argv += ["--results", str(tmp_path / "results"), "--loop", "2", "--loop_examples", "0"]
    assert neurofeedback.main([*argv, "--shard", "2/2"]) == 0
    printed, told = capsys.readouterr()
    (folder,) = (tmp_path / "results").glob("*/commonsense")
    assert "closed loop: 4 new, 0 kept" in told and "shard 2/2 is done" in told and not printed
    assert not list(folder.glob("study_loop_write*")) and not (folder / "figures").exists()
    assert neurofeedback.main(argv) == 0
    assert "closed loop: 4 new, 4 kept" in capsys.readouterr().err


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loop", "1"], "2 turns or more"),
        (["--loop", "3", "--loop_arms", "yoked"], "and `true`"),
        (["--loop", "3", "--loop_arms", "true", "true"], "each arm once"),
        (["--loop", "3", "--shard", "2"], "--shard 2: give i/n"),
    ],
)
def test_wrong_sizes_are_one_line_that_says_what_to_do(flags, words, capsys):
    assert neurofeedback.main(flags) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{label}", "", "feedback must be a text with {label}"),
        ("goal:", "aim:", "missing or unknown aim, goal"),
    ],
)
def test_wrong_texts_name_the_key(old, new, words, tmp_path: Path, monkeypatch):
    text = (prompts.CONFIG_DIR / "loop_prompts.yml").read_text()
    (tmp_path / "loop_prompts.yml").write_text(text.replace(old, new))
    monkeypatch.setattr(prompts, "CONFIG_DIR", tmp_path)
    with pytest.raises(UserError, match=words):
        prompts.load_loop_prompts()
