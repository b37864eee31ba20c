"""Experiments show nested sets, in an order of their own, counterbalanced."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import data.load
from analysis.base.errors import UserError
from analysis.base.seeds import generator
from analysis.experiments.preparation import prepare
from analysis.experiments.reading import largest_that_fits
from analysis.experiments.runs import run_control, run_report
from analysis.experiments.trials import (
    ControlTrial,
    axis_turns,
    control_trials,
    control_turns,
    copy_rate,
    draw_order,
    report_order,
    report_turns,
)
from analysis.process_prompts import Prompter, Turn, load_prompts
from analysis.results.store import Store, read
from configs.settings import Settings
from tests.conftest import GEMMA, TINY, make_model, make_tokenizer
from tests.test_load import write_dataset
from utils import LoadedModel, _model_fingerprint

PROMPTS = load_prompts("commonsense")
POOL = np.arange(100, 140)
SENTENCES = [f"Sentence {i}." for i in range(6)]
LABELS = [0, 1, 1, 0, 1, 0]


def test_the_sets_of_an_experiment_are_nested():
    longest = draw_order(42, 3, POOL, 40)
    for n in range(41):
        np.testing.assert_array_equal(draw_order(42, 3, POOL, n), longest[:n])
    assert sorted(longest) == POOL.tolist()


def test_an_experiment_has_an_order_of_its_own():
    orders = {(s, e): tuple(draw_order(s, e, POOL, 40)) for s in (0, 1, 42) for e in range(4)}
    assert len(set(orders.values())) == len(orders)
    assert tuple(draw_order(42, 2, POOL, 40)) == orders[42, 2]


SIDES = np.arange(600) % 5 < 2  # 240 of 600 lie above the threshold


def shown_sides(exps, n, seed=42):
    """Sides (exps, n) of what reports show, and the pool's rows behind them."""
    rows = np.stack([report_order(seed, exp, np.arange(600), SIDES, n) for exp in range(exps)])
    return SIDES[rows].astype(int), rows


RULES = {
    "always 1": lambda lead: np.ones_like(lead),
    "the side shown more often": lambda lead: np.sign(lead),
    "the side shown less often": lambda lead: -np.sign(lead),
    "in turns": lambda lead: np.broadcast_to((-1) ** np.arange(lead.shape[1]), lead.shape),
}


@pytest.mark.parametrize("n", [2, 16, 240, 360])
@pytest.mark.parametrize("rule", RULES)
def test_what_ignores_the_sentence_is_right_in_half_of_the_reports_at_every_place(rule, n):
    sides, _ = shown_sides(400, n)
    signs = 2 * sides - 1
    lead = np.cumsum(signs, axis=1) - signs  # ones minus zeros before each place
    right = 0.5 + 0.5 * RULES[rule](lead) * signs  # a tie is half right
    error = 0.5 / np.sqrt(400)
    assert abs(right.mean() - 0.5) < 4 * error / np.sqrt(n)
    for part in np.array_split(right, min(n, 8), axis=1):
        assert abs(part.mean() - 0.5) < 4 * error / np.sqrt(part.shape[1])


def test_a_permutation_of_the_whole_pool_gives_the_rarer_side_away():
    """The fault that coins mend: a model that only counts labels would seem to report."""
    even = np.arange(600) % 2
    signs = 2 * np.stack([even[draw_order(42, exp, np.arange(600), 600)] for exp in range(50)]) - 1
    lead = np.cumsum(signs, axis=1) - signs
    right = 0.5 + 0.5 * RULES["the side shown less often"](lead) * signs
    assert right[:, 300:].mean() > 0.53


def test_a_report_shows_no_sentence_twice_and_its_coins_do_not_depend_on_the_axis():
    sides, rows = shown_sides(20, 240)
    assert all(len(set(row)) == 240 for row in rows.tolist())
    other = ~SIDES[::-1]
    again = [other[report_order(42, exp, np.arange(600), other, 240)] for exp in range(20)]
    np.testing.assert_array_equal(sides, again)
    assert len({tuple(row) for row in rows.tolist()}) == 20
    assert (shown_sides(20, 240, seed=1)[1] != rows).any()


