"""Replies end where their sentence ends, are drawn from the softmax, and may be empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LlamaConfig

import data.load
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import HELD_BACK, Reply, Rule, Sampling, draw, stop_tokens, whole_reply
from analysis.engine.request import Request
from analysis.experiments.control import Control, check_finite
from analysis.experiments.preparation import prepare
from analysis.experiments.score_text import before_score
from analysis.experiments.study import open_study
from analysis.results.store import Store, UnitKey
from configs.settings import Settings
from data.load import read_dataset
from tests.conftest import TINY, make_model
from tests.test_load import write_dataset
from utils import LoadedModel, _model_fingerprint

PIECES = [
    "I",
    " went",
    " [",
    "[",
    "Sc",
    "Score",
    "ore",
    " score",
    ":",
    "=",
    "1",
    "]",
    " ",
    "\n",
    "s",
    " (",
    "*",
    "e",
    ".",
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=24)

RULES = [whole_reply, before_score]

# ---------------------------------------------------------------- where the sentence ends


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("He kept the (score of the match) secret.", "He kept the (score of the match) secret."),
        ("  I went home. [Score: 1]\n", "I went home. [Score: 1]"),
        ("Score: 1", "Score: 1"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_without_a_rule_the_whole_reply_is_the_sentence(text, sentence):
    start, stop, settled = whole_reply(text, True)
    assert text[start:stop] == sentence and not settled


def test_the_engine_keeps_text_that_the_study_would_cut(tiny_lm):
    """The same greedy tokens, read by two rules: only the one that is asked for cuts."""
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    pieces = ["He", " kept", " the", " (", "score", " of", " the", " match", ")", " secret", "."]
    tree.context.decode = lambda ids: "".join(pieces[: len(ids)])
    tree.context.stops = frozenset()
    requests = [
        Request(range(20, 30), reply=Sampling(len(pieces), rule=rule)) for rule in (whole_reply, before_score)
    ]
    whole, cut = (reading.reply for reading in tree.read(requests, [1]))
    assert (whole.sentence, whole.cut) == ("He kept the (score of the match) secret.", False)
    assert (whole.start, whole.stop) == (0, len(pieces))
    assert (cut.sentence, cut.cut, cut.stop) == ("He kept the", True, 3)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS)
def test_characters_counted_while_more_may_come_stay_counted(rule, now, later):
    """Whatever follows, the end seen so far is not taken back, and the start stays."""
    text, whole = "".join(now), "".join(now + later)
    first, last, _ = rule(text, False)
    for final in (False, True):
        start, stop, _ = rule(whole, final)
        assert last <= stop
        if last > first:
            assert start == first


# ---------------------------------------------------------------- token by token


def write(
    pieces: list[str], ends: bool, limit: int = 50, rule: Rule = before_score
) -> tuple[Reply, set[int], set[int]]:
    """Feed one piece per token; return the reply, the tokens pooled on the way, and those forwarded."""
    reply, pooled, forwarded = Reply(Sampling(limit, rule=rule)), set(), set()
    for number, _ in enumerate(pieces):
        if reply.append(number, lambda ids: "".join(pieces[i] for i in ids), {-1}):
            forwarded.add(number)
        pooled |= set(range(max(reply.counted, reply.start), reply.stop))
        reply.counted = max(reply.counted, reply.stop)  # as ReplyMeans.commit does
        if reply.done:
            return reply, pooled, forwarded
    if ends:
        reply.append(-1, str, {-1})
        pooled |= set(range(max(reply.counted, reply.start), reply.stop))
    return reply, pooled, forwarded


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=400, deadline=None)
@given(TEXTS, st.booleans())
@example([" [", "Sc", "ore", " went"], True)
def test_pooled_tokens_are_the_tokens_of_the_final_sentence(rule, pieces, ends):
    reply, pooled, forwarded = write(pieces, ends, len(pieces) + ends, rule)
    text = "".join(pieces[i] for i in reply.ids)
    start, stop, cut = rule(text, True)
    places = np.cumsum([0, *(len(pieces[i]) for i in reply.ids)])
    if reply.done and stop > start:
        inside = [t for t in range(len(reply.ids)) if places[t] < stop and places[t + 1] > start]
        assert sorted(pooled) == inside == list(range(reply.start, reply.stop))
        assert pooled <= forwarded and cut == reply.cut
    if reply.done and stop == start:
        assert not pooled and reply.sentence == ""


@pytest.mark.parametrize("piece", [" ", "\n", " ["])
def test_a_reply_of_blanks_ends_after_the_tokens_held_back(piece):
    reply, _, _ = write([piece] * 40, ends=False)
    assert reply.done and len(reply.ids) == HELD_BACK


def test_a_pause_shorter_than_what_is_held_back_does_not_end_a_reply():
    reply, pooled, _ = write(["I", *[" "] * (HELD_BACK - 1), "went", "."], ends=True)
    assert reply.sentence.split() == ["I", "went."] and pooled == set(range(HELD_BACK + 2))


def test_a_score_ends_the_reply_at_once():
    reply, pooled, forwarded = write(["I", " went", ".", " [", "Score", ":", " 1"], ends=True)
    assert reply.ids == [0, 1, 2, 3, 4, 5] and reply.cut and reply.sentence == "I went."
    assert pooled == {0, 1, 2} and 5 not in forwarded  # the colon's state is not needed


def test_a_character_of_several_tokens_is_pooled_whole(tokenizer):
    ids = tokenizer("a é", add_special_tokens=False)["input_ids"] + tokenizer("😀")["input_ids"]
    assert len(ids) == 8
    reply = Reply(Sampling(50))
    for token in [*ids, 1]:
        reply.append(token, lambda seen: tokenizer.decode(seen), {1})
    assert reply.sentence == "a é😀" and (reply.start, reply.stop) == (0, 8)


# ---------------------------------------------------------------- drawing


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 2.9], [1.0, 0.0, -1.0]])
    assert draw(logits, np.zeros(2), np.array([0.999, 0.999])) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_drawn_tokens_are_the_softmax(temperature, rng):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -30.0, 2.0])
    n = 20_000
    drawn = draw(logits.expand(n, -1), np.full(n, temperature), rng.random(n))
    expected = n * (logits.double() / temperature).softmax(-1).numpy()
    counts = np.bincount(drawn, minlength=6)
    assert counts[4] == 0  # the probability is 1e-7 or less
    keep = [0, 1, 2, 3, 5]
    assert chisquare(counts[keep], expected[keep] * n / expected[keep].sum()).pvalue > 1e-3


def test_the_ends_of_the_unit_interval_draw_the_first_and_last_possible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    assert draw(logits, np.ones(2), np.array([0.0, np.nextafter(1.0, 0.0)])) == [1, 2]


def test_stop_tokens_are_all_special_tokens_and_the_models_own(tiny_lm):
    model = make_model(LlamaConfig(**{**TINY, "eos_token_id": [1, 77]}))
    assert stop_tokens(model, tiny_lm.tokenizer) == {*tiny_lm.tokenizer.all_special_ids, 1, 77}


# ---------------------------------------------------------------- empty replies


@pytest.fixture(scope="module")
def silent_lm(tokenizer) -> LoadedModel:
    """A model that ends every reply at once."""
    model = make_model(LlamaConfig(**TINY))
    model.lm_head = torch.nn.Linear(32, 512)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = 100 * torch.nn.functional.one_hot(torch.tensor(1), 512).float()
    model.requires_grad_(False)
    return LoadedModel(model, tokenizer, "org/silent", _model_fingerprint(model))


@pytest.mark.parametrize("packed", [True, False])
def test_an_empty_reply_has_no_activation(silent_lm, packed):
    tree = PrefixTree(silent_lm.model, silent_lm.tokenizer, packed=packed)
    (reading,) = tree.read([Request([5, 6, 7], reply=Sampling(8, 0.7))], [0, 3])
    assert reading.reply.ids == [] and reading.reply.sentence == ""
    assert reading.reply_pooled.shape == (2, 32) and np.isnan(reading.reply_pooled).all()


def test_empty_replies_are_counted_in_the_record_and_do_not_crash(silent_lm, tmp_path, monkeypatch):
    rows = (data.load.DATA_DIR / "commonsense" / "sentences.csv").read_text().splitlines()[:61]
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    key = write_dataset(tmp_path, rows)
    sizes = Settings(n_axis=20, n_trial=20, max_pc=4, shots=(0, 2), max_new_tokens=4)
    store = Store(tmp_path, "org/silent", key)
    prepare(silent_lm, key, sizes, store)
    control = Control(silent_lm, open_study(store, sizes), PrefixTree(silent_lm.model, silent_lm.tokenizer))
    unit = UnitKey("imit", "lr", 1, 0)
    record = check_finite(control.unit(unit), unit)
    active = np.array(record["mode"]) == "active"
    assert active.sum() == (~active).sum() == 2 * 2 * 2
    np.testing.assert_array_equal(record["empty"], active)
    for name in ("scores", "by_layer", "projection"):
        np.testing.assert_array_equal(np.isnan(record[name]).all(axis=1), active)
        np.testing.assert_array_equal(np.isfinite(record[name]).all(axis=1), ~active)
    assert [text for text, a in zip(record["text"], active, strict=True) if a] == [""] * 8
    assert np.isnan(record["copy_rate"]).all() and not record["cut"].any()
    assert set(record["test_sentence"]) <= set(read_dataset(key).sentences)
