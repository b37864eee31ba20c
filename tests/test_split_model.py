"""Models that are spread over devices, offloaded, or loaded in 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import utils
from analysis.base.errors import UserError
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Request
from analysis.experiments.preparation import encode_sentences, mean_embeddings
from analysis.models.blocks import input_device
from analysis.process_prompts import load_prompts
from data.load import load_dataset
from tests.conftest import ARCHITECTURES, make_model
from utils import LoadedModel, _model_fingerprint, load_model

Spread = Callable[[PreTrainedModel, Path], PreTrainedModel]
LAYERS, ANSWERS = [0, 1, 2, 3], [1, 2, 3]


def two_stages(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The first half in memory, the second half on disk."""
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    places |= {"model.norm": "disk", "lm_head": "disk"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def in_memory(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Every weight on the meta device, brought in from memory for each call."""
    return cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Every weight on the meta device, brought in from disk for each call."""
    return disk_offload(model, folder, execution_device=torch.device("cpu"))


SPREADS = {"two stages": two_stages, "in memory": in_memory, "on disk": on_disk}


@pytest.fixture
def requests_(rng) -> list[Request]:
    """Three sequences that share 20 tokens, with spans, logits and replies."""
    trunk = rng.integers(0, 500, 20)
    return [
        Request(
            np.concatenate([trunk, rng.integers(0, 500, 6)]), spans=[(5, 10), (20, 26)], logits_at=[8, 24],
            reply=Sampling(5, 0.7, (0, i)),
        )
        for i in range(3)
    ]  # fmt: skip


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3, sdpa, hybrid"])
def test_a_spread_model_is_read_as_the_whole_one(architecture, spread, requests_, tokenizer, tmp_path):
    """Both paths of the engine: pooled states of every layer, logits, replies."""
    config = ARCHITECTURES[architecture]
    models = make_model(config), spread(make_model(config), tmp_path)
    for packed in (None, False):
        whole, split = (PrefixTree(model, tokenizer, packed=packed) for model in models)
        assert whole.packed == split.packed == (packed is None)
        read = (tree.read(requests_, LAYERS, ANSWERS) for tree in (whole, split))
        for a, b in zip(*read, strict=True):
            for part in ("pooled", "logits", "reply_pooled"):  # products of other libraries round otherwise
                np.testing.assert_allclose(getattr(a, part), getattr(b, part), rtol=1e-4, atol=1e-6)
            assert a.reply.ids == b.reply.ids


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_a_spread_model_keeps_its_fingerprint_and_its_embeddings(spread, tokenizer, tmp_path):
    """So that shards on GPUs of different sizes, which offload different layers, share results."""
    whole, split = (make_model(ARCHITECTURES["llama"]) for _ in range(2))
    split = spread(split, tmp_path)
    assert _model_fingerprint(split) == _model_fingerprint(whole)
    assert input_device(split) == torch.device("cpu")
    dataset = load_dataset("commonsense", 0, 8, 8).compact().dataset
    found = []
    for model in (whole, split):
        lm = LoadedModel(model, tokenizer, "org/tiny", "")
        found.append(mean_embeddings(lm, encode_sentences(lm, dataset, load_prompts("commonsense"))))
    np.testing.assert_array_equal(*found)


def test_a_device_map_does_not_change_the_fingerprint(tiny_folder):
    spread, whole = (load_model(str(tiny_folder), device=device) for device in ("map", "cpu"))
    assert spread.fingerprint == whole.fingerprint


# ---------------------------------------------------------------- 4 bits


def test_four_bits_without_gpu_or_package_is_one_error_with_the_command(tiny_folder, monkeypatch):
    expected = "needs a GPU and the package bitsandbytes: .* `pip install bitsandbytes`"
    with pytest.raises(UserError, match=expected):
        load_model(str(tiny_folder), device="cpu", load_in_4bit=True)
    monkeypatch.setattr(utils, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=expected):
        load_model(str(tiny_folder), device="cuda", load_in_4bit=True)


@pytest.mark.parametrize(("device", "places"), [("cuda:1", {"": "cuda:1"}), ("cuda", {"": "cuda"})])
def test_four_bits_are_asked_of_transformers_on_the_device(device, places, tiny_folder, monkeypatch):
    asked = {}

    def stand_in(source, **options):
        asked.update(options)
        raise OSError("no GPU here")

    monkeypatch.setattr(utils, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stand_in)
    with pytest.raises(UserError, match="no GPU here"):
        load_model(str(tiny_folder), device=device, dtype="bfloat16", load_in_4bit=True)
    config = asked["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_compute_dtype == asked["dtype"] == torch.bfloat16
    assert asked["device_map"] == places


def test_the_flag_reaches_the_loader(tiny_folder, tmp_path, capsys):
    import main_prep

    argv = ["--model", str(tiny_folder), "--results", str(tmp_path), "--device", "cpu", "--load_in_4bit"]
    assert main_prep.main(argv) == 2
    assert "error: --load_in_4bit needs a GPU" in capsys.readouterr().err
