"""What the engine changes around a model is put back in every case, and threads get right numbers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from analysis.engine import kernels
from analysis.engine.attention import NAME
from analysis.engine.dialogues import Dialogues
from analysis.engine.patches import SHARE_HEADS, engaged
from analysis.engine.prefix_tree import Busy, PrefixTree, Reading, Request, Sampling
from tests.conftest import ARCHITECTURES, make_model


def requests_of(seed: int, count: int = 8) -> list[Request]:
    """Return requests that share a prefix, with replies."""
    rng = np.random.default_rng(seed)
    trunk = rng.integers(11, 500, 60)
    tails = [np.concatenate([trunk, rng.integers(11, 500, 9)]) for _ in range(count)]
    return [
        Request(ids, [(5, 40), (60, 69)], [-1], Sampling(8, 0.7, (seed, b))) for b, ids in enumerate(tails)
    ]


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Return all that the engine may change around a model."""
    modules = list(model.modules())
    return {
        "attention": model.config._attn_implementation,
        "heads": os.environ.get(SHARE_HEADS),
        "forward": [name for name, module in model.named_modules() if "forward" in vars(module)],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
    }


def assert_same(found: Sequence[Reading], expected: Sequence[Reading]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.reply.ids == other.reply.ids
        for name in ("pooled", "logits", "reply_pooled"):
            a, b = getattr(one, name), getattr(other, name)  # NaN for a reply that is empty
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.nanmax(np.abs(b), initial=0))


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Call each in a thread of its own, at the same time; return what they returned or raised."""
    found: list[Any] = [None] * len(calls)
    begin = threading.Barrier(len(calls))

    def work(place: int) -> None:
        begin.wait()
        try:
            found[place] = calls[place]()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


@pytest.fixture(params=["slots", "chain", "mask", "plain"])
def tree(request, tokenizer, monkeypatch) -> PrefixTree:
    """An engine in one of the ways to read, on a model of its own, with products that are changed."""
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernels, "product", torch.nn.functional.linear)
    model = make_model(ARCHITECTURES["llama"])
    if request.param == "plain":
        return PrefixTree(model, tokenizer, 16, packed=False)
    return PrefixTree(model, tokenizer, 16, packed=True, mode=request.param)


def test_reads_of_one_model_in_several_threads_are_those_of_one(tree):
    lots = [requests_of(seed) for seed in range(4)]
    alone, before = [tree.read(lot, [0, 3], [5, 6]) for lot in lots], state_of(tree.model)
    for _ in range(3):
        found = together(*(lambda lot=lot: tree.read(lot, [0, 3], [5, 6]) for lot in lots))
        for one, expected in zip(found, alone, strict=True):
            assert_same(one, expected)
    assert state_of(tree.model) == before


def test_two_models_are_read_at_once(tokenizer):
    trees = [PrefixTree(make_model(ARCHITECTURES["llama"], seed), tokenizer, 16) for seed in (0, 1)]
    alone, before = [tree.read(requests_of(7), [1], [5]) for tree in trees], os.environ.get(SHARE_HEADS)
    inside = threading.Barrier(2)  # broken unless both are within a read at the same time

    def read(tree: PrefixTree) -> list[Reading]:
        met = iter([lambda: inside.wait(120)])
        return tree.read(requests_of(7), [1], [5], lambda tokens: next(met, lambda: None)())

    for one, expected in zip(together(*(lambda t=t: read(t) for t in trees)), alone, strict=True):
        assert_same(one, expected)
    assert os.environ.get(SHARE_HEADS) == before


@pytest.mark.parametrize("mode", ["slots", "mask", "plain"])
def test_somebody_who_calls_the_model_meanwhile_disturbs_no_read_and_gets_no_wrong_numbers(mode, tokenizer):
    model, ids = make_model(ARCHITECTURES["llama"]), torch.arange(20, 60)[None]
    options = {"packed": False} if mode == "plain" else {"packed": True, "mode": mode}
    tree, alone = PrefixTree(model, tokenizer, 16, **options), model(ids).logits
    expected, found = tree.read(requests_of(3), [1], [5]), []

    def call(tokens: int) -> None:
        found.extend(together(lambda: model(ids).logits))

    assert_same(tree.read(requests_of(3), [1], [5], call), expected)
    assert found
    for one in found:
        if mode == "slots":  # attention is the engine's now, and says so
            assert isinstance(one, RuntimeError) and "another thread reads it" in str(one)
        else:
            torch.testing.assert_close(one, alone)


def test_a_read_inside_a_read_is_refused_and_the_outer_one_goes_on(tree):
    expected, refused = tree.read(requests_of(1), [1], [5]), []

    def nested(tokens: int) -> None:
        with pytest.raises(Busy, match="cannot begin inside another one"):
            tree.read(requests_of(2), [1])
        with pytest.raises(Busy):
            PrefixTree(tree.model, tree.tokenizer, mode="mask")  # which would try the model
        refused.append(tokens)

    assert_same(tree.read(requests_of(1), [1], [5], nested), expected)
    assert refused
    assert PrefixTree(tree.model, tree.tokenizer, mode="mask").packed  # what was refused is no verdict


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_everything_is_put_back_after_an_error(tree, error):
    before, steps = state_of(tree.model), []

    def stop(tokens: int) -> None:
        steps.append(state_of(tree.model))
        if len(steps) == 3:
            raise error("planted")

    with pytest.raises(error, match="planted"):
        tree.read(requests_of(1), [1], [5], stop)
    changed = steps[0]
    assert (changed["attention"] == NAME) == (tree.mode in ("slots", "chain"))
    assert bool(changed["forward"]) == (changed["heads"] == "1") == tree.packed
    assert state_of(tree.model) == before
    assert len(tree.read(requests_of(1), [1])) == 8  # and the model is free again


def test_what_the_variable_was_before_comes_back(tiny_lm, monkeypatch):
    monkeypatch.setenv(SHARE_HEADS, "0")
    with engaged(tiny_lm.model, heads=True):
        assert os.environ[SHARE_HEADS] == "1"
    assert os.environ[SHARE_HEADS] == "0"


def test_an_interrupt_while_changes_are_made_undoes_those_that_were(tokenizer, monkeypatch):
    model, done = make_model(ARCHITECTURES["llama"]), []
    before = state_of(model)
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: True)

    def interrupted(layer: torch.nn.Module) -> bool:
        if isinstance(layer, torch.nn.Linear):
            done.append(layer)
        if len(done) == 5:
            raise KeyboardInterrupt
        return isinstance(layer, torch.nn.Linear)

    monkeypatch.setattr(kernels, "is_plain_linear", interrupted)
    with pytest.raises(KeyboardInterrupt), engaged(model, attention=True, products=True, heads=True):
        pytest.fail("the block was entered")
    assert len(done) == 5 and state_of(model) == before


def test_models_that_share_a_configuration_object_are_not_mixed_up(tokenizer):
    one, other = (make_model(ARCHITECTURES["llama"], seed) for seed in (0, 1))
    other.config = other.model.config = one.config
    trees = [PrefixTree(model, tokenizer, packed=True, mode="slots") for model in (one, other)]
    refused = []

    def nested(tokens: int) -> None:
        with pytest.raises(Busy, match="shares its configuration"):
            trees[1].read(requests_of(1), [1])
        refused.append(tokens)

    trees[0].read(requests_of(1), [1], (), nested)
    assert refused and one.config._attn_implementation == "sdpa"


def test_conversations_and_reads_of_one_model_take_turns(tokenizer):
    model = make_model(ARCHITECTURES["llama"])
    tree = PrefixTree(model, tokenizer, 16)
    openings = [np.arange(20, 40 + b) for b in range(3)]

    def talk() -> list[list[int]]:
        made = Dialogues(tree, openings, [1, 3], room=200)
        said = []
        for turn in range(3):
            said += [reply.ids for reply, _ in made.write([Sampling(8, 0.9, (turn, b)) for b in range(3)])]
            made.add([np.arange(30, 33 + b) for b in range(3)])
        return said

    spoken, read = talk(), tree.read(requests_of(4), [0, 2], [5])
    for _ in range(3):
        again, other = together(talk, lambda: tree.read(requests_of(4), [0, 2], [5]))
        assert again == spoken
        assert_same(other, read)
