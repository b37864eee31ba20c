"""Whatever is asked of the engine is refused before any work, or equals plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from transformers import PreTrainedModel

from analysis.base.errors import UserError
from analysis.engine.prefix_tree import BadRequest, PrefixTree, Reading, Request, Sampling
from analysis.engine.steering import Steering
from tests.conftest import ARCHITECTURES, TINY, make_model

N_LAYERS, WIDTH, VOCABULARY = TINY["num_hidden_layers"], TINY["hidden_size"], TINY["vocab_size"]
ANSWERS = [5, 6, 7]
WAYS = {"slots": "llama", "chain": "llama", "mask": "mistral with a window", "plain": "llama"}
"""Ways to read -> a model for each."""


@pytest.fixture(scope="module", params=WAYS)
def tree(request, tokenizer) -> PrefixTree:
    """An engine that reads in one of the ways."""
    model = make_model(ARCHITECTURES[WAYS[request.param]])
    if request.param == "plain":
        return PrefixTree(model, tokenizer, packed=False)
    return PrefixTree(model, tokenizer, packed=True, mode=request.param)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Note the tokens of every forward pass."""
    calls: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, out: calls.append(i[0].numel()))
    try:
        yield calls
    finally:
        handle.remove()


# ---------------------------------------------------------------- what may be asked for


@st.composite
def trees(draw: st.DrawFn) -> list[Request]:
    """Requests that begin with parts of each other: equal ones, prefixes, branches of branches."""
    made: list[list[int]] = [[]]
    few = st.integers(20, 23)  # so that tails meet by chance, too
    found = []
    for number in range(draw(st.integers(1, 6))):
        before = draw(st.sampled_from(made))
        kept = before[: draw(st.integers(0, len(before)))]
        ids = kept + draw(st.lists(few, min_size=not kept, max_size=12))
        made.append(ids)
        found.append(draw(a_request(ids, number)))
    return found


@st.composite
def a_request(draw: st.DrawFn, ids: list[int], number: int) -> Request:
    """Return what may be asked of one sequence; positions may count from the end."""
    count = len(ids)
    span = st.integers(0, count - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, count)))
    reply = st.builds(Sampling, st.integers(1, 4), st.sampled_from([0.0, 0.9]), st.just((number,)))
    return Request(
        draw(st.sampled_from([ids, np.array(ids), np.array(ids, np.int32)])),
        draw(st.lists(span, max_size=3)),
        draw(st.lists(st.integers(-count, count - 1), max_size=3)),
        draw(st.none() | reply),
        draw(st.just([]) | st.builds(lambda s: [push(1, 2.0, *s)], span)),
    )


LAYERS = st.lists(
    st.integers(-N_LAYERS, N_LAYERS - 1), max_size=N_LAYERS, unique_by=lambda layer: layer % N_LAYERS
)


def push(layer: int, alpha: float, start: int, stop: int | None, width: int = WIDTH) -> Steering:
    direction = np.eye(1, width, dtype=np.float32)
    return Steering((layer,), "add", direction, 0 * direction, np.ones(1, np.float32), alpha, start, stop)


# ---------------------------------------------------------------- equal to plain passes


def plain_pass(
    model: PreTrainedModel, ids: Sequence[int], steering: Sequence[Steering]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the states (L, T, D) and logits (T, V) of one forward pass, without any engine code."""
    states: list[np.ndarray] = []

    def change(layer: int, out: torch.Tensor) -> torch.Tensor:
        for one in steering:
            if layer in one.layers:
                out = out.clone()
                out[0, one.start : one.stop] += one.alpha * torch.from_numpy(one.directions[0])
        states.append(out[0].numpy())
        return out

    handles = [
        block.register_forward_hook(lambda m, i, out, layer=layer: change(layer, out))
        for layer, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        logits = model(torch.tensor([[int(token) for token in ids]])).logits[0].numpy()
    for handle in handles:
        handle.remove()
    return np.stack(states), logits


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether all differ by less than 1e-4 of the largest."""
    if found.shape != expected.shape:
        return False
    return not expected.size or np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def drawn(logits: np.ndarray, sampling: Sampling, place: int) -> int:
    """Return the token that a reply's own seed draws from logits (V,)."""
    if not sampling.temperature:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()).astype(np.float64) / sampling.temperature)
    uniform = np.random.default_rng(list(sampling.seed)).random(sampling.max_new_tokens)
    return int(np.searchsorted(weights.cumsum() / weights.sum(), uniform[place], side="right"))