def test_a_shorter_report_is_the_start_of_a_longer_one():
    long, short = shown_sides(5, 240)[1], shown_sides(5, 64)[1]
    np.testing.assert_array_equal(long[:, :64], short)


def test_every_sentence_of_a_side_is_as_likely_at_every_place():
    sides, rows = shown_sides(2000, 40)
    for side in (0, 1):
        counts = np.bincount(rows[sides == side], minlength=600)[SIDES == side]
        expected = counts.mean()
        assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * np.sqrt(2 * len(counts))


@pytest.mark.parametrize("n, needed", [(241, 168), (420, 272)])
def test_a_report_that_a_pool_cannot_give_is_refused(n, needed):
    if needed > 240:
        with pytest.raises(UserError, match=f"of {n} sentences may need {needed} of one label.*360.*240"):
            report_order(42, 0, np.arange(600), SIDES, n)
    else:
        assert len(report_order(42, 0, np.arange(600), SIDES, n)) == n


def test_streams_of_random_numbers_differ_and_repeat():
    streams = [
        (0,),
        (1,),
        (0, 1),
        (1, 0, 1),
        (0, "split"),
        (1, "split"),
        (0, "a", 1),
        (0, "a", 2),
        (0, "b", 1),
    ]
    draws = {stream: generator(*stream).random() for stream in streams}
    assert len(set(draws.values())) == len(streams)
    assert all(generator(*stream).random() == value for stream, value in draws.items())


def test_a_trailing_zero_makes_another_stream():
    assert generator(0, "a").random() != generator(0, "a", 0).random()


def test_a_pool_that_is_too_small_is_refused():
    assert len(draw_order(0, 0, POOL, 40)) == 40
    with pytest.raises(UserError, match=r"41 sentences are needed .* pool has 40.*--n_train"):
        draw_order(0, 0, POOL, 41)


def test_trials_are_counterbalanced():
    trials = control_trials((0, 4), ("active", "inactive"))
    assert len(trials) == len(set(trials)) == 2 * 2 * 2 * 2
    for n in (0, 4):
        for mode in ("active", "inactive"):
            cell = [(t.flip, t.target, t.want) for t in trials if (t.n, t.mode) == (n, mode)]
            # asking for the label 1 wants a high score, unless labels are shown flipped
            assert sorted(cell) == [(False, 0, 0), (False, 1, 1), (True, 0, 1), (True, 1, 0)]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_test_sentence_is_the_one_after_the_first_n(n):
    turns = control_turns(ControlTrial(n, False, 1, "inactive"), PROMPTS, SENTENCES, LABELS)
    shown = [t.content for t in turns if t.role == "assistant"]
    assert shown == [f"{SENTENCES[i]} [Score: {LABELS[i]}]" for i in range(n)] + [SENTENCES[n]]
    assert [t.content for t in turns if t.sentence] == [SENTENCES[n]]
    assert all(SENTENCES[n] not in t.content for t in turns[:-1])


