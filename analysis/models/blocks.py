"""The blocks of a model, and where its input goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from analysis.base.errors import UserError


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks: the one ModuleList as long as the configuration says."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise UserError(
        f"{type(model).__name__} has no list of {n_layers} decoder blocks: this architecture is not supported"
    )


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where token ids go: the device of the input embeddings, also if they are offloaded."""
    table: Any = model.get_input_embeddings()  # what accelerate adds to it, no type shows
    if table.weight.device.type != "meta":
        return torch.device(table.weight.device)
    return torch.device(table._hf_hook.execution_device)  # the weights are brought there for each call
