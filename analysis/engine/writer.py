"""Writes replies together, those of all trunks: one token per unfinished reply per step.

Each reply has slots of its own behind the prompts, so that a group of replies to prompts that leave a trunk
at the same token sees a few runs of slots: the trunk so far, its prompts, its own tokens.

Shape letters: R replies   V vocabulary   L layers   D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from analysis.engine.passes import Passes
from analysis.engine.replies import Reply, ReplyMeans, draw_next
from analysis.engine.sight import Attending


class ReplyWriter:
    """Writes the replies to some prompts, which are in the cache."""

    def __init__(
        self,
        passes: Passes,
        attending: Attending,
        replies: Sequence[Reply],
        ends: Int[np.ndarray, " R"],
        acting: Int[np.ndarray, " R"],
    ) -> None:
        """Reserve slots behind those in use.

        Args:
            passes: of this read.
            attending: of this read; it knows the slots.
            replies: R that have not begun; those that leave a trunk at one token are side by side.
            ends: (R,) last node of each prompt.
            acting: (R,) what steers each reply, see Interventions.
        """
        self.passes, self.replies, self.acting = passes, replies, acting
        self.means = ReplyMeans(replies, len(passes.layers))
        table = attending.table
        longest = np.array([reply.sampling.max_new_tokens for reply in replies])
        self.first = table.used + np.cumsum(longest) - longest  # slot of the first token of each reply
        self.begin = table.trie.depth[ends] + 1  # its position
        self.sight = attending.replies(ends, self.first, longest)
        passes.cache.clear(table.reserve(int(longest.sum())))

    def write(
        self, logits: Float[torch.Tensor, "R V"], progress: Callable[[int], object]
    ) -> Float[np.ndarray, "R L D"]:
        """Draw, forward and pool until every reply has ended.

        Args:
            logits: (R, V) after each prompt.
            progress: is called with the tokens of each step.

        Returns:
            (R, L, D) float32 means over the sentences, NaN where a sentence is empty.
        """
        context, writing = self.passes.context, list(range(len(self.replies)))
        while writing:
            tokens = draw_next(logits, [self.replies[r] for r in writing])
            pairs = zip(writing, tokens, strict=True)
            forwarded = [r for r, t in pairs if self.replies[r].append(t, context.decode, context.stops)]
            if forwarded:
                logits = self.step(np.array(forwarded))
                progress(len(forwarded))
            self.means.commit()
            alive = [i for i, r in enumerate(forwarded) if not self.replies[r].done]
            writing = [forwarded[i] for i in alive]
            logits = logits[alive] if writing else logits
        return self.means.means(context.width)

    def step(self, rows: Int[np.ndarray, " n"]) -> Float[torch.Tensor, "n V"]:
        """Forward the newest token of each of ``rows``; return logits (n, V)."""
        ids = np.array([self.replies[r].ids[-1] for r in rows])
        index = np.array([len(self.replies[r].ids) for r in rows]) - 1
        places, position = self.first[rows] + index, self.begin[rows] + index
        sight = self.sight.step(rows, places, position)
        self.passes.context.total.reply += len(rows)
        which = rows.tolist()
        return self.passes.run(
            ids, position, self.acting[rows], places, sight, np.arange(len(rows)),
            lambda slot, hidden: self.means.hold(slot, which, hidden[0]),
        )  # fmt: skip
