"""Steering in the prefix engine gives what plain full forward passes with simple hooks give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MambaConfig, PreTrainedModel

from analysis.axes.steer import steer_along
from analysis.classifiers import AxisSet
from analysis.engine.prefix_tree import BadRequest, PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request
from analysis.engine.steering import KINDS, Interventions, Steering
from analysis.engine.trie import build_trie
from tests.conftest import ARCHITECTURES, TINY, make_model

LAYERS = [0, 1, 3]
ANSWERS = [5, 6, 7]
NAMES = ("llama", "qwen2", "gemma2, eager, hybrid")


def make_axes(layer: int) -> AxisSet:
    """Return two random axes with a mean and scales that matter."""
    rng = np.random.default_rng(layer)
    directions = rng.standard_normal((2, 32)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mean, scales = rng.standard_normal(32).astype(np.float32), np.array([1.5, 0.7], np.float32)
    return AxisSet(("lr", "pc1"), directions, mean, scales, np.zeros(2), np.ones(2), {})


AXES = {layer: make_axes(layer) for layer in range(4)}


def steer(
    kind: str, alpha: float, span: tuple[int, int | None], layers: Sequence[int] = (1,), name: str = "lr"
) -> Steering:
    return steer_along({layer: AXES[layer] for layer in layers}, name, kind, alpha, *span)


def steered_requests(rng: np.random.Generator, kind: str) -> list[Request]:
    """Return requests that share prefixes and are steered in the trunk, in branches and in replies."""
    alpha = 0.0 if kind == "ablate" else 3.0
    base, tails = rng.integers(11, 512, 60), rng.integers(11, 512, (4, 9))
    spans, reply = [(2, 5), (30, 36), (50, 58)], Sampling(6)
    trunk = steer(kind, alpha, (20, 40), (1, 2))
    rest = steer(kind, alpha, (45, None))
    return [
        Request(base, spans, [59], reply),
        Request(base, spans, [10, 59], reply, [trunk]),
        Request(base, spans, [59], reply, [trunk, steer("add", -2.0, (30, 55), name="pc1")]),
        Request(base, spans, [59], reply, [rest]),
        Request(base, spans, [59], reply, [replace(rest, start=60)]),  # the reply only
        Request([*base[:50], *tails[0]], spans, [40, 58], None, [trunk]),
        Request([*base[:50], *tails[1]], spans, [58], reply, [trunk, replace(rest, start=50, stop=55)]),
        Request([*base[:50], *tails[2]], spans, [58], None, [replace(rest, start=50, stop=55)]),
        Request([*base[:50], *tails[3]], spans, [58], reply, [replace(rest, start=50, alpha=alpha / 2)]),
        Request([*base[:50], *tails[3]], spans, [58]),
    ]


def changed(h: torch.Tensor, one: Steering, slot: int) -> torch.Tensor:
    """Return the states (C, D) after an intervention: the score is computed, changed and put back."""
    v, m = torch.from_numpy(one.directions[slot]), torch.from_numpy(one.means[slot])
    s = float(one.scales[slot])
    score = (h - m) @ v / s
    wanted = {"add": score + one.alpha, "clamp": torch.full_like(score, one.alpha), "ablate": 0 * score}
    return h + ((wanted[one.kind] - score) * s)[:, None] * v


def plain_states(
    model: PreTrainedModel, ids: Sequence[int], steering: Sequence[Steering]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the states (T, D) after every block and the logits (T, V) of one steered full forward pass."""
    states: dict[int, torch.Tensor] = {}
    blocks = model.backbone.layers if hasattr(model, "backbone") else model.model.layers

    def change(layer: int, out: torch.Tensor) -> torch.Tensor:
        row = (out if torch.is_tensor(out) else out[0])[0].clone()
        for one in steering:
            if layer in one.layers:
                row[one.start : one.stop] = changed(row[one.start : one.stop], one, one.layers.index(layer))
        states[layer] = row
        return row[None] if torch.is_tensor(out) else (row[None], *out[1:])

    handles = [
        block.register_forward_hook(lambda m, i, out, layer=layer: change(layer, out))
        for layer, block in enumerate(blocks)
    ]
    with torch.no_grad():
        logits = model(torch.tensor(np.array([ids]))).logits[0]
    for handle in handles:
        handle.remove()
    return [states[layer] for layer in range(len(blocks))], logits


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def worst_difference(model: PreTrainedModel, requests: Sequence[Request], readings: list[Reading]) -> float:
    """Compare span means, logits and the mean over the reply's sentence with plain forward passes."""
    found = []
    for request, reading in zip(requests, readings, strict=True):
        states, logits = plain_states(model, request.ids, request.steering)
        pooled = [[states[layer][a:b].mean(0).numpy() for layer in LAYERS] for a, b in request.spans]
        wanted = logits[list(request.logits_at)][:, ANSWERS].numpy()
        found += [relative(reading.pooled, np.array(pooled)), relative(reading.logits, wanted)]
        if reading.reply is not None and reading.reply.stop > reading.reply.start:
            first, last = (len(request.ids) + at for at in (reading.reply.start, reading.reply.stop))
            states, _ = plain_states(model, [*request.ids, *reading.reply.ids], request.steering)
            means = np.array([states[layer][first:last].mean(0).numpy() for layer in LAYERS])
            found.append(relative(reading.reply_pooled, means))
    return max(found)


