"""The engine gives what plain forward passes of each sequence give, on every kind of attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, MambaConfig, PreTrainedModel

from analysis.base.errors import UserError
from analysis.engine import attention, passes
from analysis.engine.check import try_modes
from analysis.engine.context import PLAIN
from analysis.engine.masks import Masks
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request
from analysis.engine.sight import possible_modes
from analysis.experiments.trials import control_trials, control_turns
from tests.conftest import ARCHITECTURES, TINY, make_model

LAYERS = [0, 2, 3]
ANSWERS = [5, 6, 7]


def branching_requests(rng: np.random.Generator, vocabulary: int = 512, n: int = 12) -> list[Request]:
    """Return sequences that leave one long prefix at different depths, and some that leave each other."""
    base = rng.integers(11, vocabulary, 70)
    requests = []
    for i in range(n):
        keep = int(rng.integers(4, 70))
        tail = rng.integers(11, vocabulary, int(rng.integers(4, 12)))
        ids = np.concatenate([base[:keep], tail, tail[: i % 3]])
        reply = Sampling(8) if i % 3 == 0 else None
        end = len(ids)
        requests.append(Request(ids, [(1, 4), (end - 3, end)], [2, end - 1], reply))
    return requests


def plain_reference(
    model: PreTrainedModel, request: Request, layers: list[int], answers: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return span means and logits by one forward pass with hooks, written without any engine code."""
    states: dict[int, torch.Tensor] = {}
    base = model.base_model
    blocks = base.h if hasattr(base, "h") else base.layers
    handles = [
        blocks[layer].register_forward_hook(
            lambda m, i, out, layer=layer: states.update({layer: out if torch.is_tensor(out) else out[0]})
        )
        for layer in layers
    ]
    with torch.no_grad():
        logits = model(torch.tensor(np.array([request.ids]))).logits[0]
    for handle in handles:
        handle.remove()
    pooled = [[states[layer][0, a:b].mean(0).numpy() for layer in layers] for a, b in request.spans]
    return np.array(pooled), logits[list(request.logits_at)][:, answers].numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def worst_difference(model: PreTrainedModel, requests: list[Request], readings: list[Reading]) -> float:
    found = []
    for request, reading in zip(requests, readings, strict=True):
        pooled, logits = plain_reference(model, request, LAYERS, ANSWERS)
        found += [relative(reading.pooled, pooled), relative(reading.logits, logits)]
    return max(found)


def greedy(model: PreTrainedModel, request: Request, stops: frozenset[int]) -> list[int]:
    """Return the greedy continuation by one full forward pass per token."""
    ids = list(request.ids)
    for _ in range(request.reply.max_new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(request.ids) :]


def modes_of(model: PreTrainedModel) -> list[str]:
    """Return the ways to attend that a model can take, those for other devices, too."""
    modes = possible_modes(model, Masks(model).kinds)
    return ["slots", "chain", "mask"] if len(modes) > 1 else list(modes)


@pytest.mark.parametrize("budget", [7, 33, 512])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["slots", "chain", "mask"])
def test_packed_rows_equal_plain_forward_passes(mode, name, budget, tokenizer, rng):
    model = make_model(ARCHITECTURES[name])
    if mode not in modes_of(model):
        assert PrefixTree(model, tokenizer).mode == "mask"
        return
    requests = branching_requests(rng)
    tree = PrefixTree(model, tokenizer, budget, mode=mode)
    assert tree.packed and tree.mode == mode
    readings = tree.read(requests, LAYERS, ANSWERS)
    assert worst_difference(model, requests, readings) < 1e-4
    for request, reading in zip(requests, readings, strict=True):
        if request.reply:
            assert reading.reply.ids == greedy(model, request, tree.stops)


