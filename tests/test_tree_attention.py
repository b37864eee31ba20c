"""Attention by groups is the plain softmax over what a row sees, and nothing else is looked at."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from analysis.engine import attention, blocks, plan, sight, spans
from analysis.engine import trie as trie_module
from analysis.engine.attention import Group, additive, attend, prompt_layout, runs_of
from analysis.engine.blocks import attend_in_blocks, make_blocks
from analysis.engine.masks import Masks
from analysis.engine.plan import Decode, make_plan
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Request
from analysis.engine.spans import SpanMeans
from analysis.engine.table import SlotTable
from analysis.engine.trie import build_trie

HEADS, SHARED, WIDTH = 2, 3, 8


def plain(query, keys, values, seen):
    """Return (C, H, E) by one dense softmax; seen (C, S) bool."""
    keys, values = (x.repeat_interleave(SHARED, 0).double() for x in (keys, values))
    weights = (query.double() @ keys.transpose(1, 2)).masked_fill(~seen, -np.inf).softmax(-1)
    return (weights @ values).transpose(0, 1).float()


@pytest.mark.parametrize("block", [2**20, 400])  # all rows at once, and blocks of 32
@pytest.mark.parametrize("count", [3, 90])  # few rows, and many
def test_attention_of_a_packed_row_is_the_softmax_over_ancestors(count, block, rng, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", block)
    trunk = list(range(100, 140))
    tails = [trunk[:keep] + rng.integers(0, 5, count).tolist() for keep in (40, 40, 40, 25, 7)]
    trie = build_trie([trunk, *tails])
    cached = trie.paths[0]  # the trunk lies in the first slots
    nodes = np.setdiff1d(np.arange(len(trie)), cached)  # preorder: subtree after subtree
    forks = [p for p in np.unique(trie.parent[nodes]) if p in cached]
    runs = {int(p): runs_of(np.flatnonzero((cached <= p) & (p < trie.end[cached]))) for p in forks}
    slots = np.concatenate([cached, nodes])
    query, keys, values = (
        torch.tensor(rng.standard_normal((h, n, WIDTH)), dtype=torch.float32)
        for h, n in ((HEADS * SHARED, len(nodes)), (HEADS, len(slots)), (HEADS, len(slots)))
    )
    layout = prompt_layout(nodes, trie.parent, trie.end, len(cached), runs)
    assert [g.rows[0] for g in layout] == [0, *(g.rows[1] for g in layout[:-1])]
    assert layout[-1].rows[1] == len(nodes)
    seen = torch.from_numpy((slots <= nodes[:, None]) & (nodes[:, None] < trie.end[slots]))
    found = attend(query, keys, values, layout)
    torch.testing.assert_close(found, plain(query, keys, values, seen), rtol=1e-4, atol=1e-5)


def test_rows_that_see_several_runs_and_a_mask(rng):
    query, keys, values = (
        torch.tensor(rng.standard_normal((h, n, WIDTH)), dtype=torch.float32)
        for h, n in ((HEADS * SHARED, 2), (HEADS, 30), (HEADS, 30))
    )
    keys[:, 20:], values[:, 3:9] = np.nan, np.nan  # slots that nobody may touch
    own = torch.tensor([[True, False, True, False], [True, True, False, True]])
    group = Group((0, 2), ((0, 3), (9, 12)), ((14, 16), (18, 20)), additive(own, torch.float32))
    seen = torch.zeros(2, 30, dtype=torch.bool)
    seen[:, [0, 1, 2, 9, 10, 11]] = True
    seen[:, [14, 15, 18, 19]] = own
    expected = plain(query, keys.nan_to_num(), values.nan_to_num(), seen)
    torch.testing.assert_close(attend(query, keys, values, [group]), expected, rtol=1e-4, atol=1e-5)


def test_runs_of_slots():
    assert runs_of(np.array([0, 1, 2, 5, 7, 8])) == ((0, 3), (5, 6), (7, 9))
    assert runs_of(np.array([], np.int64)) == ()


def test_replies_of_two_trunks_are_decoded_together_and_the_cache_holds_both(tiny_lm, rng):
    heads = rng.integers(11, 500, (2, 60))
    heads[:, :20] = heads[0, :20]  # a common start
    requests = [
        Request(np.concatenate([head[:keep], [t, 5]]), reply=Sampling(6, 0.7, (i, keep, t)))
        for i, head in enumerate(heads)
        for keep in (30, 60)
        for t in (6, 7)
    ]
    trie = build_trie([r.ids for r in requests])
    replies = dict.fromkeys(range(8), 6)
    decodes = [s for s in make_plan(trie, replies, 32).steps if isinstance(s, Decode)]
    assert [sorted(step.requests) for step in decodes] == [list(range(8))]
    tight = [s for s in make_plan(trie, replies, 32, joint_slots=130).steps if isinstance(s, Decode)]
    assert sorted(sorted(step.requests) for step in tight) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    together = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 32, mode="slots").read(requests, [1, 3])
    for request, reading in zip(requests, together, strict=True):
        (alone,) = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False).read([request], [1, 3])
        assert reading.reply.ids == alone.reply.ids
        np.testing.assert_allclose(reading.reply_pooled, alone.reply_pooled, rtol=1e-4, atol=1e-5)


def test_span_means_are_means_over_each_span_also_where_spans_share_tokens(rng):
    ids = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4]]
    requests = [Request(ids[0], [(0, 3), (2, 4)]), Request(ids[1], [(1, 3)]), Request(ids[2], [(3, 4)])]
    trie = build_trie(ids)
    states = rng.standard_normal((len(trie), 2, 5)).astype(np.float32)  # per node and layer
    sums = SpanMeans(trie.paths, requests, n_layers=2)
    for nodes in (np.arange(2), np.arange(2, len(trie))):
        add = sums.step(nodes)
        for layer in (0, 1):
            add(layer, torch.from_numpy(states[nodes, layer])[None])
    expected = [
        states[path[start:stop]].mean(0)
        for request, path in zip(requests, trie.paths, strict=True)
        for start, stop in request.spans
    ]
    np.testing.assert_allclose(sums.means(5), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_short_branches_see_what_a_dense_mask_shows(seed, monkeypatch):
    monkeypatch.setattr(blocks, "WIDTH", 24)
    rng = np.random.default_rng(seed)
    trunk = list(range(100, 130))
    tails = [
        trunk[: rng.integers(5, 31)] + rng.integers(0, 3, rng.integers(1, 12)).tolist() for _ in range(20)
    ]
    trie = build_trie([trunk, *tails])
    before = trie.paths[0]
    nodes = np.setdiff1d(np.arange(len(trie)), before)
    made = make_blocks(nodes, trie.parent, trie.end, before, torch.device("cpu"))
    assert made.rows.shape[0] > 2 and made.rows.flatten()[made.places].tolist() == [*range(len(nodes))]
    slots = np.concatenate([before, nodes])
    query, key, value = (
        torch.tensor(rng.standard_normal((1, h, n, WIDTH)), dtype=torch.float32)
        for h, n in ((HEADS * SHARED, len(nodes)), (HEADS, len(slots)), (HEADS, len(slots)))
    )
    seen = torch.from_numpy((slots <= nodes[:, None]) & (nodes[:, None] < trie.end[slots]))
    found = attend_in_blocks(query, key, value, made, 1.0)[0]
    torch.testing.assert_close(found, plain(query[0], key[0], value[0], seen), rtol=1e-4, atol=1e-5)


def test_large_subtrees_and_long_prefixes_are_not_put_in_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "WIDTH", 2)
    trie = build_trie([[1, 2, *range(10, 600)], [1, 3, 4], [1, 5]])
    cpu, large = torch.device("cpu"), np.arange(1, len(trie))
    assert make_blocks(large, trie.parent, trie.end, np.arange(1), cpu) is None
    small = np.concatenate([trie.paths[1][1:], trie.paths[2][1:]])
    assert make_blocks(small, trie.parent, trie.end, np.arange(1), cpu).rows.tolist() == [[0, 1], [2, 0]]
    assert make_blocks(small, trie.parent, trie.end, np.zeros(2000, np.int64), cpu) is None


def test_a_preparation_on_a_gpu_takes_blocks(tiny_lm, rng, monkeypatch):
    shared, taken = rng.integers(11, 500, 20), []
    requests = [Request(np.concatenate([shared, rng.integers(11, 500, 9)]), [(20, 29)]) for _ in range(40)]
    monkeypatch.setattr(sight, "make_blocks", lambda *a: taken.append(make_blocks(*a)) or taken[-1])
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, 370, mode="chain")
    taken.clear()
    found = tree.read(requests, [0, 3])
    assert [len(made.places) for made in taken] == [len(build_trie([r.ids for r in requests])) - 29]
    expected = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False).read(requests, [0, 3])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.pooled, b.pooled, rtol=1e-3, atol=1e-5)


def test_groups_of_replies_are_those_of_the_worked_example(tiny_lm):
    trie = build_trie([[7, 8, 9, 1], [7, 8, 9, 2], [7, 8, 9, 3]])
    table = SlotTable(trie, 12)
    for nodes in ([0, 1, 2, 3], [4, 5]):
        table.append(np.array(nodes))
    assert [table.fork(node) for node in (3, 4, 5)] == [3, 2, 2]
    attending = sight.BySlots(Masks(tiny_lm.model), table, torch.device("cpu"))
    first = np.array([6, 8, 10])
    replies = attending.replies(np.array([4, 5, 3]), first, np.array([2, 2, 2]))
    table.reserve(6)
    for place in range(2):
        seen = replies.step(np.arange(3), first + place, np.array([4, 4, 4]) + place)
    packed, trunk = seen.layout.groups
    assert (seen.shown, packed.rows, trunk.rows) == (((0, 12),), (0, 2), (2, 3))
    assert (packed.runs, packed.own) == (((0, 3),), ((4, 6), (6, 10)))
    assert (packed.mask == 0).int().tolist() == [[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1]]
    assert (trunk.runs, trunk.own) == (((0, 4),), ((10, 12),))
    assert (trunk.mask == 0).int().tolist() == [[1, 1]]


@pytest.mark.parametrize("module", [trie_module, plan, spans])
def test_worked_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