def greedy(model: PreTrainedModel, request: Request, stops: frozenset[int]) -> list[int]:
    """Return the greedy steered continuation by one full forward pass per token."""
    ids = [int(token) for token in request.ids]
    for _ in range(request.reply.max_new_tokens):
        token = int(plain_states(model, ids, request.steering)[1][-1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(request.ids) :]


@pytest.mark.parametrize(("kind", "budget"), [("add", 7), ("clamp", 33), ("ablate", 512)])
@pytest.mark.parametrize("name", NAMES)
def test_the_engine_steers_as_plain_forward_passes_do(name, kind, budget, tokenizer, rng):
    model = make_model(ARCHITECTURES[name])
    requests = steered_requests(rng, kind)
    tree = PrefixTree(model, tokenizer, budget)
    assert tree.packed
    readings = tree.read(requests, LAYERS, ANSWERS)
    assert worst_difference(model, requests, readings) < 1e-4
    for request, reading in zip(requests, readings, strict=True):
        if request.reply:
            assert reading.reply.ids == greedy(model, request, tree.stops)


@pytest.mark.parametrize("kind", KINDS)
def test_one_request_at_a_time_gives_the_same(kind, tiny_lm, rng):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    requests = steered_requests(rng, kind)
    plain = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False)
    readings = plain.read(requests, LAYERS, ANSWERS)
    assert worst_difference(tiny_lm.model, requests, readings) < 1e-4
    for reading, packed in zip(readings, tree.read(requests, LAYERS, ANSWERS), strict=True):
        assert (reading.reply and reading.reply.ids) == (packed.reply and packed.reply.ids)


def test_a_model_without_keys_and_values_is_steered_in_its_reply(tokenizer, rng):
    config = MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=4, state_size=8)
    model = make_model(config)
    tree = PrefixTree(model, tokenizer)
    assert not tree.packed
    push = steer("add", 40.0, (15, None))
    request = Request(rng.integers(11, 512, 20), [(5, 9)], [19], Sampling(6), [push])
    reading = tree.read([request], LAYERS, ANSWERS)[0]
    assert worst_difference(model, [request], [reading]) < 1e-4
    assert reading.reply.ids == greedy(model, request, tree.stops)


def test_the_comparison_notices_steering_that_is_shared_wrongly(tiny_lm, rng, monkeypatch):
    requests = steered_requests(rng, "add")
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    before = Interventions._prompt

    def late(self, steering, length):  # acts one token late
        return np.roll(before(self, steering, length), 1)

    monkeypatch.setattr(Interventions, "_prompt", late)
    readings = tree.read(requests, LAYERS, ANSWERS)
    assert worst_difference(tiny_lm.model, requests, readings) > 1e-3


def test_requests_share_what_is_steered_alike_and_nothing_after_the_first_difference(tiny_lm, rng):
    ids = rng.integers(11, 512, 40)
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)

    def forwarded(*steerings: Sequence[Steering]) -> int:
        before = tree.total.prompt
        tree.read([Request(ids, [(0, 40)], steering=steering) for steering in steerings], [1])
        return tree.total.prompt - before

    assert forwarded([], []) == 40
    assert forwarded([], [steer("add", 1.0, (30, 40))]) == 40 + 10
    assert forwarded([steer("add", 1.0, (10, 20))], [steer("add", 1.0, (10, 20))]) == 40
    assert forwarded([steer("add", 1.0, (10, 20))], [steer("add", 1.0, (10, 25))]) == 40 + 20
    assert forwarded([steer("add", 1.0, (10, 20))], [steer("add", 2.0, (10, 20))]) == 40 + 30
    assert forwarded([], [steer("add", 1.0, (40, None))], [steer("add", 1.0, (40, 40))]) == 40


def test_a_trie_without_variants_is_one_with_equal_variants_and_others_split_it():
    sequences, zeros = [[3, 4, 5], [3, 4, 6], [3, 4, 5]], [np.zeros(3, np.int64)] * 3
    plain, same = build_trie(sequences), build_trie(sequences, zeros)
    for field in ("token", "variant", "parent", "depth", "end"):
        assert np.array_equal(getattr(plain, field), getattr(same, field))
    split = build_trie(sequences, [*zeros[:2], np.array([0, 2, 0])])
    assert split.token.tolist() == [3, 4, 5, 6, 4, 5]
    assert split.variant.tolist() == [0, 0, 0, 0, 2, 0]
    assert split.parent.tolist() == [-1, 0, 1, 1, 0, 4]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("alpha", [-2.0, 0.5, 3.0])
