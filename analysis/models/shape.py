"""Sizes of a model and of a run with it, from configurations alone: no weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from analysis.base.embedded import local_files
from analysis.models.blocks import decoder_blocks
from utils import choose_dtype, model_errors, model_name


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, from its configuration."""

    n_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool  # input and output embeddings are one matrix
    max_positions: int | None  # None if the configuration does not say
    n_parameters: int
    block_parameters: int
    """Matrices of the blocks, which every token is multiplied with (mixtures of experts: all experts)."""
    eager: bool
    """Attention writes out its weights, heads x tokens x slots; sdpa does not."""


def load_shape(name: str) -> Shape:
    """Return the sizes of a model, whose parameters are made on torch's meta device, without memory.

    Names, errors, and the folder that a ``.gguf`` file is converted to once are those of utils.load_model.
    """
    with model_errors(name, model_name(name)):
        config = AutoConfig.from_pretrained(local_files(model_name(name)))
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(config)
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return Shape(
        n_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab=text.vocab_size,
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        max_positions=getattr(text, "max_position_embeddings", None),
        n_parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=sum(p.numel() for p in decoder_blocks(model).parameters() if p.ndim > 1),
        eager=text._attn_implementation == "eager",
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; see load_shape."""
    with model_errors(name, model_name(name)):
        return AutoTokenizer.from_pretrained(local_files(model_name(name)))


def run_device(device: str) -> str:
    """Return where a run with this ``--device`` computes."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device in ("auto", "map") else device


def run_sizes(device: str, dtype: str, token_budget: int | None) -> tuple[str, int]:
    """Return dtype and tokens per forward call of a run with these flags, as load_model and PrefixTree do."""
    kind = run_device(device)
    return str(choose_dtype(dtype, kind))[len("torch.") :], token_budget or (512 if kind == "cpu" else 4096)
