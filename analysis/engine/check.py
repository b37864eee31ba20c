"""Is packing exact on this model? Tried when a model is first used, against plain forward passes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from analysis.base.errors import UserError
from analysis.engine.context import PLAIN, Context
from analysis.engine.patches import Busy
from analysis.engine.plain import read_plain
from analysis.engine.replies import Sampling
from analysis.engine.request import Counters, Reading, Request
from analysis.engine.run import read_packed

log = logging.getLogger(__name__)

EXACT_MODES: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], str]] = WeakKeyDictionary()
"""Model -> modes that were tried -> the first that is exact, or PLAIN. Only verdicts are here: where memory
ran out or the check was interrupted, the next one who asks tries again."""

_FAULTS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)
"""What models raise that do not take packed rows."""


def exact_mode(context: Context, modes: Sequence[str]) -> str:
    """Return the first exact way to attend, or PLAIN; each model is tried once.

    Raises:
        UserError: memory runs out.
    """
    known = EXACT_MODES.setdefault(context.model, {})
    key = tuple(modes)
    if key not in known:
        known[key] = try_modes(context, modes)
    return known[key]


def try_modes(context: Context, modes: Sequence[str]) -> str:
    """Return the first way to attend with which packed rows give what plain forward passes give, or PLAIN.

    It is tried on this model and device with prompts that branch, in steps of a few tokens, and with replies.

    Raises:
        UserError: memory runs out.
    """
    if not context.masks.supported:
        log.warning(
            "attention kinds %s cannot be packed: one sequence at a time", sorted(context.masks.kinds)
        )
        return PLAIN
    requests, layers, answers = _trial_requests(context), [len(context.blocks) - 1], list(range(5))
    plain: list[Reading] | None = None
    for mode in modes:
        trial = replace(context, mode=mode, token_budget=8, smallest_budget=1, total=Counters())
        try:
            packed = read_packed(trial, requests, layers, answers)
        except (UserError, Busy):
            raise  # of memory, or of a read inside a read: this says nothing about the model
        except _FAULTS as error:
            log.warning("packing failed on this model (%s, attention by %s)", error, mode)
            continue
        plain = plain or read_plain(trial, requests, layers, answers)
        worst = np.max([_difference(a, b) for a, b in zip(packed, plain, strict=True)])
        if worst <= (1e-3 if context.model.dtype == torch.float32 else 0.1):
            return mode
        log.warning("packed rows differ from plain ones by %.1e (attention by %s)", worst, mode)
    log.warning("this model cannot be packed: one sequence at a time")
    return PLAIN


def _trial_requests(context: Context) -> list[Request]:
    rng = np.random.default_rng(0)
    vocabulary = min(context.model.config.get_text_config().vocab_size, 1000)
    trunk, tails = rng.integers(0, vocabulary, 12), rng.integers(0, vocabulary, (4, 8))
    prompts = [np.concatenate([trunk[: 12 - 4 * (i // 2)], tail]) for i, tail in enumerate(tails)]
    return [
        Request(ids, spans=[(5, 10)], logits_at=[8], reply=Sampling(1) if i % 2 else None)
        for i, ids in enumerate(prompts)
    ]


def _difference(packed: Reading, plain: Reading) -> float:
    """Return the largest relative difference of states and logits, and of the reply if it is the same."""
    pairs = [(packed.pooled, plain.pooled), (packed.logits, plain.logits)]
    one, other = packed.reply, plain.reply
    if one and other and one.sentence and one.ids == other.ids:
        pairs.append((packed.reply_mean(), plain.reply_mean()))
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
