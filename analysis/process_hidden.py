"""Read the residual stream: hooks on decoder blocks, and which layers to read.

Layer i is the residual stream after block i, from 0. It is read by a hook on the block, never from
``hidden_states[-1]``, which transformers returns after the final norm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from analysis.models.blocks import decoder_blocks

Sink = Callable[[int, torch.Tensor], None]
"""Receives (position in the list of layers, hidden states (1, C, D)) for every block that is read."""


class StopForward(Exception):
    """Raised by a hook after the last layer that is needed, to skip the rest of the model."""


@contextmanager
def read_layers(
    model: PreTrainedModel, layers: Sequence[int], sink: Sink, stop: bool = False
) -> Iterator[None]:
    """Call ``sink`` with the residual stream after each of ``layers`` during this thread's forward passes.

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
    reader = threading.get_ident()

    def hook(module: nn.Module, inputs: object, output: torch.Tensor | tuple) -> None:
        if threading.get_ident() != reader:
            return  # somebody else calls the same model
        # transformers 5 returns a tensor, 4 a tuple; output[0] of a tensor would be batch row 0
        sink(slot, output if isinstance(output, torch.Tensor) else output[0])
        if stop:
            raise StopForward

    return hook