def check_reply(tree: PrefixTree, request: Request, reading: Reading, layers: Sequence[int]) -> None:
    """Check a reply token by token, each by a plain pass over all before it, and its mean."""
    ids, reply = [int(token) for token in request.ids], reading.reply
    for place in range(request.reply.max_new_tokens):
        _, logits = plain_pass(tree.model, ids, request.steering)
        token = drawn(logits[-1], request.reply, place)
        if token in tree.stops:
            break
        assert reply.ids[place] == token
        ids.append(token)
    assert len(reply.ids) == len(ids) - len(request.ids)
    if reply.stop > reply.start and len(layers):
        states, _ = plain_pass(tree.model, ids, request.steering)
        own = states[list(layers), len(request.ids) + reply.start : len(request.ids) + reply.stop]
        assert close(reading.reply_pooled, own.mean(axis=1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=trees(), layers=LAYERS, budget=st.integers(1, 40))
def test_a_tree_of_requests_equals_a_plain_pass_of_each(tree, requests, layers, budget):
    tree.context.token_budget = budget
    with counted(tree.model) as calls:
        readings = tree.read(requests, layers, ANSWERS)
    assert not tree.packed or max(calls) <= max(budget, len(requests))  # replies go together
    for request, reading in zip(requests, readings, strict=True):
        states, logits = plain_pass(tree.model, request.ids, request.steering)
        means = [states[list(layers), start:stop].mean(axis=1) for start, stop in request.spans]
        shape = (len(request.spans), len(layers), WIDTH)
        assert close(reading.pooled, np.array(means, np.float32).reshape(shape))
        assert close(reading.logits, logits[list(request.logits_at)][:, ANSWERS])
        assert (reading.reply is None) == (request.reply is None)
        if request.reply is not None:
            check_reply(tree, request, reading, layers)


# ---------------------------------------------------------------- refused

Spoil = Callable[[Request], Request]


def set_to(request: Any, **changes: Any) -> Any:
    """Return a copy with other fields, of wrong types, too, which constructors are checked for in tests."""
    made = copy(request)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def part(**changes: Any) -> Spoil:
    return lambda request: set_to(request, **changes)


def length(make: Callable[[int], dict[str, Any]]) -> Spoil:
    """Return what spoils a request by a change that depends on its length."""
    return lambda request: set_to(request, **make(len(request.ids)))


def bad_reply(**changes: Any) -> Spoil:
    return part(reply=set_to(Sampling(2), **changes))


BAD_REQUESTS: dict[str, tuple[Spoil, str]] = {
    "a span past the end": (length(lambda n: {"spans": [(0, n), (n - 1, n + 1)]}), "span"),
    "an empty span": (part(spans=[(0, 0)]), "span"),
    "a span that goes back": (length(lambda n: {"spans": [(n, n - 1)]}), "span"),
    "a span from the end": (part(spans=[(-1, 1)]), "span"),
    "a span far outside": (length(lambda n: {"spans": [(n + 5, n + 9)]}), "span"),
    "a span of three numbers": (part(spans=[(0, 1, 2)]), "pairs"),
    "a span that is a number": (part(spans=[3]), "pairs"),
    "a span of fractions": (part(spans=[(0.0, 1.0)]), "integer"),
    "a position past the end": (length(lambda n: {"logits_at": [0, n]}), "position"),
    "a position before the start": (length(lambda n: {"logits_at": [-n - 1]}), "position"),
    "a position that is a truth value": (part(logits_at=[True]), "integer"),
    "a token id beyond the vocabulary": (part(ids=[20, VOCABULARY], spans=(), logits_at=()), "token id 512"),
    "a negative token id": (part(ids=[20, -1], spans=(), logits_at=()), "token id -1"),
    "token ids that are fractions": (part(ids=[20.0, 21.0], spans=(), logits_at=()), "integers"),
    "no token": (part(ids=[], spans=(), logits_at=()), "at least one token"),
    "two rows of tokens": (part(ids=[[20], [21]], spans=(), logits_at=()), "one sequence"),
    "a layer to steer that is not there": (part(steering=[push(N_LAYERS, 1.0, 0, 1)]), "layers 0..3"),
    "a layer to steer from the end": (part(steering=[push(-1, 1.0, 0, 1)]), "layers 0..3"),
    "steering of another width": (part(steering=[push(0, 1.0, 0, 1, width=8)]), "hidden size 8"),
    "steering past the end": (length(lambda n: {"steering": [push(0, 1.0, 0, n + 1)]}), "tokens"),
    "steering that begins too late": (length(lambda n: {"steering": [push(0, 1.0, n + 1, None)]}), "tokens"),
    "a reply of no token": (bad_reply(max_new_tokens=0), "at most 0 tokens"),
    "a reply of fractions": (bad_reply(max_new_tokens=2.5), "integer"),
    "a negative temperature": (bad_reply(temperature=-0.5), "temperature"),
    "a temperature that is no number": (bad_reply(temperature=float("nan")), "temperature"),
    "an endless temperature": (bad_reply(temperature=float("inf")), "temperature"),
    "a negative seed": (bad_reply(seed=(0, -3)), "seed"),
    "a rule that is none": (bad_reply(rule="cut"), "rule"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_REQUESTS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=trees(), place=st.integers(0, 5))
def test_a_bad_request_is_refused_by_its_number_and_nothing_is_forwarded(tree, kind, requests, place):
    spoil, message = BAD_REQUESTS[kind]
    bad = place % len(requests)
    requests[bad] = spoil(requests[bad])
    before = replace(tree.total)
    with counted(tree.model) as calls, pytest.raises(BadRequest, match=f"^request {bad}: .*{message}"):
        tree.read(requests, [0, -1], ANSWERS)
    assert not calls and tree.total == before


@pytest.mark.parametrize(
    ("layers", "answers", "message"),
    [
        ([N_LAYERS], [], "layer 4: the model has layers 0..3"),
        ([-N_LAYERS - 1], [], "layer -5"),
        ([3, 3], [], "layer 3 is there twice"),
        ([0, -1, 3], [], "layer 3 is there twice"),
        ([0.0], [], "integer|Type-check"),  # the tests check types, too
        ([True], [], "integer"),
        ([0], [VOCABULARY], "token id 512"),
        ([0], [-1], "token id -1"),
        ([0], [1.5], "integer|Type-check"),
    ],
)  # fmt: skip
def test_layers_and_answers_that_are_not_there_are_refused(tree, layers, answers, message):
    with counted(tree.model) as calls, pytest.raises((BadRequest, TypeCheckError), match=message):
        tree.read([Request([20, 21], [(0, 1)], [1])], layers, answers)
    assert not calls


def test_a_prompt_beyond_the_context_is_refused_for_the_user(tree):
    short, long = Request([20, 21], [(0, 1)]), Request(np.full(2049, 20), reply=Sampling(2))
    with (
        counted(tree.model) as calls,
        pytest.raises(UserError, match="needs 2051 tokens, .* context has 2048"),
    ):
        tree.read([short, long], [0])
    assert not calls


def test_layers_and_positions_may_count_from_the_end(tree):
    request = Request([20, 21, 22, 23], [(1, 3)], [-1, 0, 3, -4])
    (reading,) = tree.read([request], [0, -1, -2], ANSWERS)
    (same,) = tree.read([replace(request, logits_at=[3, 0, 3, 0])], [0, 3, 2], ANSWERS)
    np.testing.assert_array_equal(reading.pooled, same.pooled)
    np.testing.assert_array_equal(reading.logits, same.logits)
    assert np.abs(reading.pooled).max(axis=(0, 2)).min() > 0  # no layer was left out


def test_nothing_is_asked_for(tree):
    assert tree.read([], [0]) == []
    (reading,) = tree.read([Request([20, 21])], [0], ANSWERS)
    assert reading.pooled.shape == (0, 1, WIDTH) and reading.logits.shape == (0, 3)


def test_a_request_leaves_the_others_as_they_are(tree):
    """What the issue saw: a span past the end went into the mean of another request."""
    two = [Request([20, 21, 22], [(0, 3)]), Request([20, 24, 25], [(1, 3)])]
    alone = [tree.read([request], [1])[0].pooled for request in two]
    for reading, expected in zip(tree.read(two, [1]), alone, strict=True):
        assert close(reading.pooled, expected)
    with pytest.raises(BadRequest, match=r"request 0: span \(2, 9\) of 3 tokens"):
        tree.read([replace(two[0], spans=[(0, 3), (2, 9)]), two[1]], [1])
