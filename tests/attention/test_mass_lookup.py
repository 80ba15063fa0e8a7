"""Far keys looked up in clusters by the default rule: what it finds, what it costs, and a scan of every key where all are opened."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.attention.rotation import rotated
from agent_memory.attention.selectors import Ask, Bounds, MassConfig, MassSelector, Selection
from agent_memory.memory.clusters import STEP_TOKENS, ClusterPlan, LayerClusters
from agent_memory.memory.layer_kv import LayerKV
from agent_memory_kernels import operations
from tests.attention.test_mass import BLOCK, DIM, HEADS, KV, ROTARY, SCALE, layer_of

TOKENS, REACH = 4 * STEP_TOKENS, 1000
COVERED = 3 * STEP_TOKENS


def memory(seed: int = 0, tokens: int = TOKENS) -> tuple[LayerKV, Tensor]:
    """A layer with keys of many kinds, and the keys ``[Hk, n, d]``."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randn((64, DIM), generator=random) * 2
    which = torch.randint(64, (KV, tokens), generator=random)
    keys = kinds[which] + torch.randn((KV, tokens, DIM), generator=random)
    config = settings(1)
    layer = layer_of(keys, torch.randn((KV, tokens, DIM), generator=random), config.period)
    assert layer.summary is not None
    layer.clusters = LayerClusters(KV, DIM, ClusterPlan(STEP_TOKENS, config.behind, config.cluster_tokens, holds_keys=True))
    layer.clusters.cover(tokens, layer.summary.scanned_keys)
    assert layer.clusters.blocks * BLOCK == COVERED
    return layer, keys


def settings(probes: int, blocks: int = 80) -> MassConfig:
    return MassConfig(tokens=128, blocks=blocks, window=REACH, reach=REACH, probes=probes, cluster_tokens=128)


