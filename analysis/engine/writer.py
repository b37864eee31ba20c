"""Writes replies together, those of all trunks: one token per unfinished reply per step.

Each reply has slots of its own behind the prompts, so that a group of replies to prompts that leave a trunk
at the same token sees a few runs of slots: the trunk so far, its prompts, its own tokens.

Shape letters: R replies   S cache slots   V vocabulary   n replies of a group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from analysis.engine.attention import Group, Layout, Slots, additive, laid_out, runs_of
from analysis.engine.masks import Mask
from analysis.engine.replies import Reply, ReplyMeans, draw

if TYPE_CHECKING:
    from analysis.engine.run import Run

NEAR = 64
"""Slots between two runs that are computed and masked rather than left out, to have fewer products."""


class ReplyWriter:
    """Writes the replies of some requests, whose prompts are in the cache."""

    def __init__(self, run: Run, requests: Sequence[int]) -> None:
        self.run = run
        self.requests = sorted(requests, key=lambda b: run.fork(run.prompt_ends[b]))  # groups side by side
        self.replies = [Reply(run.requests[b].reply) for b in self.requests]
        self.means = ReplyMeans(self.replies, len(run.layers))
        self.ends = np.array([run.prompt_ends[b] for b in self.requests])
        self.variant = np.array([run.steering.replies[b] for b in self.requests])
        longest = np.array([reply.sampling.max_new_tokens for reply in self.replies])
        self.first = run.used + np.cumsum(longest) - longest  # slot of the first token of each reply
        self.sight = (_Groups if run.tree.mode == "slots" else _Dense)(run, self.ends, self.first, longest)
        run.reserve(int(longest.sum()))

    def write(self) -> None:
        """Draw, forward and pool until every reply has ended."""
        self.run.cache.show(None)
        logits = torch.stack([self.run.prompt_logits[int(node)] for node in self.ends])
        writing = list(range(len(self.replies)))
        while writing:
            tokens = self.draw(logits, writing)
            forwarded = [r for r, token in zip(writing, tokens, strict=True) if self.append(r, token)]
            if forwarded:
                logits = self.step(forwarded)
            self.means.commit()
            alive = [i for i, r in enumerate(forwarded) if not self.replies[r].done]
            writing = [forwarded[i] for i in alive]
            logits = logits[alive] if writing else logits
        width = self.run.tree.model.config.get_text_config().hidden_size
        for b, reply, mean in zip(self.requests, self.replies, self.means.means(width), strict=True):
            self.run.replies[b] = (reply, mean)

    def draw(self, logits: torch.Tensor, writing: Sequence[int]) -> list[int]:
        replies = [self.replies[r] for r in writing]
        heat = np.array([reply.sampling.temperature for reply in replies])
        return draw(logits, heat, np.array([reply.uniform[len(reply.ids)] for reply in replies]))

    def append(self, row: int, token: int) -> bool:
        tree = self.run.tree
        return self.replies[row].append(token, tree.decode, tree.stops)

    def step(self, rows: Sequence[int]) -> torch.Tensor:
        """Forward the newest token of each of ``rows``; return logits (len(rows), V)."""
        run, device = self.run, self.run.tree.device
        written = np.array([len(self.replies[r].ids) for r in rows])
        places, position = self.first[rows] + written - 1, run.trie.depth[self.ends[rows]] + written
        layout, mask = self.sight.step(np.array(rows), places, position)
        ids = torch.tensor([self.replies[r].ids[-1] for r in rows], device=device)
        run.tree.total.reply += len(rows)
        run.progress(len(rows))
        where = torch.from_numpy(places).to(device)
        with run.steering.acting(self.variant[rows]), laid_out(layout), run.cache.writing_to(where):
            return run.call(
                ids, torch.from_numpy(position).to(device), mask, np.arange(len(rows)),
                lambda slot, hidden: self.means.hold(slot, rows, hidden[0]),
            )  # fmt: skip


class _Dense:
    """Every reply is compared with every slot in use, and a mask tells which it sees."""

    def __init__(self, run: Run, ends: np.ndarray, first: np.ndarray, longest: np.ndarray) -> None:
        self.run, device = run, run.tree.device
        cached, stop = run.slots[: run.used], run.used + int(longest.sum())
        seen = (0 <= cached) & (cached <= ends[:, None]) & (ends[:, None] < run.trie.end[cached])
        self.allowed = torch.zeros(len(ends), stop, dtype=torch.bool, device=device)
        self.allowed[:, : run.used] = torch.from_numpy(seen).to(device)
        self.depth = torch.zeros(stop, dtype=torch.long, device=device)
        self.depth[: run.used] = torch.from_numpy(run.trie.depth[cached]).to(device)

    def step(self, rows: np.ndarray, places: np.ndarray, position: np.ndarray) -> tuple[Layout | None, Mask]:
        """Let each of ``rows`` see its newest token; return no layout, and the mask."""
        device = self.run.tree.device
        which, where, depth = (torch.from_numpy(a).to(device) for a in (rows, places, position))
        self.allowed[which, where] = True
        self.depth[where] = depth
        return None, self.run.tree.masks.build(self.allowed[which], depth[:, None] - self.depth)


@dataclass
class _Fork:
    """Replies to prompts that leave a trunk at the same token."""

    rows: np.ndarray
    """(n,) numbers of the replies, one after the other."""
    runs: tuple[Slots, ...]
    """Slots of the trunk up to there."""
    own: tuple[Slots, ...]
    """Slots of the prompts from there on, and of the replies."""
    mask: torch.Tensor
    """(n, slots of ``own``) float32, to be added to the logits of attention."""
    column: dict[int, int] = field(default_factory=dict)
    """Slot -> its column of ``mask``."""


class _Groups:
    """Every reply is compared with what its group sees."""

    def __init__(self, run: Run, ends: np.ndarray, first: np.ndarray, longest: np.ndarray) -> None:
        self.run = run
        forks = np.array([run.fork(int(end)) for end in ends])
        self.forks = []
        for node in dict.fromkeys(forks.tolist()):
            rows = np.flatnonzero(forks == node)
            area = (int(first[rows[0]]), int(first[rows[-1]] + longest[rows[-1]]))
            self.forks.append(self._fork(node, rows, ends[rows], area))

    def _fork(self, node: int, rows: np.ndarray, ends: np.ndarray, area: Slots) -> _Fork:
        trunk = self.run.path_slots(node)
        paths = [np.setdiff1d(self.run.path_slots(int(end)), trunk) for end in ends]
        own = (*_joined(runs_of(np.unique(np.concatenate(paths)))), area)
        slots = np.concatenate([np.arange(*span) for span in own])
        seen = np.stack([np.isin(slots, path) for path in paths])
        mask = additive(torch.from_numpy(seen), torch.float32)
        return _Fork(rows, runs_of(trunk), own, mask, {int(s): k for k, s in enumerate(slots)})

    def step(self, rows: np.ndarray, places: np.ndarray, position: np.ndarray) -> tuple[Layout | None, Mask]:
        """Let each of ``rows`` see its newest token; return the layout, and a mask that is not used."""
        groups, start = [], 0
        for fork in self.forks:
            here = np.flatnonzero((fork.rows[0] <= rows) & (rows <= fork.rows[-1]))
            if len(here):
                local = rows[here] - fork.rows[0]
                fork.mask[local, [fork.column[int(place)] for place in places[here]]] = 0.0
                stop = start + len(here)
                groups.append(Group((start, stop), fork.runs, fork.own, fork.mask[local]))
                start = stop
        return groups, self.run.tree.masks.none(len(rows), self.run.used, self.run.tree.device)


def _joined(runs: Sequence[Slots]) -> list[Slots]:
    """Return the runs with those that lie near each other made one."""
    found: list[Slots] = []
    for start, stop in runs:
        if found and start - found[-1][1] <= NEAR:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