@pytest.mark.parametrize("name", ["llama", "mistral with a window", "gemma2, eager, hybrid"])
def test_a_broken_mask_is_noticed(name, tokenizer, rng, monkeypatch):
    """The exactness test above has teeth, and the engine's own check refuses to pack."""
    model = make_model(ARCHITECTURES[name])
    requests = branching_requests(rng)
    tree = PrefixTree(model, tokenizer, 512, mode="mask")
    good = Masks.build

    def leaky(self, allowed, distance):  # a token also sees its neighbours' branches
        return good(self, torch.ones_like(allowed).tril(allowed.shape[1] - allowed.shape[0]), distance)

    monkeypatch.setattr(Masks, "build", leaky)
    assert worst_difference(model, requests, tree.read(requests, LAYERS, ANSWERS)) > 1e-3
    assert try_modes(tree.context, ["mask"]) == PLAIN


@pytest.mark.parametrize(("mode", "part"), [("slots", "additive"), ("chain", "causal_lower_right")])
def test_a_wrong_way_to_attend_is_noticed_and_not_taken(mode, part, tiny_lm, rng, monkeypatch):
    requests = branching_requests(rng)
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 16, mode=mode)
    blind = {
        "additive": lambda seen, dtype: torch.zeros(seen.shape),
        "causal_lower_right": lambda rows, slots: torch.zeros(rows, slots),
    }
    monkeypatch.setattr(attention, part, blind[part])
    readings = tree.read(requests, LAYERS, ANSWERS)
    assert worst_difference(tiny_lm.model, requests, readings) > 1e-3
    assert try_modes(tree.context, [mode, "mask"]) == "mask"


def test_boolean_masks_would_be_wrong_with_eager_attention(tokenizer, rng, monkeypatch):
    model = make_model(ARCHITECTURES["gemma2, eager, hybrid"])
    tree = PrefixTree(model, tokenizer, 512)
    assert model.config._attn_implementation == "eager"
    monkeypatch.setattr(Masks, "_as_argument", lambda self, seen: seen[None, None])
    requests = branching_requests(rng)
    assert worst_difference(model, requests, tree.read(requests, LAYERS, ANSWERS)) > 1e-3


def test_every_distinct_token_is_forwarded_once(tiny_lm, rng):
    requests = [Request(r.ids, r.spans) for r in branching_requests(rng)]
    prefixes = {tuple(r.ids[: i + 1]) for r in requests for i in range(len(r.ids))}
    seen = []
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 16)
    tree.read(requests, [1], progress=seen.append)
    assert tree.total.prompt == sum(seen) == len(prefixes)
    assert tree.total.asked == sum(len(r.ids) for r in requests)


def test_the_forward_pass_stops_after_the_last_layer_that_is_read(tiny_lm, rng):
    ran = []
    last = tiny_lm.model.model.layers[3].register_forward_hook(lambda *args: ran.append(1))
    try:
        tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
        ran.clear()
        requests = [Request(r.ids, r.spans) for r in branching_requests(rng)]
        tree.read(requests, [0, 1])
        assert not ran
        tree.read([Request(requests[0].ids, [], [3])], [0], ANSWERS)
        assert ran
    finally:
        last.remove()


def test_a_sampled_reply_does_not_depend_on_its_batch(tiny_lm, rng):
    requests = branching_requests(rng)
    hot = [Request(r.ids, r.spans, (), Sampling(12, 0.7, (3, i))) for i, r in enumerate(requests)]
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 64)
    together = [reading.reply.ids for reading in tree.read(hot, [1])]
    alone = [tree.read([request], [1])[0].reply.ids for request in hot]
    assert together == alone
    assert len({tuple(ids) for ids in together}) > len(hot) // 2  # the seeds differ, so do the replies


def test_reply_means_equal_a_second_look_at_the_written_tokens(tiny_lm, rng):
    requests = [Request(r.ids, reply=Sampling(12, 1.0, (i,))) for i, r in enumerate(branching_requests(rng))]
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 64)
    for request, reading in zip(requests, tree.read(requests, LAYERS), strict=True):
        reply = reading.reply
        if reply.stop > reply.start:
            n = len(request.ids)
            again = Request([*request.ids, *reply.ids], [(n + reply.start, n + reply.stop)])
            pooled, _ = plain_reference(tiny_lm.model, again, LAYERS, ANSWERS)
            assert relative(reading.reply_pooled, pooled[0]) < 1e-4
            assert tree.decode(reply.ids[reply.start : reply.stop]).strip() == reply.sentence


