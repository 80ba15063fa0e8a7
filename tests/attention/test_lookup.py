"""Looking Blocks up through clusters: what it finds, what it costs, and that it is a scan of every key where everything is opened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agent_memory.attention.selectors import Ask, Bounds, RecallSelector, Selection
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.selectors.recall.lookup import Lookup
from agent_memory.attention.selectors.recall.votes import Votes
from agent_memory.errors import ConfigError
from agent_memory.memory.cluster_tables import MEMBERS
from agent_memory.memory.clusters import STEP_TOKENS, ClusterPlan, LayerClusters
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import operations

BLOCK, SINK, DIM, HEADS = 32, 32, 32, 2


def layer_of(keys: torch.Tensor, start: int = STEP_TOKENS) -> LayerKV:
    """A layer that holds ``keys [Hk, tokens, d]``; its clusters cover all whole steps."""
    heads, tokens, dim = keys.shape
    layer = object.__new__(LayerKV)
    layer.summary, layer.clusters, layer.every_key = LayerSummary(heads, dim), LayerClusters(heads, dim, ClusterPlan(start)), None
    layer.summary.append(keys.unflatten(1, (tokens // BLOCK, BLOCK)).transpose(0, 1))
    layer.clusters.cover(tokens, layer.summary.scanned_keys)
    return layer


def choose(rule: RecallRule, queries: torch.Tensor, stops: list[int], layer: LayerKV, lost: tuple[int, ...] = ()) -> Selection:
    assert layer.summary is not None
    gone: np.ndarray = np.zeros(len(layer.summary), dtype=bool)
    gone[list(lost)] = True
    bounds = Bounds(SINK, torch.tensor(stops), gone, BLOCK)
    return RecallSelector(rule, operations()).select([Ask(queries, queries.shape[2], bounds)], DIM**-0.5, layer)[0]


def crowd(seed: int, tokens: int) -> torch.Tensor:
    """Keys ``[Hk, tokens, d]`` of many kinds, with noise: what a model's keys look like."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn((64, DIM), generator=generator) * 2
    which = torch.randint(64, (HEADS, tokens), generator=generator)
    return kinds[which] + torch.randn((HEADS, tokens, DIM), generator=generator)


def asking(layer_keys: torch.Tensor, tokens: list[int], queries: int = 16) -> torch.Tensor:
    """Queries ``[1, 4, T, d]`` that point at keys of some tokens, one after the other."""
    wanted = torch.tensor([tokens[at % len(tokens)] for at in range(queries)])
    return layer_keys[:, wanted].repeat_interleave(2, 0)[None] * 3.0


@pytest.mark.parametrize("seed", range(3))
def test_with_everything_opened_it_is_a_scan_of_every_key(seed):
    keys = crowd(seed, 3 * STEP_TOKENS + 320)
    layer = layer_of(keys)
    queries = torch.randn(2, 4, 16, DIM) * 2
    stops = [keys.shape[1] - 64, keys.shape[1] - 32]
    everything = RecallRule(blocks=7, probes=10_000, found=10**9, clusters_from=STEP_TOKENS)
    flat = choose(RecallRule(blocks=7, scan="keys"), queries, stops, layer_without_clusters(layer))
    assert torch.equal(choose(everything, queries, stops, layer).tokens, flat.tokens)


def layer_without_clusters(layer: LayerKV) -> LayerKV:
    twin = object.__new__(LayerKV)
    twin.summary, twin.clusters, twin.every_key = layer.summary, None, None
    return twin


@pytest.mark.parametrize("place", [100, 2100, 5000, 3 * STEP_TOKENS + 100])
def test_what_a_query_points_at_is_found_wherever_it_is(place):
    keys = crowd(9, 3 * STEP_TOKENS + 320)
    layer = layer_of(keys)
    rule = RecallRule(blocks=2, clusters_from=STEP_TOKENS)
    chosen = choose(rule, asking(keys, [place, place + 1, place + 2]), [keys.shape[1]], layer)
    assert place // BLOCK in (chosen.tokens[chosen.tokens >= 0] // BLOCK).tolist()
    assert not chosen.exact
    assert chosen.certified == "no"