def choose(config: MassConfig, layer: LayerKV, queries: Tensor, stops: list[int], lost: tuple[int, ...] = ()) -> Selection:
    """What ``queries [G, H, T, d]`` of the tokens from ``stops`` on choose."""
    gone = np.zeros(TOKENS // BLOCK, bool)
    gone[list(lost)] = True
    at, count = torch.tensor(stops), queries.shape[2]
    bounds = Bounds(32, at, gone, BLOCK)
    near = torch.zeros(len(stops), KV, HEADS // KV * count)
    ask = Ask(queries, count, bounds, 0, partial(rotated, rotary=ROTARY, layer=0), at[:, None] + torch.arange(count), None, lambda: near)
    return MassSelector(config, operations()).select([ask], SCALE, layer)[0]


def queries_of(groups: int, count: int = 1) -> Tensor:
    return torch.randn((groups, HEADS, count, DIM), generator=torch.Generator().manual_seed(9)) * 2


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("blocks", [80, 20])
def test_with_every_cluster_opened_it_is_a_scan_of_every_key(count: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MassConfig, "fewest", lambda *_: 1)
    layer, _ = memory()
    stops = [TOKENS - 32, TOKENS - 16, TOKENS]
    expected = choose(settings(0, blocks), layer, queries_of(3, count), stops, lost=(3, 77))
    found = choose(settings(1000, blocks), layer, queries_of(3, count), stops, lost=(3, 77))
    assert torch.equal(found.tokens, expected.tokens)
    assert bool((found.tokens[found.tokens >= 0] < COVERED).any()) and bool((found.tokens >= COVERED).any())
    found.check(Bounds(32, torch.tensor(stops), np.zeros(TOKENS // BLOCK, bool), BLOCK))
    assert found.unread is not None and expected.unread is not None
    torch.testing.assert_close(found.unread.out, expected.unread.out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.unread.lse, expected.unread.lse, rtol=1e-4, atol=1e-4)


def test_few_clusters_hold_most_of_the_mass_at_a_fraction_of_the_cost() -> None:
    layer, keys = memory(1)
    wanted = torch.tensor([100, 2000, 4097, 6000])
    pointing = keys[:, wanted].repeat_interleave(HEADS // KV, 0)[None]
    queries = _unturned(pointing, REACH - 1)
    stops = [TOKENS - 16]
    every, some = (choose(settings(probes), layer, queries, stops) for probes in (0, 4))
    for mine, theirs in zip(some.tokens[0], every.tokens[0], strict=True):
        assert bool((theirs < COVERED).any()) and torch.isin(theirs, mine).float().mean() > 0.9
    assert some.keys_scored < 0.55 * every.keys_scored


def _unturned(x: Tensor, position: int) -> Tensor:
    """Queries that are ``x [1, H, T, d]`` once they are rotated to a position."""
    cos, sin = ROTARY.table(0, position + 1)
    there = torch.full((x.shape[2],), position)
    return ROTARY.rotate(0, x, cos[:, there], -sin[:, there])


def test_a_group_chooses_as_it_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = memory(2)
    stops, queries = [TOKENS - 64 + 16 * at for at in range(4)], queries_of(4, 16)
    together = choose(settings(3), layer, queries, stops)
    monkeypatch.setattr("agent_memory.attention.selectors.mass.scan.WEIGHTS_HELD", 1)
    for group in range(4):
        assert torch.equal(
            choose(settings(3), layer, queries[group : group + 1], stops[group : group + 1]).tokens[0], together.tokens[group]
        )


def test_lost_blocks_and_the_sink_are_never_found() -> None:
    layer, _ = memory(3)
    lost = tuple(range(0, COVERED // BLOCK, 2))
    found = choose(settings(2), layer, queries_of(1), [TOKENS - 16], lost=lost)
    blocks = found.tokens[found.tokens >= 0] // BLOCK
    assert len(blocks) and not np.isin(blocks.numpy(), [0, *lost]).any()


@pytest.mark.parametrize(("count", "most"), [(1, 12), (16, 24)])
def test_fewer_keys_than_a_lookup_costs_are_all_scored(count: int, most: int) -> None:
    layer, _ = memory(4)
    assert settings(most + 1).fewest(count) > COVERED >= settings(most).fewest(count)
    queries, stops = queries_of(1, count), [TOKENS - 16]
    some, more, every = (choose(settings(probes), layer, queries, stops) for probes in (most, most + 1, 0))
    assert torch.equal(more.tokens, every.tokens) and some.keys_scored != every.keys_scored


def test_of_many_clusters_a_share_is_looked_into() -> None:
    layer, _ = memory(6)
    assert layer.clusters is not None
    share, queries = int(0.15 * layer.clusters.most), queries_of(2)
    assert 4 < share < 30
    stops = [TOKENS - 16, TOKENS]
    few, grown, bounded, expected = (
        choose(config, layer, queries, stops)
        for config in (
            settings(2),
            replace(settings(2), most_probes=30, probed_share=0.15),
            replace(settings(2), most_probes=4, probed_share=0.15),
            settings(share),
        )
    )
    assert torch.equal(grown.tokens, expected.tokens) and grown.keys_scored == expected.keys_scored
    assert few.keys_scored < bounded.keys_scored < grown.keys_scored


def test_while_everything_stands_at_its_true_distance_every_key_is_scored() -> None:
    layer, _ = memory(5)
    wide = replace(settings(2), window=TOKENS + 64)
    again = layer_of(torch.randn(KV, 32, DIM), torch.randn(KV, 32, DIM), wide.period)
    assert again.rotated_keys is not None and layer.summary is not None
    layer.rotated_keys = again.rotated_keys
    layer.rotated_keys.truncate(0)
    layer.rotated_keys.append(layer.summary.float_keys(0, TOKENS // BLOCK))
    queries, stops = queries_of(1), [TOKENS - 16]
    some, every = (choose(replace(wide, probes=probes), layer, queries, stops) for probes in (2, 0))
    assert torch.equal(some.tokens, every.tokens) and some.keys_scored == every.keys_scored
