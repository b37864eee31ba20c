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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analysis.base.errors import UserError
from analysis.engine.cache import TreeCache, shared_heads
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Reply, ReplyMeans, Sampling, draw
from analysis.engine.trie import build_trie
from analysis.models.blocks import decoder_blocks
from analysis.process_hidden import Sink, read_layers


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
            UserError: the model's attention cannot be packed.
        """
        if not tree.packed:
            raise UserError("closed loops need a model whose attention takes packed rows: use another model")
        trie = build_trie(openings)
        size = len(trie) + room
        self.tree, self.layers, self.used = tree, list(layers), 0
        self.cache = TreeCache(len(decoder_blocks(tree.model)), size)
        self.token, self.position = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.member = np.zeros((len(openings), size), bool)
        """(B, S) which slots a conversation is made of, in the order of its tokens."""
        self.tokens = Forwarded(opening=len(trie))
        owner = np.empty(len(trie), np.int64)
        for b, path in enumerate(trie.paths):
            self.member[b, path] = True
            owner[path] = b  # any conversation through a node knows its ancestors
        self.logits = self._forward(trie.token, owner, trie.depth, [path[-1] for path in trie.paths])
        """(B, V) of the token that comes next."""

    def ids(self, b: int) -> np.ndarray:
        """Return (T,) the tokens of one conversation so far."""
        return self.token[self.member[b]]

    def add(self, messages: Sequence[np.ndarray]) -> None:
        """Go on in every conversation with the given token ids, B arrays (T,)."""
        sizes = np.array([len(message) for message in messages])
        owner = np.repeat(np.arange(len(messages)), sizes)
        ends = np.cumsum(sizes)
        within = np.arange(len(owner)) - np.repeat(ends - sizes, sizes)
        position = self.member.sum(axis=1)[owner] + within
        self.member[owner, self.used + np.arange(len(owner))] = True
        self.tokens.added += len(owner)
        self.logits = self._forward(np.concatenate(messages), owner, position, list(ends - 1))

    @torch.inference_mode()
    def write(self, samplings: Sequence[Sampling]) -> list[tuple[Reply, np.ndarray]]:
        """Let every conversation speak.

        Args:
            samplings: B of them.

        Returns:
            B replies, each with the (L, D) float32 mean over its sentence's tokens, NaN if it is empty.
        """
        replies = [Reply(sampling) for sampling in samplings]
        means = ReplyMeans(replies, len(self.layers))
        base = self.member.sum(axis=1)
        self.tokens.replayed += int(base.sum())
        slots: list[list[int]] = [[] for _ in replies]
        logits, writing = self.logits, list(range(len(replies)))
        while writing:
            tokens = self._draw([replies[b] for b in writing], logits)
            pairs = zip(writing, tokens, strict=True)
            going = [b for b, token in pairs if replies[b].append(token, self.tree.decode, self.tree.stops)]
            if going:
                logits = self._step(going, replies, base, slots, means)
            means.commit()
            alive = [i for i, b in enumerate(going) if not replies[b].done]
            writing = [going[i] for i in alive]
            logits = logits[alive] if writing else logits
        for b, reply in enumerate(replies):
            cut = slots[b][reply.stop :]
            self.member[b, cut] = False
            self.tokens.dropped += len(cut)
        width = self.tree.model.config.get_text_config().hidden_size
        return list(zip(replies, means.means(width), strict=True))

    def _draw(self, replies: Sequence[Reply], logits: torch.Tensor) -> list[int]:
        heat = np.array([reply.sampling.temperature for reply in replies])
        return draw(logits, heat, np.array([reply.uniform[len(reply.ids)] for reply in replies]))

    def _step(
        self,
        going: list[int],
        replies: Sequence[Reply],
        base: np.ndarray,
        slots: list[list[int]],
        means: ReplyMeans,
    ) -> torch.Tensor:
        """Forward the newest token of the replies ``going``; return logits (len(going), V)."""
        for place, b in enumerate(going, self.used):
            self.member[b, place] = True
            slots[b].append(place)
        position = base[going] + [len(replies[b].ids) - 1 for b in going]
        tokens = np.array([replies[b].ids[-1] for b in going])
        self.tokens.written += len(going)
        self.tokens.replayed += len(going)
        rows = list(range(len(going)))

        def sink(slot: int, hidden: torch.Tensor) -> None:
            means.hold(slot, going, hidden[0])

        return self._call(tokens, np.array(going), position, rows, self.layers, sink)

    def _forward(
        self, tokens: np.ndarray, owner: np.ndarray, position: np.ndarray, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Forward tokens of conversations ``owner`` in calls of the budget; return logits (B, V).

        ``wanted`` are the places among the tokens whose logits are returned, one for each conversation.
        """
        places, budget = np.array(wanted), self.tree.token_budget
        found: dict[int, torch.Tensor] = {}
        for start in range(0, len(tokens), budget):
            now = slice(start, start + budget)
            inside = np.unique(places[(places >= start) & (places < start + budget)])
            rows = (inside - start).tolist()
            logits = self._call(tokens[now], owner[now], position[now], rows, [], lambda *_: None)
            found.update(zip(inside.tolist(), logits, strict=True))
        return torch.stack([found[int(place)] for place in places])

    def _call(
        self,
        tokens: np.ndarray,
        owner: np.ndarray,
        position: np.ndarray,
        rows: Sequence[int],
        layers: Sequence[int],
        sink: Sink,
    ) -> torch.Tensor:
        """Run the model on one packed row (C,); return logits (len(rows), V)."""
        model, device = self.tree.model, self.tree.device
        first, self.used = self.used, self.used + len(tokens)
        self.token[first : self.used], self.position[first : self.used] = tokens, position
        slot = np.arange(self.used)
        allowed = self.member[owner, : self.used] & (slot <= slot[first:, None])
        distance = position[:, None] - self.position[: self.used]
        mask = self.tree.masks.build(*(torch.from_numpy(part).to(device) for part in (allowed, distance)))
        ids, places = (torch.from_numpy(part).to(device)[None] for part in (tokens, position))
        self.tokens.calls += 1
        with torch.inference_mode(), shared_heads(device), read_layers(model, layers, sink):
            done = model(
                input_ids=ids, position_ids=places, attention_mask=mask, past_key_values=self.cache,
                use_cache=True, logits_to_keep=torch.tensor(list(rows), dtype=torch.long),
            )  # fmt: skip
        return done.logits[0]