def test_alpha_is_counted_in_the_score_at_the_steered_layer(layer, alpha, tiny_lm, rng):
    ids, span = rng.integers(11, 512, 40), (12, 20)
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    kinds = {"add": alpha, "clamp": alpha, "ablate": 0.0}
    steered = [[steer(kind, strength, span, (layer,))] for kind, strength in kinds.items()]
    readings = tree.read([Request(ids, [span], steering=s) for s in [[], *steered]], [layer])
    plain, add, clamp, ablate = (AXES[layer].scores(reading.pooled[0])[0, 0] for reading in readings)
    assert add - plain == pytest.approx(alpha, abs=1e-3)
    assert clamp == pytest.approx(alpha, abs=1e-3)
    assert ablate == pytest.approx(0, abs=1e-3)
    assert abs(plain) > 0.01


def test_bfloat16_states_are_moved_in_float32_and_rounded_once(tokenizer, rng):
    model = make_model(LlamaConfig(**TINY)).to(torch.bfloat16)
    ids, axes = rng.integers(11, 512, 12), AXES[1]
    tree = PrefixTree(model, tokenizer)
    requests = [Request(ids, [(7, 8)], steering=s) for s in ([], [steer("add", 0.3, (7, 8))])]
    plain, steered = (torch.from_numpy(r.pooled[0]) for r in tree.read(requests, [1]))
    wanted = (plain + 0.3 * 1.5 * torch.from_numpy(axes.directions[:1])).to(torch.bfloat16).float()
    torch.testing.assert_close(steered, wanted, rtol=0, atol=0)


def test_a_model_is_as_it_was_after_steering(tiny_lm, rng):
    requests = steered_requests(rng, "clamp")
    plain = [replace(request, steering=()) for request in requests]
    ids = torch.tensor(np.array([requests[0].ids]))
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    logits, before = tiny_lm.model(ids).logits, tree.read(plain, LAYERS, ANSWERS)
    tree.read(requests, LAYERS, ANSWERS)
    assert torch.equal(tiny_lm.model(ids).logits, logits)
    for one, other in zip(before, tree.read(plain, LAYERS, ANSWERS), strict=True):
        assert np.array_equal(one.pooled, other.pooled) and np.array_equal(one.logits, other.logits)


def test_hooks_are_gone_after_an_error(tiny_lm, rng):
    blocks = tiny_lm.model.model.layers
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    tree.read(steered_requests(rng, "add"), LAYERS, ANSWERS)  # transformers leaves hooks of its own
    before = [len(block._forward_hooks) for block in blocks]

    def fail(*args: object) -> None:
        raise RuntimeError("planted")

    handle = blocks[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        tree.read(steered_requests(rng, "add"), LAYERS, ANSWERS)
    handle.remove()
    assert [len(block._forward_hooks) for block in blocks] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "push"}, "unknown kind of steering 'push': choose from add, clamp, ablate"),
        ({"kind": "ablate", "alpha": 1.0}, "ablate with alpha 1.0"),
        ({"alpha": float("nan")}, "add with alpha nan"),
        ({"start": 5, "stop": 4}, "from token 5 to 4"),
        ({"start": -1}, "from token -1"),
        ({"layers": (1, 2)}, "give one row per layer"),
        ({"means": np.zeros(3)}, r"give \(L, D\), \(L, D\) and \(L,\)"),
        ({"directions": np.full((1, 32), 0.5, np.float32)}, "divide each by its length"),
        ({"directions": np.full((1, 32), np.nan, np.float32)}, "divide each by its length"),
        ({"scales": np.zeros(1)}, "above 0"),
    ],
)
def test_steering_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(steer("add", 1.0, (0, 4)), **change)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (replace(steer("add", 1.0, (0, 4)), layers=(4,)), r"layers 0\.\.3"),
        (Steering((0,), "add", np.eye(1, 8), np.zeros((1, 8)), np.ones(1), 1.0), "hidden size 8"),
        (steer("add", 1.0, (0, 11)), "the request has 10 tokens"),
        (steer("add", 1.0, (11, None)), "the request has 10 tokens"),
    ],
)
def test_steering_that_does_not_fit_the_model_or_the_request_is_refused(steering, message, packed, tiny_lm):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=packed)
    with pytest.raises(BadRequest, match=f"request 0: .*{message}"):
        tree.read([Request(range(20, 30), [(0, 4)], steering=[steering])], [1])
