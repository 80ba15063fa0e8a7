"""Selections against brute force in float64, and what they say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent_memory.attention.selectors import Bounds, RecallSelector, TopKSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.memory.growing import GrowingRows
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import operations

SINK, BLOCK = 32, 32


def layer_of(keys: torch.Tensor, dtype: torch.dtype = torch.float32) -> LayerKV:
    """A layer holding ``keys [Hk, tokens, d]``, all of it in whole Blocks."""
    heads, tokens, dim = keys.shape
    layer = object.__new__(LayerKV)
    layer.summary = LayerSummary(heads, dim)
    layer.every_key = GrowingRows((heads, BLOCK, dim), dtype)
    blocks = keys.unflatten(1, (tokens // BLOCK, BLOCK)).transpose(0, 1)
    layer.summary.append(blocks)
    layer.every_key.append(blocks)
    return layer


def bounds_of(stops: list[int], tokens: int, lost: tuple[int, ...] = ()) -> Bounds:
    gone = np.zeros(tokens // BLOCK, dtype=bool)
    gone[list(lost)] = True
    return Bounds(SINK, torch.tensor(stops), gone, BLOCK)


def reattention_oracle(queries, keys, stop, k, clip, span):
    """methods.md 10.1 word by word, in float64, for one group; token indices kept."""
    heads, count, _ = queries.shape
    share = heads // keys.shape[0]
    middle = stop - SINK
    votes: dict[int, int] = {}
    for h in range(heads):
        for t in range(count):
            scores = (keys[h // share, SINK:stop].double() @ queries[h, t].double()).tolist()
            for m in sorted(range(middle), key=lambda m: (-scores[m], m))[: min(k, middle)]:
                votes[m] = votes.get(m, 0) + 1
    kept = sorted(votes, key=lambda m: (-votes[m], m))
    kept = kept if clip < 0 else kept[:clip]
    return [SINK + m for m in range(middle) if any(c - span // 2 <= m <= c + (span + 1) // 2 - 1 for c in kept)]


@pytest.mark.parametrize(("k", "clip", "span", "seed"), [(4, 7, 32, 0), (1, 3, 8, 1), (8, -1, 16, 2), (4, 5, 7, 3), (64, 9, 32, 4)])
def test_reattention_equals_the_oracle(k, clip, span, seed):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 640, 16, generator=g)
    queries = torch.randn(3, 6, 16, 16, generator=g)
    stops = [640, 500, 33]
    chosen = TopKSelector(k, clip, span, operations()).select(queries, queries.shape[2], 1.0, bounds_of(stops, 640), layer_of(keys))
    assert chosen.exact
    for group, stop in enumerate(stops):
        tokens = chosen.tokens[group, 0]
        assert tokens[tokens >= 0].tolist() == reattention_oracle(queries[group], keys, stop, k, clip, span)


def test_reattention_equal_scores_go_to_the_lower_index():
    keys = torch.ones(1, 128, 4)
    chosen = TopKSelector(2, 2, 1, operations()).select(
        torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4).shape[2], 1.0, bounds_of([128], 128), layer_of(keys)
    )
    assert chosen.tokens[0, 0].tolist() == [32, 33]


def recall_oracle(queries, keys, stop, blocks, scaling):
    """Per KV head, per query softmax over every candidate key, maximum over queries and keys of a Block; float64."""
    heads = keys.shape[0]
    rows = queries.reshape(heads, -1, queries.shape[-1]).double()
    out = []
    for h in range(heads):
        last = -(-stop // BLOCK) * BLOCK
        scores = rows[h] @ keys[h, SINK:last].double().T * scaling
        votes = (scores - scores.logsumexp(-1, keepdim=True)).amax(0).unflatten(0, (-1, BLOCK)).amax(-1)
        best = sorted(range(len(votes)), key=lambda b: (-float(votes[b]), b))[:blocks]
        out.append(sorted(b + SINK // BLOCK for b in best))
    return out


def selected_blocks(tokens: torch.Tensor) -> list[list[int]]:
    return [sorted({t // BLOCK for t in row.tolist() if t >= 0}) for row in tokens]


@pytest.mark.parametrize("seed", range(5))
def test_exact_recall_is_the_rule_over_every_key(seed):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 4096, 32, generator=g)
    queries = torch.randn(2, 4, 16, 32, generator=g) * 2
    selector = RecallSelector(RecallRule(blocks=7, scan="exact", pool=False), operations())
    chosen = selector.select(queries, queries.shape[2], 32**-0.5, bounds_of([4096, 3001], 4096), layer_of(keys))
    assert chosen.exact and chosen.certified == "memory"
    assert selected_blocks(chosen.tokens[0]) == recall_oracle(queries[0], keys, 4096, 7, 32**-0.5)
    assert selected_blocks(chosen.tokens[1]) == recall_oracle(queries[1], keys, 3001, 7, 32**-0.5)


def test_int8_certificate_holds_where_it_is_given_and_is_given_where_keys_differ_clearly():
    given = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        keys = torch.randn(1, 1024, 32, generator=g) * 0.3
        queries = torch.randn(1, 2, 16, 32, generator=g)
        for block in range(7):  # seven clear answers
            keys[0, 64 + 100 * block] = queries[0, 0, block] * 4
        chosen = RecallSelector(RecallRule(blocks=7, scan="means", survivors=64, pool=False), operations()).select(
            queries, queries.shape[2], 1.0, bounds_of([1024], 1024), layer_of(keys)
        )
        if chosen.exact:
            given += 1
            assert selected_blocks(chosen.tokens[0]) == recall_oracle(queries[0], keys, 1024, 7, 1.0)
    assert given > 0


def test_prefiltered_recall_does_not_call_itself_exact():
    g = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(1, 4096, 32, generator=g), torch.randn(1, 4, 16, 32, generator=g)
    for survivors, certificates in ((0, {"no"}), (16, {"no", "survivors"})):
        rule = RecallRule(blocks=7, scan="means", survivors=survivors)
        chosen = RecallSelector(rule, operations()).select(queries, queries.shape[2], 1.0, bounds_of([4096], 4096), layer_of(keys))
        assert not chosen.exact
        assert chosen.certified in certificates


def test_everything_fits_is_exact_and_keeps_out_local_tokens():
    keys = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    selector = RecallSelector(RecallRule(blocks=7), operations())
    chosen = selector.select(torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8).shape[2], 1.0, bounds_of([112], 256), layer_of(keys))
    tokens = chosen.tokens[0, 0]
    assert tokens[tokens >= 0].tolist() == list(range(32, 112))
    assert chosen.exact


def test_lost_blocks_are_never_chosen_and_nothing_is_exact_then():
    keys = torch.zeros(1, 1024, 8)
    keys[:, 320:352] = 5.0
    queries = torch.ones(1, 2, 16, 8)
    for selector in (RecallSelector(RecallRule(blocks=2), operations()), TopKSelector(4, 7, 32, operations())):
        assert 10 in selected_blocks(selector.select(queries, queries.shape[2], 1.0, bounds_of([1024], 1024), layer_of(keys)).tokens[0])[0]
        chosen = selector.select(queries, queries.shape[2], 1.0, bounds_of([1024], 1024, lost=(10,)), layer_of(keys))
        assert not chosen.exact
        if isinstance(selector, RecallSelector):
            assert 10 not in selected_blocks(chosen.tokens[0])[0]


@pytest.mark.parametrize("vote", ["softmax", "max"])
def test_one_sharp_query_is_heard_only_when_votes_are_normalised(vote):
    dim = 16
    keys = torch.zeros(1, 2048, dim)
    keys[:, :, 0] = 3.0  # every key answers the vague query, and better than ...
    keys[:, 1000, 1] = 2.5  # ... the one key of the sharp query does
    queries = torch.zeros(1, 1, 2, dim)
    queries[0, 0, 0, 0], queries[0, 0, 1, 1] = 1.0, 1.0
    keys[:, ::7, 0] += 0.1
    rule = RecallRule(blocks=1, vote=vote)
    chosen = RecallSelector(rule, operations()).select(queries, queries.shape[2], 4.0, bounds_of([2048], 2048), layer_of(keys))
    assert (selected_blocks(chosen.tokens[0])[0] == [31]) == (vote == "softmax")