def test_a_cluster_that_several_queries_open_is_read_once():
    keys = crowd(9, 3 * STEP_TOKENS)
    layer = layer_of(keys)
    assert layer.clusters is not None and layer.summary is not None
    look = Lookup(Votes(RecallRule(blocks=2), operations()), layer.clusters, layer.summary, 1.0)
    tokens, there = look._members(torch.tensor([[3, 1, 3, 3], [0, 2, 2, 1]]), keys.shape[1])
    for head, row in enumerate(tokens):
        held = row[there[head]].tolist()
        opened = layer.clusters.heads[head].members[[1, 3] if head == 0 else [0, 1, 2]]
        assert sorted(held) == sorted(opened[opened >= 0].tolist())


def test_groups_choose_the_same_whoever_asks_beside_them():
    keys = crowd(13, 3 * STEP_TOKENS + 320)
    layer = layer_of(keys)
    end = keys.shape[1]
    generator = torch.Generator().manual_seed(1)
    bounds = Bounds(SINK, torch.tensor([end]), np.zeros(end // BLOCK, dtype=bool), BLOCK)
    group, single = (Ask(torch.randn((1, 4, n, DIM), generator=generator) * 3, n, bounds) for n in (16, 1))
    for echo in (0.0, 4.0):
        selector = RecallSelector(RecallRule(blocks=2, probes=1, found=1, echo=echo, clusters_from=STEP_TOKENS), operations())
        apart = [selector.select([ask], DIM**-0.5, layer)[0].tokens for ask in (group, single)]
        together = [chosen.tokens for chosen in selector.select([group, single], DIM**-0.5, layer)]
        assert all(torch.equal(one, other) for one, other in zip(apart, together, strict=True))
        assert (
            selector.select([group], DIM**-0.5, layer)[0].keys_scored == selector.select([group, single], DIM**-0.5, layer)[0].keys_scored
        )


def test_the_future_and_lost_blocks_are_not_chosen():
    keys = crowd(10, 3 * STEP_TOKENS)
    layer = layer_of(keys)
    rule = RecallRule(blocks=2, clusters_from=STEP_TOKENS)
    queries = asking(keys, [5000, 5001, 5002])
    chosen = choose(rule, queries, [4000], layer)  # the clusters are ahead of this group
    assert int(chosen.tokens.max()) < 4000
    chosen = choose(rule, queries, [keys.shape[1]], layer, lost=(5000 // BLOCK,))
    assert 5000 // BLOCK not in chosen.tokens[chosen.tokens >= 0].div(BLOCK, rounding_mode="floor").tolist()


def test_the_block_after_one_that_is_found_is_scanned_with_it():
    keys = crowd(12, 3 * STEP_TOKENS)
    layer = layer_of(keys)
    end = 6000 // BLOCK * BLOCK + BLOCK - 1
    for scan in ("keys", "clusters"):
        rule = RecallRule(blocks=2, scan=scan, clusters_from=STEP_TOKENS, margin=1e9)
        queries = asking(keys, [end])
        queries[:, :, -1] = 0.0  # a query that looks for nothing chooses by what those before it found, there or in the Block after
        bounds = Bounds(SINK, torch.tensor([keys.shape[1]]), np.zeros(len(keys[0]) // BLOCK, dtype=bool), BLOCK)
        held = layer if scan == "clusters" else layer_without_clusters(layer)
        chosen = RecallSelector(rule, operations()).select([Ask(queries, 1, bounds)], DIM**-0.5, held)[0]
        assert chosen.tokens[chosen.tokens >= 0].div(BLOCK, rounding_mode="floor").unique().tolist() == [end // BLOCK, end // BLOCK + 1]


def test_four_times_the_memory_is_not_four_times_the_work():
    rule, scored = RecallRule(blocks=7, clusters_from=STEP_TOKENS), []
    for steps in (2, 8):
        keys = crowd(11, steps * STEP_TOKENS)
        scored.append(choose(rule, asking(keys, [500, 501]), [keys.shape[1]], layer_of(keys)).keys_scored)
    centres = HEADS * 6 * STEP_TOKENS / MEMBERS * 3  # what grows: one product a cluster, which are a third full at worst
    assert scored[1] - scored[0] < centres + HEADS * MEMBERS * 16  # and the clusters opened differ a little
    assert scored[1] < 1.6 * scored[0]


@pytest.mark.parametrize(("option", "value"), [("clusters_from", 0), ("clusters_from", STEP_TOKENS + 32), ("probes", 0), ("found", 0)])
def test_what_cannot_be_is_refused_with_its_bound(option, value):
    with pytest.raises(ConfigError, match=f"{option}={value}"):
        RecallRule(**{"blocks": 7, option: value}).check(7)