def test_an_active_trial_ends_with_the_request_and_marks_nothing():
    turns = control_turns(ControlTrial(2, False, 1, "active"), PROMPTS, SENTENCES, LABELS)
    assert [t.role for t in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[-1].content.endswith(PROMPTS.control_active) and "[Score: 1]" in turns[-1].content
    assert all(t.sentence is None and t.label is None for t in turns)


def test_flipped_labels_are_shown_flipped_and_nothing_else_changes():
    plain, flipped = (
        control_turns(ControlTrial(6, f, 0, "active"), PROMPTS, SENTENCES, LABELS) for f in (False, True)
    )
    swap = str.maketrans("01", "10")
    for a, b in zip(plain[:-1], flipped[:-1], strict=True):
        score = a.content.rfind("[Score:") if a.role == "assistant" else len(a.content)
        assert b.content == a.content[:score] + a.content[score:].translate(swap)
    assert plain[-1] == flipped[-1]


@pytest.mark.parametrize("flip", [False, True])
def test_a_report_shows_and_marks_every_label(flip):
    turns = report_turns(PROMPTS, SENTENCES, LABELS, flip)
    marked = [t.content[t.label] for t in turns if t.label is not None]
    assert marked == [str(label ^ flip) for label in LABELS]
    assert turns[0].content == PROMPTS.system("report", 2)
    assert [t.content for t in turns[1::2]] == [PROMPTS.user_turn] * 6


def test_axes_are_fitted_on_the_sentence_as_assistant_turn():
    turns = axis_turns(PROMPTS, SENTENCES[0])
    expected = ["system", "user", "assistant"], [PROMPTS.axis_system, PROMPTS.user_turn, SENTENCES[0]]
    assert ([t.role for t in turns], [t.content for t in turns]) == expected
    assert turns[2].sentence == (0, len(SENTENCES[0]))


@pytest.mark.parametrize(
    ("reply", "shown", "rate"),
    [
        ("I ate.", ["I ate.", "You ran."], 1.0),
        ("i ATE.", ["I ate."], 1.0),  # letter case is ignored
        ("abcd", ["xxabyy", "cd"], 0.5),
        ("abcd", ["wxyz"], 0.0),
        ("abcd", [], 0.0),
        ("aXbcdY", ["abcd"], 0.5),  # "bcd" of six letters
    ],
)
def test_copy_rate_is_the_share_of_the_longest_common_substring(reply, shown, rate):
    assert copy_rate(reply, shown) == rate


def test_the_copy_rate_of_an_empty_reply_is_nan():
    assert np.isnan(copy_rate("", ["a"]))


def brute_force_rate(reply: str, shown: list[str]) -> float:
    pieces = (reply[a:b] for a in range(len(reply)) for b in range(a + 1, len(reply) + 1))
    return max((len(p) for p in pieces if any(p in s for s in shown)), default=0) / len(reply)


TEXT = st.text("ab .\n", max_size=12)


@given(TEXT.filter(len), st.lists(TEXT, max_size=4))
def test_copy_rate_equals_a_search_over_all_substrings(reply, shown):
    assert copy_rate(reply, shown) == brute_force_rate(reply, shown)


def test_copy_rate_does_not_count_text_that_spans_two_shown_sentences():
    assert copy_rate("ab\ncd", ["ab", "cd"]) == brute_force_rate("ab\ncd", ["ab", "cd"]) == 2 / 5


# ---------------------------------------------------------------- prompts beyond the context

SIZES = Settings(n_axis=20, n_trial=26, max_pc=4)


def narrow(tmp_path: Path, monkeypatch, limit: int, tokenizer: object = None) -> tuple[LoadedModel, Store]:
    """Return a model with a context of ``limit`` tokens, and its preparation."""
    rows = (data.load.DATA_DIR / "commonsense" / "sentences.csv").read_text(encoding="utf-8").splitlines()
    tokenizer = tokenizer or make_tokenizer()
    model = make_model(LlamaConfig(**{**TINY, "num_hidden_layers": 1, "max_position_embeddings": limit}))
    lm = LoadedModel(model, tokenizer, "org/narrow", _model_fingerprint(model))
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    store = Store(tmp_path, "org/narrow", write_dataset(tmp_path, rows[:81]))
    prepare(lm, store.dataset, SIZES, store)
    return lm, store


def lengths(lm: LoadedModel, store: Store, kind: str, exp: int, reply: int = 8) -> list[int]:
    """Return the tokens that experiment ``exp`` needs with n = 0, 1, ... examples, from all its prompts."""
    split, prompter, prompts = read(store.split), Prompter(lm.tokenizer, "x"), load_prompts(store.dataset)
    rows = draw_order(SIZES.seed, exp, split["trial_rows"], 26)
    sentences, labels = [split["sentences"][row] for row in rows], split["labels"][rows]

    def size(turns: list[Turn], written: int = 0) -> int:
        return len(prompter.encode(turns, reply=written > 0).ids) + written

    def control(trial: ControlTrial) -> int:
        turns = control_turns(trial, prompts, sentences, labels)
        return size(turns, reply if trial.mode == "active" else 0)

    if kind == "imit":
        return [max(map(control, control_trials([n], SIZES.modes))) for n in range(26)]
    flips = (False, True)
    return [max(size(report_turns(prompts, sentences[:n], labels, f)) for f in flips) for n in range(26)]


def run(lm: LoadedModel, store: Store, kind: str, n: int, exps: range, reply: int = 8) -> None:
    sizes = dataclasses.replace(SIZES, max_new_tokens=reply, shots=(n,), report_examples=max(n, 2))
    grid = sizes, ["lr"], "0", exps
    if kind == "imit":
        run_control(store, *grid, models={store.model: lm})
    else:
        run_report(store, store.model, *grid, models={store.model: lm})


# a reply of 8 tokens is shorter than any sentence, one of 80 longer: either mode decides once
@pytest.mark.parametrize(
    ("kind", "exp", "reply"), [("imit", 0, 8), ("imit", 1, 80), ("pred", 0, 8), ("pred", 1, 8)]
)
def test_the_largest_number_of_examples_that_fits_is_named_exactly(tmp_path, monkeypatch, kind, exp, reply):
    lm, store = narrow(tmp_path, monkeypatch, 1000)
    needed = lengths(lm, store, kind, exp, reply)
    fitting = max(n for n, length in enumerate(needed) if length <= 1000)
    assert 5 < fitting < 24
    message = f"needs {needed[25]} tokens, but the model's context has 1000: at most {fitting} examples fit"
    with pytest.raises(UserError, match=message):
        run(lm, store, kind, 25, range(exp, exp + 1), reply)
    with pytest.raises(UserError, match=f"needs {needed[fitting + 1]} tokens.*at most {fitting} "):
        run(lm, store, kind, fitting + 1, range(exp, exp + 1), reply)
    run(lm, store, kind, fitting, range(exp, exp + 1), reply)
    assert len(store.units(kind)) == 1


@pytest.mark.parametrize("most", range(12))
def test_the_search_for_the_largest_number_finds_every_number(most):
    for largest in range(-1, most + 1):
        assert largest_that_fits(lambda n, largest=largest: n <= largest, most) == largest


@pytest.mark.parametrize("kind", ["imit", "pred"])
def test_the_number_of_examples_named_fits_every_experiment(tmp_path, monkeypatch, kind):
    lm, store = narrow(tmp_path, monkeypatch, 2048)
    first, second = (lengths(lm, store, kind, exp) for exp in (0, 1))
    n = next(n for n in range(5, 26) if first[n] < second[n])
    lm.model.config.max_position_embeddings = first[n]  # n examples fit in experiment 0, not in 1
    fitting = max(k for k in range(26) if max(first[k], second[k]) <= first[n])
    with pytest.raises(UserError) as caught:
        run(lm, store, kind, 25, range(2))
    assert fitting < n
    assert f"at most {fitting} examples" in str(caught.value)


@pytest.mark.parametrize("kind", ["imit", "pred"])
@pytest.mark.parametrize("template", [None, GEMMA])
def test_a_context_too_short_for_any_example_is_an_error_in_words(tmp_path, monkeypatch, kind, template):
    lm, store = narrow(tmp_path, monkeypatch, 150, template and make_tokenizer(template))
    with pytest.raises(UserError, match="context has 150: not even one example fits"):
        run(lm, store, kind, 2, range(1))
