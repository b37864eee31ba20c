"""Memory that runs out: less is done at once, and if that does not help, the user is told what does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from analysis.base.errors import UserError

log = logging.getLogger(__name__)

SMALLEST_BUDGET = 32
"""Tokens at once below which memory is not saved any more: the weights and the cache take it."""

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or in the allocator of the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def with_less_memory(work: Callable[[int], T], tokens: int, smallest: int = SMALLEST_BUDGET) -> tuple[T, int]:
    """Do ``work`` with at most so many tokens at once, and again with half as many whenever memory runs out.

    Args:
        work: takes the number of tokens.
        tokens: to begin with.
        smallest: fewer are not tried.

    Returns:
        What the work returned, and the number of tokens that it took.

    Raises:
        UserError: memory runs out all the same.
    """
    while True:
        try:
            return work(tokens), tokens
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # here the error is forgotten, and with it the tensors that its traceback holds
        if tokens <= smallest:
            raise UserError(
                f"out of memory even with {tokens} tokens at once: use a smaller model, a smaller "
                "--dtype, fewer examples (--n_train), or --device map to spread the model over devices"
            )
        tokens = max(tokens // 2, smallest)
        log.warning("out of memory: going on with %d tokens at once", tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
