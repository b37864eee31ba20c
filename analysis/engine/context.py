"""What a model brings to a read: packed path, plain path, reply writer and self-check take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.engine.masks import Masks
from analysis.engine.memory import SMALLEST_BUDGET
from analysis.engine.replies import stop_tokens
from analysis.engine.request import Counters
from analysis.models.blocks import decoder_blocks, input_device

PLAIN = "plain"
"""The mode that forwards one request at a time; the others are those of analysis/engine/sight.py."""


@dataclass
class Context:
    """One model, and how it is read."""

    model: PreTrainedModel
    blocks: nn.ModuleList
    """(n_layers) decoder blocks; layer i is the residual stream after the i-th of them."""
    masks: Masks
    device: torch.device
    """Where token ids go."""
    width: int
    """D, the hidden size."""
    vocabulary: int
    """Token ids that the model takes: below this."""
    outputs: int
    """V, token ids that it has logits for: below this."""
    positions: int | None
    """Most tokens of a sequence; None if the configuration does not say."""
    stops: frozenset[int]
    """Token ids that end a reply."""
    decode: Callable[[Sequence[int]], str]
    """Reply tokens -> their text, exactly as written."""
    token_budget: int
    """Most tokens forwarded at once; halved when memory runs out."""
    smallest_budget: int = SMALLEST_BUDGET
    """It is not halved below this."""
    mode: str = PLAIN
    """How rows attend, see analysis/engine/sight.py, or ``PLAIN``."""
    total: Counters = field(default_factory=Counters)
    """Work done so far."""


def make_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_budget: int | None = None
) -> Context:
    """Return what ``model`` brings, read plainly until a mode is chosen.

    Args:
        model: any decoder-only model, on one device or spread over several.
        tokenizer: of the model.
        token_budget: see Context; None is 512 on a CPU, 4096 on a GPU.
    """
    device, config = input_device(model), model.config.get_text_config()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    return Context(
        model=model,
        blocks=decoder_blocks(model),
        masks=Masks(model),
        device=device,
        width=config.hidden_size,
        vocabulary=_rows(table, config.vocab_size),
        outputs=_rows(head, config.vocab_size),
        positions=getattr(config, "max_position_embeddings", None),
        stops=stop_tokens(model, tokenizer),
        decode=partial(_decode, tokenizer),
        token_budget=token_budget or (512 if device.type == "cpu" else 4096),
    )


def _rows(table: nn.Module | None, otherwise: int) -> int:
    """Return how many tokens a table of embeddings has."""
    for name in ("num_embeddings", "out_features"):  # the shape of quantized weights is another
        if isinstance(size := getattr(table, name, None), int):
            return size
    return otherwise


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)
