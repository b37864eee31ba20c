"""Memory that runs out is no verdict about a model: less is done at once, or the user is told what helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MambaConfig, PreTrainedModel

from analysis.base.errors import UserError
from analysis.engine.check import EXACT_MODES
from analysis.engine.dialogues import Dialogues
from analysis.engine.memory import is_out_of_memory, with_less_memory
from analysis.engine.prefix_tree import PrefixTree, Request, Sampling
from tests.conftest import ARCHITECTURES, make_model

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    MemoryError(),
]
KINDS = ["gpu", "cpu", "python"]


class Small:
    """Memory of a model that holds so many tokens at once, and fails so many times at most."""

    def __init__(self, model: PreTrainedModel, tokens: int, error: Exception, times: int = 10**6) -> None:
        self.tokens, self.error, self.left, self.failed = tokens, error, times, 0
        model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > self.tokens and self.failed < self.left:
            self.failed += 1
            raise self.error


def requests_of(seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    trunk = rng.integers(11, 500, 200)
    return [
        Request(
            np.concatenate([trunk[:keep], rng.integers(11, 500, 7)]),
            [(3, keep), (keep, keep + 7)],
            [-1, 20],
            reply,
        )
        for keep, reply in ((50, None), (120, Sampling(6)), (200, Sampling(6, 0.8, (1,))))
    ]


def assert_same(found: list, expected: list) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("pooled", "logits"):
            a, b = getattr(one, name), getattr(other, name)
            assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
        assert (one.reply and one.reply.ids) == (other.reply and other.reply.ids)


def test_other_errors_are_not_taken_for_memory():
    assert all(map(is_out_of_memory, SHORT))
    others = [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        KeyError("k"),
    ]
    assert not any(map(is_out_of_memory, others))
    with pytest.raises(ZeroDivisionError):
        with_less_memory(lambda tokens: 1 // 0, 64)


@pytest.mark.parametrize("error", SHORT, ids=KINDS)
def test_the_check_of_a_model_goes_on_with_fewer_tokens(error, tokenizer, caplog):
    caplog.set_level("WARNING")
    model = make_model(ARCHITECTURES["llama"])
    memory = Small(model, 2, error, times=2)
    tree = PrefixTree(model, tokenizer)
    assert memory.failed == 2 and tree.packed
    assert tree.token_budget == 512 and tree.total.calls == 0  # the check had a budget of its own
    assert "going on with 2 tokens" in caplog.text and "cannot be packed" not in caplog.text


@pytest.mark.parametrize("error", SHORT, ids=KINDS)
def test_no_memory_for_the_check_is_an_error_and_no_verdict(error, tokenizer, caplog):
    model = make_model(ARCHITECTURES["llama"])
    memory = Small(model, 0, error)
    with pytest.raises(UserError, match="out of memory even with 1 tokens at once: use a smaller model"):
        PrefixTree(model, tokenizer)
    assert not EXACT_MODES.get(model) and "cannot be packed" not in caplog.text
    memory.left = 0
    assert PrefixTree(model, tokenizer).mode == "slots"


def test_an_interrupted_check_is_no_verdict(tokenizer):
    model = make_model(ARCHITECTURES["llama"])
    Small(model, 0, KeyboardInterrupt(), times=1)
    with pytest.raises(KeyboardInterrupt):
        PrefixTree(model, tokenizer)
    assert PrefixTree(model, tokenizer).mode == "slots"


@pytest.mark.parametrize("error", SHORT, ids=KINDS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral with a window", "gemma3, sdpa, hybrid"])
def test_a_read_goes_on_with_fewer_tokens_and_gives_the_same(name, packed, error, tokenizer, caplog):
    caplog.set_level("WARNING")
    model = make_model(ARCHITECTURES[name])
    tree = PrefixTree(model, tokenizer, 256, packed=packed)
    expected = tree.read(requests_of(0), [0, 3], [5, 6])
    memory = Small(model, 40, error)
    assert_same(tree.read(requests_of(0), [0, 3], [5, 6]), expected)
    assert memory.failed and "out of memory: going on with" in caplog.text


@pytest.mark.parametrize("packed", [True, False])
def test_too_little_memory_for_a_read_says_what_helps(packed, tokenizer):
    model = make_model(ARCHITECTURES["llama"])
    tree = PrefixTree(model, tokenizer, packed=packed)
    Small(model, 8, SHORT[0])
    with pytest.raises(UserError, match=r"out of memory even with \d+ tokens at once: .* fewer examples"):
        tree.read(requests_of(0), [1])


def test_a_model_without_keys_and_values_says_that_it_cannot_take_parts(tokenizer):
    model = make_model(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=4, state_size=8))
    tree = PrefixTree(model, tokenizer)
    assert not tree.packed
    Small(model, 40, SHORT[0])
    with pytest.raises(UserError, match="MambaForCausalLM cannot take a prompt of 57 tokens in parts"):
        tree.read(requests_of(0), [1])


@pytest.mark.parametrize("packed", [True, False])
def test_a_reply_that_does_not_fit_is_one_clear_error(packed, tokenizer, monkeypatch):
    model = make_model(ARCHITECTURES["llama"])
    tree = PrefixTree(model, tokenizer, packed=packed)
    tokens = []

    def full(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens.append(inputs[0].numel())
        if inputs[0].numel() < 3:  # a step of the replies
            raise SHORT[0]

    model.get_input_embeddings().register_forward_pre_hook(full)
    with pytest.raises(UserError, match="out of memory"):
        tree.read(requests_of(0)[1:], [1])


def test_conversations_go_on_with_fewer_tokens(tokenizer):
    openings = [np.arange(20, 100 + b) for b in range(3)]
    said = []
    for small in (False, True):
        model = make_model(ARCHITECTURES["llama"])
        tree = PrefixTree(model, tokenizer, 256)
        memory = Small(model, 40, SHORT[0], 10**6 if small else 0)
        talk = Dialogues(tree, openings, [1], room=300)
        first = talk.write([Sampling(6, 0.8, (b,)) for b in range(3)])
        talk.add([np.arange(30, 80)] * 3)
        second = talk.write([Sampling(6, 0.8, (b, 1)) for b in range(3)])
        said.append([reply.ids for reply, _ in (*first, *second)])
        assert bool(memory.failed) == small and tree.token_budget == (32 if small else 256)
    assert said[0] == said[1]
