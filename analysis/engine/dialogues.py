"""Many conversations that go on turn by turn in one cache: a token is forwarded once, when it is new.

    talk = Dialogues(tree, openings, layers=[15], room=4000)
    replies = talk.write(samplings)        # every conversation speaks
    talk.add(messages)                     # every conversation is answered, and so on

The openings become a trie, as in prefix_tree.py; later tokens belong to one conversation each. Who may look
at what is one table: which slots of the cache each conversation is made of. What is cut off a reply stays in
the cache, but is no part of the conversation.

Shape letters: B conversations   S cache slots   C tokens forwarded now   L layers   D hidden size
V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from analysis.base.errors import UserError
from analysis.engine.cache import TreeCache
from analysis.engine.memory import with_less_memory
from analysis.engine.passes import Passes
from analysis.engine.patches import engaged
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.refuse import BadRequest, check_sampling, checked_ids, checked_layers
from analysis.engine.replies import Reply, ReplyMeans, Sampling, draw_next
from analysis.engine.sight import Sight
from analysis.engine.steering import Interventions
from analysis.engine.trie import build_trie
from analysis.process_hidden import Sink


@dataclass
class Forwarded:
    """Work done, in tokens: opening + added + written were forwarded, each once."""

    opening: int = 0
    """Distinct tokens of the openings."""
    added: int = 0
    """Of the messages between replies."""
    written: int = 0
    """Of the replies."""
    dropped: int = 0
    """Written, but no part of the sentence: they do not stay in the conversation."""
    calls: int = 0
    """Forward passes."""
    replayed: int = 0
    """Tokens that forwarding every conversation from its start in every turn would take."""


class Dialogues:
    """B conversations with one model."""

    def __init__(
        self, tree: PrefixTree, openings: Sequence[np.ndarray], layers: Sequence[int], room: int
    ) -> None:
        """Forward the openings.

        Args:
            tree: the engine, for its model, masks and token budget.
            openings: B arrays (T,) of token ids, each up to where its first reply starts.
            layers: blocks at which replies are pooled.
            room: most tokens that all conversations together may add to their openings.

        Raises:
            UserError: the model's attention cannot be packed, or memory runs out.
            BadRequest: a token or a layer that the model does not have.
        """
        if not tree.packed:
            raise UserError("closed loops need a model whose attention takes packed rows: use another model")
        self.context = tree.context
        self.layers = checked_layers(self.context, layers)
        trie = build_trie([self._checked(opening, b, "opening") for b, opening in enumerate(openings)])
        size = len(trie) + room
        self.used = 0
        cache, blocks = TreeCache(len(self.context.blocks), size), self.context.blocks
        self.passes = Passes(self.context, cache, Interventions(blocks), self.layers)
        self.quiet = replace(self.passes, layers=())  # reads nothing
        self.token, self.position = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.member = np.zeros((len(openings), size), bool)
        """(B, S) which slots a conversation is made of, in the order of its tokens."""
        self.tokens = Forwarded(opening=len(trie))
        owner = np.empty(len(trie), np.int64)
        for b, path in enumerate(trie.paths):
            self.member[b, path] = True
            owner[path] = b  # any conversation through a node knows its ancestors
        self.logits = self._forward(trie.token, owner, trie.depth, [int(path[-1]) for path in trie.paths])
        """(B, V) of the token that comes next."""

    def _checked(self, ids: np.ndarray, b: int, what: str) -> np.ndarray:
        return checked_ids(self.context, ids, f"the {what} of conversation {b}")

    def _check_room(self, count: int) -> None:
        if self.used + count > len(self.token):
            raise BadRequest(
                f"{count} more tokens than the {self.used} so far, but there is room for {len(self.token)}: "
                "give more room"
            )

    def ids(self, b: int) -> np.ndarray:
        """Return (T,) the tokens of one conversation so far."""
        return self.token[self.member[b]]

    def add(self, messages: Sequence[np.ndarray]) -> None:
        """Go on in every conversation with the given token ids, B arrays (T,).

        Raises:
            BadRequest: not B messages, a token that the model does not have, or no room is left.
            UserError: memory runs out.
        """
        self._check_count(messages, "messages")
        messages = [self._checked(message, b, "message") for b, message in enumerate(messages)]
        self._check_room(sum(map(len, messages)))
        sizes = np.array([len(message) for message in messages])
        owner = np.repeat(np.arange(len(messages)), sizes)
        ends = np.cumsum(sizes)
        within = np.arange(len(owner)) - np.repeat(ends - sizes, sizes)
        position = self.member.sum(axis=1)[owner] + within
        self.member[owner, self.used + np.arange(len(owner))] = True
        self.tokens.added += len(owner)
        self.logits = self._forward(np.concatenate(messages), owner, position, (ends - 1).tolist())

    def _check_count(self, given: Sequence[object], what: str) -> None:
        if len(given) != len(self.member):
            raise BadRequest(f"{len(given)} {what} for {len(self.member)} conversations: give one for each")

    def write(self, samplings: Sequence[Sampling]) -> list[tuple[Reply, np.ndarray]]:
        """Let every conversation speak.

        Args:
            samplings: B of them.

        Returns:
            B replies, each with the (L, D) float32 mean over its sentence's tokens, NaN if it is empty.

        Raises:
            BadRequest: not B samplings, one that cannot be drawn from, or no room is left.
            UserError: memory runs out.
        """
        self._check_count(samplings, "samplings")
        for sampling in samplings:
            check_sampling(sampling)
        self._check_room(sum(sampling.max_new_tokens for sampling in samplings))
        replies = [Reply(sampling) for sampling in samplings]
        means = ReplyMeans(replies, len(self.layers))
        slots: list[list[int]] = [[] for _ in replies]
        with self._engaged():
            self._write(replies, slots, means)
        for b, reply in enumerate(replies):
            cut = slots[b][reply.stop :]
            self.member[b, cut] = False
            self.tokens.dropped += len(cut)
        return list(zip(replies, means.means(self.context.width), strict=True))

    def _write(self, replies: list[Reply], slots: list[list[int]], means: ReplyMeans) -> None:
        """Draw, forward and pool until every reply has ended; ``slots`` take those of their tokens."""
        base, context = self.member.sum(axis=1), self.context
        self.tokens.replayed += int(base.sum())
        logits, writing = self.logits, list(range(len(replies)))
        while writing:
            tokens = draw_next(logits, [replies[b] for b in writing])
            pairs = zip(writing, tokens, strict=True)
            going = [b for b, token in pairs if replies[b].append(token, context.decode, context.stops)]
            if going:
                step = partial(self._step, going, replies, base, slots, means)
                logits, _ = with_less_memory(step, len(going), len(going))
            means.commit()
            alive = [i for i, b in enumerate(going) if not replies[b].done]
            writing = [going[i] for i in alive]
            logits = logits[alive] if writing else logits

    def _step(
        self,
        going: list[int],
        replies: Sequence[Reply],
        base: np.ndarray,
        slots: list[list[int]],
        means: ReplyMeans,
        count: int,
    ) -> torch.Tensor:
        """Forward the newest token of the ``count`` replies ``going``; return logits (count, V)."""
        for place, b in enumerate(going, self.used):
            self.member[b, place] = True
            slots[b].append(place)
        position = base[going] + [len(replies[b].ids) - 1 for b in going]
        tokens = np.array([replies[b].ids[-1] for b in going])
        self.tokens.written += count
        self.tokens.replayed += count

        def sink(slot: int, hidden: torch.Tensor) -> None:
            means.hold(slot, going, hidden[0])

        return self._call(self.passes, tokens, np.array(going), position, np.arange(count), sink)

    def _forward(
        self, tokens: np.ndarray, owner: np.ndarray, position: np.ndarray, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Forward tokens of conversations ``owner`` in calls of the budget; return logits (B, V).

        ``wanted`` are the places among the tokens whose logits are returned, one for each conversation.
        """
        places, start = np.array(wanted), 0
        found: dict[int, torch.Tensor] = {}
        with self._engaged():
            while start < len(tokens):
                part = partial(self._part, tokens, owner, position, places, start)
                context = self.context
                made, done = with_less_memory(part, context.token_budget, context.smallest_budget)
                found.update(made)
                context.token_budget = done
                start += done
        return torch.stack([found[int(place)] for place in places])

    def _part(
        self,
        tokens: np.ndarray,
        owner: np.ndarray,
        position: np.ndarray,
        wanted: np.ndarray,
        start: int,
        count: int,
    ) -> dict[int, torch.Tensor]:
        """Forward ``count`` of the tokens from ``start`` on; return place -> logits (V,) of those wanted."""
        now = slice(start, start + count)
        inside = np.unique(wanted[(wanted >= start) & (wanted < start + count)])
        logits = self._call(
            self.quiet, tokens[now], owner[now], position[now], inside - start, lambda *_: None
        )
        return dict(zip(inside.tolist(), logits, strict=True))

    @contextmanager
    def _engaged(self) -> Iterator[None]:
        on_cpu = self.context.device.type == "cpu"
        with torch.inference_mode(), engaged(self.context.model, heads=on_cpu):
            yield

    def _call(
        self,
        passes: Passes,
        tokens: Int[np.ndarray, " C"],
        owner: Int[np.ndarray, " C"],
        position: Int[np.ndarray, " C"],
        rows: Int[np.ndarray, " n"],
        sink: Sink,
    ) -> Float[torch.Tensor, "n V"]:
        """Run the model on one packed row; return logits of n of its tokens."""
        first, stop = self.used, self.used + len(tokens)
        self.token[first:stop], self.position[first:stop] = tokens, position
        slot, device = np.arange(stop), self.context.device
        allowed = self.member[owner, :stop] & (slot <= slot[first:, None])
        distance = position[:, None] - self.position[:stop]
        mask = self.context.masks.build(*(torch.from_numpy(a).to(device) for a in (allowed, distance)))
        self.tokens.calls += 1
        unsteered = np.zeros(len(tokens), np.int64)
        sight = Sight(((0, stop),), mask)
        logits = passes.run(tokens, position, unsteered, (first, stop), sight, rows, sink)
        self.used = stop
        return logits
