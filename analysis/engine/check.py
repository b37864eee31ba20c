"""Is packing exact on this model? Tried when a model is first used, against plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from analysis.engine.plain import log, read_plain
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request


def exact_mode(tree: PrefixTree, modes: Sequence[str]) -> str | None:
    """Return the first way to attend with which packed rows give what plain forward passes give, or None.

    It is tried on this model and device with prompts that branch, in steps of a few tokens, and with replies.
    """
    if not tree.masks.supported:
        log.warning("attention kinds %s cannot be packed: one sequence at a time", sorted(tree.masks.kinds))
        return None
    requests = _trial_requests(tree)
    last = tree.model.config.get_text_config().num_hidden_layers - 1
    packed_before, budget, plain = tree.packed, tree.token_budget, None
    try:
        for mode in modes:
            tree.packed, tree.token_budget, tree.mode = True, 8, mode
            try:
                packed = tree.read(requests, [last], range(5))
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
                log.warning("packing failed on this model (%s, attention by %s)", error, mode)
                continue
            plain = plain or read_plain(tree, requests, [last], range(5))
            worst = np.max([_difference(a, b) for a, b in zip(packed, plain, strict=True)])
            if worst <= (1e-3 if tree.model.dtype == torch.float32 else 0.1):
                return mode
            log.warning("packed rows differ from plain ones by %.1e (attention by %s)", worst, mode)
        log.warning("this model cannot be packed: one sequence at a time")
        return None
    finally:
        tree.packed, tree.token_budget = packed_before, budget
        tree.total = type(tree.total)()


def _trial_requests(tree: PrefixTree) -> list[Request]:
    rng = np.random.default_rng(0)
    vocabulary = min(tree.model.config.get_text_config().vocab_size, 1000)
    trunk, tails = rng.integers(0, vocabulary, 12), rng.integers(0, vocabulary, (4, 8))
    prompts = [np.concatenate([trunk[: 12 - 4 * (i // 2)], tail]) for i, tail in enumerate(tails)]
    return [
        Request(ids, spans=[(5, 10)], logits_at=[8], reply=Sampling(1) if i % 2 else None)
        for i, ids in enumerate(prompts)
    ]


def _difference(packed: Reading, plain: Reading) -> float:
    """Return the largest relative difference of states and logits, and of the reply if it is the same."""
    pairs = [(packed.pooled, plain.pooled), (packed.logits, plain.logits)]
    if packed.reply and packed.reply.sentence and packed.reply.ids == plain.reply.ids:
        pairs.append((packed.reply_pooled, plain.reply_pooled))
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
