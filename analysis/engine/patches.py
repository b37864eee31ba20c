"""All that the engine changes around a model while it reads, in one place, and put back in every case.

What governs a forward pass is handed to it: the mask, the cache slots and the layout of attention are its
arguments. Three things cannot be: which function computes attention is a field of the model's configuration;
the products of linear layers are theirs (analysis/engine/kernels.py); and whether transformers copies
key/value heads is an environment variable. ``engaged`` owns them.

While it does, the model belongs to one thread: a second read of the same model waits, a read inside a read is
an error. Reads of different models do not wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from analysis.engine import kernels
from analysis.engine.attention import NAME

SHARE_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"
"""Lets attention share key/value heads between query heads instead of copying them. transformers copies
where there is a mask, since CUDA kernels need it; on a CPU that is a seventh of the time of a control unit.
Versions that do not know the variable copy as before."""


class Busy(RuntimeError):
    """The model is being read already, by the thread that asks."""


class _Seat:
    """Whose turn it is with one model."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None


_GUARD = threading.Lock()
_SEATS: WeakKeyDictionary[nn.Module, _Seat] = WeakKeyDictionary()


class _Sharing:
    """Who wants SHARE_HEADS now, and its value before the first of them."""

    reads: set[object] = set()
    before: str | None = None


@contextmanager
def engaged(
    model: nn.Module, *, attention: bool = False, products: bool = False, heads: bool = False
) -> Iterator[None]:
    """Own ``model`` in the block, and change what is asked for.

    Args:
        model: any decoder-only model.
        attention: its blocks attend by the layout that is passed to them (analysis/engine/attention.py).
        products: its linear layers on the CPU use ``kernels.product``.
        heads: key/value heads are shared, not copied, see SHARE_HEADS.

    Raises:
        Busy: this thread is reading the model already.
    """
    with (
        _alone(model),
        ExitStack() as undo,
    ):  # what undoes a change is there before it: Ctrl-C may come between
        if attention:
            _attend_by_layout(model, undo)
        if heads:
            _share_heads(undo)
        if products:
            _use_products(model, undo)
        yield


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    with _GUARD:
        seat = _SEATS.setdefault(model, _Seat())
    if seat.owner == threading.get_ident():
        raise Busy(
            "this model is being read already: a read cannot begin inside another one of the same model, "
            "such as in its progress callback"
        )
    with seat.lock:
        seat.owner = threading.get_ident()
        try:
            yield
        finally:
            seat.owner = None


def _attend_by_layout(model: nn.Module, undo: ExitStack) -> None:
    whole: Any = model.config
    config = whole.get_text_config()
    before = config._attn_implementation
    if before == NAME:
        raise Busy(
            "a model that shares its configuration object with this one is being read: copy the config"
        )
    undo.callback(setattr, config, "_attn_implementation", before)
    config._attn_implementation = NAME


def _share_heads(undo: ExitStack) -> None:
    read = object()
    undo.callback(_unshare_heads, read)
    with _GUARD:
        if not _Sharing.reads:
            _Sharing.before = os.environ.get(SHARE_HEADS)
        _Sharing.reads.add(read)
        os.environ[SHARE_HEADS] = "1"


def _unshare_heads(read: object) -> None:
    with _GUARD:
        if _Sharing.reads == {read}:
            os.environ.pop(SHARE_HEADS, None)
            if _Sharing.before is not None:
                os.environ[SHARE_HEADS] = _Sharing.before
        _Sharing.reads.discard(read)


def _use_products(model: nn.Module, undo: ExitStack) -> None:
    """Let plain float32 linear layers on the CPU use kernels.product; others are left alone."""
    if not kernels.onednn_is_faster():
        return
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and kernels.is_plain_linear(layer):
            undo.callback(vars(layer).pop, "forward", None)
            vars(layer)["forward"] = partial(kernels.linear, layer)  # found before that of its class
