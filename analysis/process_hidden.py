"""Read the residual stream: hooks on decoder blocks, and which layers to read.

Layer i is the residual stream after block i, from 0. It is read by a hook on the block, never from
``hidden_states[-1]``, which transformers returns after the final norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from configs.settings import MODEL_ALIASES, SELECTED_LAYERS
from utils import UserError, unknown

Sink = Callable[[int, torch.Tensor], None]
"""Receives (position in the list of layers, hidden states (1, C, D)) for every block that is read."""


class StopForward(Exception):
    """Raised by a hook after the last layer that is needed, to skip the rest of the model."""


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the one ModuleList as long as the configuration says."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise UserError(
        f"{type(model).__name__} has no list of {n_layers} decoder blocks: this architecture is not supported"
    )


@contextmanager
def read_layers(
    model: PreTrainedModel, layers: Sequence[int], sink: Sink, stop: bool = False
) -> Iterator[None]:
    """Call ``sink`` with the residual stream after each of ``layers`` during every forward pass.

    Args:
        model: any decoder-only model.
        layers: block numbers from 0.
        sink: see Sink; must not change the tensor.
        stop: raise StopForward after the last of ``layers``.
    """
    blocks = decoder_blocks(model)
    last = max(layers, default=-1)
    handles = []
    try:
        for slot, layer in enumerate(layers):
            hook = _hook(sink, slot, stop and layer == last)
            handles.append(blocks[layer].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(sink: Sink, slot: int, stop: bool) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: torch.Tensor | tuple) -> None:
        # transformers 5 returns a tensor, 4 a tuple; output[0] of a tensor would be batch row 0
        sink(slot, output if isinstance(output, torch.Tensor) else output[0])
        if stop:
            raise StopForward

    return hook


def selected_layers(model: str, n_layers: int) -> tuple[int, ...]:
    """Return the layers at depths 0, 25, 50, 75 and 100 %, from the table or computed."""
    listed = SELECTED_LAYERS.get(MODEL_ALIASES.get(model, model))
    if listed is not None and listed[-1] == n_layers - 1:
        return listed
    depths = (int(q * (n_layers - 1) / 4 + 0.5) for q in range(5))
    return tuple(dict.fromkeys(depths))


def choose_layers(spec: str, model: str, n_layers: int) -> tuple[int, ...]:
    """Return the layers that ``spec`` names.

    Args:
        spec: ``all``, ``middle``, ``selected``, or numbers such as ``7`` or ``7,15``.
        model: alias or name, for the table of selected layers.
        n_layers: number of blocks.

    Raises:
        UserError: not one of these, or a layer that the model does not have.
    """
    if spec == "all":
        return tuple(range(n_layers))
    if spec == "selected":
        return selected_layers(model, n_layers)
    if spec == "middle":
        return (selected_layers(model, n_layers)[len(selected_layers(model, n_layers)) // 2],)
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", spec):
        raise unknown("layer", spec, ("all", "middle", "selected", "numbers such as 7,15"), "--help")
    layers = tuple(dict.fromkeys(int(part) for part in spec.split(",")))
    if max(layers) >= n_layers:
        raise UserError(
            f"layer {max(layers)}: {model} has layers 0..{n_layers - 1} (0 is after the first block)"
        )
    return layers