def test_an_architecture_that_cannot_be_packed_takes_the_plain_path(tokenizer, rng, caplog):
    """A state-space model has no attention mask at all: the engine's own check finds out."""
    caplog.set_level("WARNING")
    config = MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=4, state_size=8)
    model = make_model(config)
    tree = PrefixTree(model, tokenizer)
    assert not tree.packed and "one sequence at a time" in caplog.text
    requests = branching_requests(rng, n=4)
    for request, reading in zip(requests, tree.read(requests, [1]), strict=True):
        pooled, _ = plain_reference(model, request, [1], ANSWERS)
        assert relative(reading.pooled, pooled) < 1e-4
        if request.reply:
            assert reading.reply.ids == greedy(model, request, tree.stops)


def test_models_that_are_not_llama_shaped_work_too(tokenizer, rng):
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=1)
    model = make_model(config)
    requests = branching_requests(rng)
    tree = PrefixTree(model, tokenizer, 64)
    assert worst_difference(model, requests, tree.read(requests, LAYERS, ANSWERS)) < 1e-4


def test_out_of_memory_halves_the_budget_and_goes_on(tiny_lm, rng, monkeypatch, caplog):
    requests = branching_requests(rng)
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 256)
    expected = tree.read(requests, LAYERS, ANSWERS)
    real = passes.Passes.run
    caplog.set_level("WARNING")

    def small_memory(self, ids, *args):
        if len(ids) > 32:
            raise torch.OutOfMemoryError("pretended")
        return real(self, ids, *args)

    monkeypatch.setattr(passes.Passes, "run", small_memory)
    readings = tree.read(requests, LAYERS, ANSWERS)
    assert tree.token_budget == 32 and "out of memory" in caplog.text
    for a, b in zip(readings, expected, strict=True):
        np.testing.assert_allclose(a.pooled, b.pooled, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(passes.Passes, "run", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="out of memory even with"):
        tree.read(requests, LAYERS, ANSWERS)


def test_a_prompt_beyond_the_context_is_refused_before_any_work(tiny_lm):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    with pytest.raises(UserError, match=r"needs 2051 tokens, but the model's context has 2048"):
        tree.read([Request(np.full(2049, 20), reply=Sampling(2))], [0])
    assert tree.total.prompt == 0


def test_plain_and_packed_paths_agree_on_the_embedded_model(smollm2):
    """A control experiment in small, on real weights: activations, logits, and greedy text."""
    from analysis.process_prompts import Prompter, load_prompts
    from data.load import read_dataset

    prompts, sentences = load_prompts("commonsense"), read_dataset("commonsense").sentences
    prompter = Prompter(smollm2.tokenizer, smollm2.name)
    labels = [0, 1, 1, 0, 1]
    requests = []
    for trial in control_trials((0, 2, 4), ("active", "inactive")):
        active = trial.mode == "active"
        encoded = prompter.encode(control_turns(trial, prompts, sentences, labels), reply=active)
        spans = encoded.spans or [(5, 15)]
        last = [len(encoded.ids) - 1]
        requests.append(Request(encoded.ids, spans, last, Sampling(6) if active else None))
    requests = requests[::2][:4] + requests[1::2][-5:]
    tree = PrefixTree(smollm2.model, smollm2.tokenizer)
    assert tree.packed
    digits = prompter.answer_ids(prompts.shown, (0, 1))
    layers = [0, 15, 29]
    packed = tree.read(requests, layers, digits)
    plain = PrefixTree(smollm2.model, smollm2.tokenizer, packed=False).read(requests, layers, digits)
    for request, a, b in zip(requests, packed, plain, strict=True):
        pooled, logits = plain_reference(smollm2.model, request, layers, digits)
        assert relative(a.pooled, pooled) < 1e-4 and relative(a.logits, logits) < 1e-4
        assert relative(b.pooled, pooled) < 1e-4 and relative(b.logits, logits) < 1e-4
        if request.reply:
            assert a.reply.ids == b.reply.ids and a.reply.ids


def test_tiny_constants_hold():
    """The windows of the test models are shorter than the sequences, so that they matter."""
    assert ARCHITECTURES["mistral with a window"].sliding_window < 70 < TINY["max_position_embeddings"]
