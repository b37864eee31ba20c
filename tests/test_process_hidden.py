"""Layer i is the residual stream after block i; reading leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig

from analysis.base.errors import UserError
from analysis.models.blocks import decoder_blocks
from analysis.process_hidden import StopForward, read_layers
from tests.conftest import ARCHITECTURES, TINY, make_model

IDS = torch.arange(20, 37)[None]
GPT2 = GPT2Config(vocab_size=512, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=1)


def states(model: nn.Module, layers: list[int], stop: bool = False) -> dict[int, torch.Tensor]:
    """Return what the sink was given, by place in ``layers``."""
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad(), read_layers(model, layers, lambda slot, hidden: found.update({slot: hidden}), stop):
        model(IDS)
    return found


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("config", [*ARCHITECTURES.values(), GPT2], ids=[*ARCHITECTURES, "gpt2"])
def test_a_layer_is_the_residual_stream_after_its_block(config):
    model = make_model(config)
    found = states(model, [0, 1, 2, 3])
    hidden = model(IDS, output_hidden_states=True).hidden_states  # [0] are the embeddings
    for layer in range(3):
        torch.testing.assert_close(found[layer], hidden[layer + 1])
        assert found[layer].shape == (1, 17, 32)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_last_layer_is_read_before_the_final_norm(name):
    model = make_model(ARCHITECTURES[name])
    last = states(model, [3])[0]
    after_norm = model(IDS, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.model.norm(last), after_norm)
    assert not torch.allclose(last, after_norm, atol=1e-2)


def test_the_sink_is_told_the_place_in_the_list(tiny_lm):
    every = states(tiny_lm.model, [0, 1, 2, 3])
    some = states(tiny_lm.model, [3, 1])
    assert some.keys() == {0, 1}
    torch.testing.assert_close(some[0], every[3])
    torch.testing.assert_close(some[1], every[1])


@pytest.mark.parametrize("layers", [[1, 2], [2, 1]])
def test_the_pass_stops_after_the_last_layer_wanted(tiny_lm, layers):
    ran, found = [], {}
    blocks = tiny_lm.model.model.layers
    handles = [b.register_forward_hook(lambda *args, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    try:
        with torch.no_grad(), pytest.raises(StopForward):
            with read_layers(tiny_lm.model, layers, lambda slot, hidden: found.update({slot: hidden}), True):
                tiny_lm.model(IDS)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2] and found.keys() == {0, 1}


@pytest.mark.parametrize("stop", [False, True])
def test_hooks_are_gone_after_reading_also_after_an_error(tiny_lm, stop):
    before = tiny_lm.model(IDS).logits
    others = hook_count(tiny_lm.model)  # transformers leaves its own after output_hidden_states

    def broken(slot: int, hidden: torch.Tensor) -> None:
        raise RuntimeError("the sink fails")

    with (
        pytest.raises(RuntimeError, match="the sink fails"),
        read_layers(tiny_lm.model, [0, 2], broken, stop),
    ):
        assert hook_count(tiny_lm.model) == others + 2
        tiny_lm.model(IDS)
    assert hook_count(tiny_lm.model) == others
    np.testing.assert_array_equal(tiny_lm.model(IDS).logits, before)


def test_a_layer_that_does_not_exist_leaves_no_hook_behind(tiny_lm):
    others = hook_count(tiny_lm.model)
    with pytest.raises(IndexError), read_layers(tiny_lm.model, [0, 4], print):
        pass
    assert hook_count(tiny_lm.model) == others


class TupleBlock(nn.Module):
    """A block as in transformers 4: the states come first in a tuple."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden + 1, None


class TupleModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=2)
        self.blocks = nn.ModuleList([TupleBlock(), TupleBlock()])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(1, ids.shape[1], 3)
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden


def test_blocks_that_return_tuples_are_read_too():
    found = states(TupleModel(), [0, 1])
    assert found[0].tolist() == [[[1.0] * 3] * 17] and found[1].tolist() == [[[2.0] * 3] * 17]


def test_decoder_blocks_are_the_list_as_long_as_the_configuration_says():
    model = make_model(LlamaConfig(**{**TINY, "num_hidden_layers": 3}))
    assert decoder_blocks(model) is model.model.layers and len(decoder_blocks(model)) == 3
    model.config.num_hidden_layers = 5
    with pytest.raises(UserError, match="LlamaForCausalLM has no list of 5 decoder blocks"):
        decoder_blocks(model)
