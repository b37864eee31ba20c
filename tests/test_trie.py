"""The trie holds every distinct prefix once, and the plan forwards every node once, after its ancestors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.engine.plan import SIMILAR, Crop, Decode, Forward, Plan, make_plan
from analysis.engine.trie import Trie, build_trie

IDS = st.sampled_from([0, 1, 255, 256, 65_536, 151_000])
SEQUENCE = st.lists(IDS, min_size=1, max_size=10)


@st.composite
def branching(draw: st.DrawFn) -> list[list[int]]:
    """Return sequences that leave each other at many depths: each goes on from a prefix of an earlier one."""
    found = [draw(SEQUENCE)]
    for _ in range(draw(st.integers(0, 9))):
        base = found[draw(st.integers(0, len(found) - 1))]
        keep = draw(st.integers(0, len(base)))
        found.append(base[:keep] + draw(st.lists(IDS, min_size=0 if keep else 1, max_size=6)))
    return draw(st.permutations(found))


def prefixes(sequences: Iterable[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(seq[:i]) for seq in sequences for i in range(1, len(seq) + 1)}


def spelled(trie: Trie, node: int) -> tuple[int, ...]:
    """Return the tokens from the start to ``node``, by going up through the parents."""
    tokens = []
    while node >= 0:
        tokens.append(int(trie.token[node]))
        node = int(trie.parent[node])
    return tuple(reversed(tokens))


@settings(max_examples=150, deadline=None)
@given(branching())
def test_nodes_are_the_distinct_prefixes(sequences):
    trie = build_trie(sequences)
    nodes = [spelled(trie, node) for node in range(len(trie))]
    assert len(set(nodes)) == len(nodes) == len(trie)
    assert set(nodes) == prefixes(sequences)
    assert [len(node) - 1 for node in nodes] == trie.depth.tolist()


@settings(max_examples=150, deadline=None)
@given(branching())
def test_paths_spell_the_sequences(sequences):
    trie = build_trie(sequences)
    assert len(trie.paths) == len(sequences)
    for path, sequence in zip(trie.paths, sequences, strict=True):
        assert trie.token[path].tolist() == sequence
        assert trie.parent[path].tolist() == [-1, *path[:-1].tolist()]


@settings(max_examples=150, deadline=None)
@given(branching())
def test_the_range_of_a_node_holds_its_descendants_and_no_other(sequences):
    trie = build_trie(sequences)
    nodes = [spelled(trie, node) for node in range(len(trie))]
    for node, text in enumerate(nodes):
        below = [k for k, other in enumerate(nodes) if other[: len(text)] == text]
        assert below == list(range(node, trie.end[node])) and trie.size(node) == len(below)
        assert list(trie.children(node)) == [k for k in below if trie.parent[k] == node]
    assert list(trie.children(-1)) == [k for k in range(len(trie)) if trie.parent[k] == -1]


def test_a_trie_by_hand():
    trie = build_trie([[7, 8, 9], [7, 8], [7, 5, 9], [7, 8, 9]])
    assert trie.token.tolist() == [7, 5, 9, 8, 9]  # preorder, siblings by token id
    assert trie.parent.tolist() == [-1, 0, 1, 0, 3]
    assert trie.end.tolist() == [5, 3, 3, 5, 5]
    assert [p.tolist() for p in trie.paths] == [[0, 3, 4], [0, 3], [0, 1, 2], [0, 3, 4]]


# ---------------------------------------------------------------- the plan


class Cache:
    """Executes a plan on node numbers, checking each step."""

    def __init__(self, trie: Trie, replies: dict[int, int], budget: int) -> None:
        self.trie, self.replies, self.budget = trie, replies, budget
        self.slots: list[int] = []
        self.forwarded: list[int] = []
        self.decoded: list[int] = []
        self.most = 0

    def run(self, plan: Plan) -> None:
        for step, following in zip(plan.steps, [*plan.steps[1:], None], strict=True):
            if isinstance(step, Forward):
                self.forward(step.nodes.tolist())
            elif isinstance(step, Crop):
                assert 0 <= step.length < len(self.slots)
                del self.slots[step.length :]
            else:
                self.decode(step)
                assert isinstance(following, Crop), "tokens of replies are still there"
            self.most = max(self.most, len(self.slots))

    def visible(self, node: int) -> list[int]:
        """Return the cached nodes on the path to ``node``, in the order of the slots."""
        return [k for k in self.slots if k <= node < self.trie.end[k]]

    def ancestors(self, node: int) -> list[int]:
        return [] if node < 0 else [*self.ancestors(int(self.trie.parent[node])), node]

    def forward(self, nodes: list[int]) -> None:
        assert 0 < len(nodes) <= self.budget
        self.forwarded += nodes
        for node in nodes:
            self.slots.append(node)
            assert self.visible(node) == self.ancestors(node)  # all of them, once, in order

    def decode(self, step: Decode) -> None:
        assert step.requests
        for request in step.requests:
            prompt = self.trie.paths[request].tolist()
            assert self.visible(prompt[-1]) == prompt
        self.decoded += step.requests
        # a reply's token is no node: no mask of a prompt may show it
        self.slots += [len(self.trie)] * sum(self.replies[b] for b in step.requests)


@settings(max_examples=300, deadline=None)
@given(branching(), st.integers(1, 12), st.integers(1, 30), st.integers(1, 60), st.data())
def test_the_plan_forwards_each_node_once_after_its_ancestors(sequences, budget, decode_slots, joint, data):
    writers = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    replies = {b: data.draw(st.integers(1, 4)) for b in sorted(writers)}
    trie = build_trie(sequences)
    similar = data.draw(st.sampled_from([0.0, SIMILAR]))
    plan = make_plan(trie, replies, budget, similar, decode_slots, joint)
    cache = Cache(trie, replies, budget)
    cache.run(plan)
    assert sorted(cache.forwarded) == list(range(len(trie)))
    assert sorted(cache.decoded) == sorted(writers)
    assert plan.slots == cache.most
    assert cache.slots == []


def control_shape(n_shots: int, length: int, tail: int) -> list[list[int]]:
    """Return a trunk of n_shots * length tokens, and four short tails off it after each example."""
    trunk = list(range(10, 10 + n_shots * length))
    return [trunk[: n * length] + [1000 + t] * tail for n in range(1, n_shots + 1) for t in range(4)]


def test_a_chain_needs_as_many_slots_as_tokens_and_a_star_no_more_than_a_budget_above_its_trunk():
    chain = build_trie([list(range(1, 101))])
    assert make_plan(chain, {}, 32).slots == 100
    star = build_trie([[1, 2, 3, 100 + i, 5] for i in range(50)])
    assert len(star) == 3 + 2 * 50
    assert make_plan(star, {}, 16).slots <= 3 + 2 + 16


def test_tails_off_one_trunk_are_packed_into_few_calls():
    sequences = control_shape(n_shots=16, length=20, tail=5)
    plan = make_plan(build_trie(sequences), {}, 512)
    forwards = [step for step in plan.steps if isinstance(step, Forward)]
    assert sum(len(step.nodes) for step in forwards) == 16 * 20 + 16 * 4 * 5
    assert len(forwards) == 2  # the trunk, then everything that hangs off it


def test_replies_are_decoded_together_unless_they_need_too_many_slots():
    sequences = control_shape(n_shots=4, length=20, tail=5)
    replies = dict.fromkeys(range(len(sequences)), 10)
    trie = build_trie(sequences)
    groups = {
        slots: [s.requests for s in make_plan(trie, replies, 512, 0.0, slots).steps if isinstance(s, Decode)]
        for slots in (10_000, 60)
    }
    assert [len(requests) for requests in groups[10_000]] == [16]
    # 5 prompt and 10 reply tokens each: four fit into 60 slots
    assert {len(requests) for requests in groups[60]} == {4} and len(groups[60]) == 4


@pytest.mark.parametrize("depth", [3000])
def test_long_combs_need_no_deep_recursion(depth):
    trunk = list(range(10, 10 + depth))
    trie = build_trie([trunk[:n] + [5, 6, 7] for n in range(1, depth, 3)])
    plan = make_plan(trie, {}, 2)  # every tail is larger than the budget
    nodes = np.concatenate([s.nodes for s in plan.steps if isinstance(s, Forward)])
    assert sorted(nodes.tolist()) == list(range(len(trie)))
