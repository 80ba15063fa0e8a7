"""What a message looks at: counted by definition, chosen whatever it weighs, and brought near."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_memory.attention.evidence import Evidence
from agent_memory.attention.positions import Attended, WindowPositions
from agent_memory.attention.rotation import rotated
from agent_memory.attention.selectors import Ask, Bounds, MassConfig, MassSelector, Selection
from agent_memory.memory.layer_kv import LayerKV
from agent_memory_kernels import operations
from tests.attention.test_mass import BLOCK, DIM, HEADS, KV, ROTARY, SCALE
from tests.attention.test_mass_lookup import COVERED, REACH, TOKENS, memory, queries_of, settings


def ask_for(queries: Tensor, stop: int, brought: Tensor | None = None, evidence: Evidence | None = None, looking: int = 0) -> Ask:
    """One group of ``queries [1, H, T, d]`` of the tokens from ``stop`` on."""
    count = queries.shape[2]
    bounds = Bounds(32, torch.tensor([stop]), np.zeros(TOKENS // BLOCK, bool), BLOCK)
    ask = Ask(queries, count, bounds, 0, partial(rotated, rotary=ROTARY, layer=0), torch.arange(stop, stop + count)[None])
    return replace(
        ask,
        near=lambda: torch.zeros(1, KV, HEADS // KV * count),
        brought=brought,
        look=None if evidence is None else evidence.add,
        looking=looking,
    )


def select(config: MassConfig, layer: LayerKV, ask: Ask) -> Selection:
    return MassSelector(config, operations()).select([ask], SCALE, layer)[0]


def sums_of(evidence: Evidence) -> Tensor:
    assert evidence._sums is not None
    return evidence._sums


def test_it_counts_how_shares_of_the_queries_that_look_vary() -> None:
    layer, keys = memory()
    queries, stop = queries_of(1, 16), TOKENS - 16
    evidence = Evidence(0)
    select(settings(0), layer, ask_for(queries, stop, evidence=evidence, looking=5))
    expected = torch.zeros(TOKENS // BLOCK)
    for head in range(HEADS):
        far = rotated(queries[0, head : head + 1], torch.full((16,), REACH - 1), ROTARY, 0).squeeze()
        true = rotated(queries[0, head : head + 1], torch.arange(stop, stop + 16), ROTARY, 0).squeeze()
        mine = keys[head * KV // HEADS, :stop]
        turned = rotated(mine[None], torch.arange(stop), ROTARY, 0).squeeze()
        first = (stop + 15 - REACH + 1 + BLOCK) // BLOCK * BLOCK
        logits = torch.cat([far @ mine[:first].T, true @ turned[first:].T], 1) * SCALE
        logits[:, :32] = float("-inf")
        shares = torch.cat([logits, torch.zeros(16, 1)], 1).softmax(1)[11:, :-1]
        varied = (shares - shares.mean(0)).square()
        expected[: -(-stop // BLOCK)] += torch.nn.functional.pad(varied.sum(0), (0, -stop % BLOCK)).view(-1, BLOCK).sum(1)
    found = sums_of(evidence)
    torch.testing.assert_close(found, expected[: len(found)], rtol=0.1, atol=0.02)  # of 8-bit keys
    assert found.argmax() == expected.argmax() and expected.max() > 0.5


def test_with_every_cluster_opened_it_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MassConfig, "fewest", lambda *_: 1)
    layer, _ = memory()
    of_scan, of_clusters = Evidence(0), Evidence(0)
    for probes, evidence in ((0, of_scan), (1000, of_clusters)):
        select(settings(probes), layer, ask_for(queries_of(1, 4), TOKENS - 16, evidence=evidence, looking=4))
    assert bool((sums_of(of_scan)[: COVERED // BLOCK] > 0).any())
    torch.testing.assert_close(sums_of(of_clusters), sums_of(of_scan), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("probes", [0, 1000])
@pytest.mark.parametrize("blocks", [300, 20])
def test_what_is_brought_is_chosen_by_every_head_and_takes_the_place_of_the_weakest(
    probes: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MassConfig, "fewest", lambda *_: 1)
    layer, _ = memory()
    config, stop = replace(settings(probes, blocks), tokens=256), TOKENS - 16
    brought = torch.tensor([-1, 0, 5, 6, TOKENS // BLOCK, TOKENS // BLOCK - 1])
    usual = select(config, layer, ask_for(queries_of(1), stop)).tokens
    selection = select(config, layer, ask_for(queries_of(1), stop, brought))
    selection.check(Bounds(32, torch.tensor([stop]), np.zeros(TOKENS // BLOCK, bool), BLOCK))
    tokens, wanted = selection.tokens, {*range(5 * BLOCK, 7 * BLOCK), *range(TOKENS - BLOCK, stop)}
    assert tokens.shape == usual.shape
    for head in range(KV):
        mine = {int(token) for token in tokens[0, head] if token >= 0}
        assert wanted <= mine and len({token // BLOCK for token in mine}) <= config.blocks
        if blocks == 300:
            assert mine - wanted <= {int(token) for token in usual[0, head]}


def test_the_strongest_blocks_come_with_those_after_them_and_near_ones_count_half() -> None:
    evidence = Evidence(0)
    assert evidence.strongest(1, 10) is None
    evidence.add(torch.tensor([0.0, 0.0, 3.0, 1.0, 0.0, 2.0, 0.0]))
    evidence.add(torch.tensor([0.0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 4.0]))
    for count, far, expected in ((1, 6, {2, 3}), (1, 9, {8, 9}), (2, 6, {2, 3, 4}), (2, 9, {2, 3, 8, 9})):
        found = evidence.strongest(count, far)
        assert found is not None and len(found) == 2 * count
        assert {int(block) for block in found if block >= 0} == expected
    nothing = Evidence(0)
    nothing.add(torch.zeros(4))
    found = nothing.strongest(1, 4)
    assert found is not None and found.tolist() == [-1, -1]


def test_what_is_brought_stands_near_unless_it_is_nearer() -> None:
    tokens = torch.tensor([[[-1, 100, 4000, 7000, 9000, 9800]]])
    keys = torch.zeros(1, 1, 6, DIM)
    attended = Attended(keys, keys, tokens, torch.tensor([[9999]]), recalled=6, before=32)
    usual = WindowPositions(8192, 2048, True, 512)
    marked = replace(attended, brought=torch.tensor([[[False, False, True, True, True, True]]]))
    distances = []
    for some in (attended, marked):
        (region,) = usual.regions(some)
        distances.append((region.query_positions[:, -1:] - region.key_positions)[0, 1:].tolist())
    assert distances == [[2047, 2047, 2047, 999, 199], [2047, 511, 511, 511, 199]]
    inside = replace(marked, queries=torch.tensor([[8000]]))
    assert torch.equal(usual.regions(inside)[0].key_positions, WindowPositions(8192, 2048, True).regions(inside)[0].key_positions)
