"""Certified recall: the proven choice is what the same rule gives in float64 over every key, and the bounds it rests on hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.attention.selectors import Ask, Bounds, RecallSelector, Selection
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.selectors.recall.certified import vote_bounds
from agent_memory.attention.selectors.recall.votes import Votes
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import operations

BLOCK, SINK, DIM, HEADS = 32, 32, 32, 2
RULE = RecallRule(blocks=3, scan="certified")
RULES = [RULE, replace(RULE, echo=0.0), replace(RULE, vote="max"), replace(RULE, scope="kv_head"), replace(RULE, pool=False)]


class Shelf:
    """True keys ``[Hk, blocks, 32, d]``, some of them damaged, and how many were read."""

    def __init__(self, keys: torch.Tensor, damaged: tuple[int, ...] = ()) -> None:
        self.keys, self.damaged, self.read = keys.transpose(0, 1), damaged, 0

    def __call__(self, blocks: torch.Tensor, head: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += len(blocks)
        keys = self.keys[blocks] if head is None else self.keys[blocks, head : head + 1]
        return keys, torch.tensor([number not in self.damaged for number in blocks.tolist()], dtype=torch.bool)


def layer_of(keys: torch.Tensor, damaged: tuple[int, ...] = ()) -> tuple[LayerKV, Shelf]:
    """A layer holding ``keys [Hk, tokens, d]``."""
    layer, by_block = object.__new__(LayerKV), keys.unflatten(1, (-1, BLOCK))
    shelf = Shelf(by_block, damaged)
    layer.summary, layer.clusters, layer.every_key, layer.read_keys = LayerSummary(HEADS, DIM), None, None, shelf
    layer.summary.append(by_block.transpose(0, 1))
    return layer, shelf


def choose(rule: RecallRule, queries: torch.Tensor, layer: LayerKV, blocks: int, asking: int | None = None) -> Selection:
    bounds = Bounds(SINK, torch.full((queries.shape[0],), blocks * BLOCK), np.zeros(blocks, dtype=bool), BLOCK)
    ask = Ask(queries, queries.shape[2] if asking is None else asking, bounds)
    return RecallSelector(rule, operations()).select([ask], DIM**-0.5, layer)[0]


def by_float64(rule: RecallRule, queries: torch.Tensor, keys: torch.Tensor, asking: int) -> list[set[int]]:
    """Blocks the rule chooses for one group, by head, from scores in float64."""
    rows = queries[0].reshape(HEADS, -1, *queries.shape[2:])
    rows = rows.mean(1) if rule.pool else rows[:, :, -asking:].flatten(1, 2)
    rows = rows if rule.echoes else rows[:, -asking:] if rule.pool else rows
    scores = torch.einsum("hmd,hnd->hmn", rows.double(), keys.double()) * DIM**-0.5
    best = scores.unflatten(2, (-1, BLOCK)).amax(-1).float()
    candidates = torch.ones((1, 1, best.shape[-1]), dtype=torch.bool)
    candidates[..., 0] = False
    votes = Votes(rule, operations())
    chosen = votes.best(votes.cast(best[None], asking, candidates))[0]
    return [set(row[row >= 0].tolist()) for row in chosen]


def blocks_of(chosen: Selection) -> list[set[int]]:
    return [set((row[row >= 0] // BLOCK).tolist()) for row in chosen.tokens[0]]


def keys_like(kind: str, seed: int, blocks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn((HEADS, blocks * BLOCK, DIM), generator=generator)
    if kind == "outliers":
        keys[..., 3] *= 40
    if kind == "alike":
        keys = keys * 0.01 + torch.randn((HEADS, 1, DIM), generator=generator) * 5
    if kind == "sharp":
        keys *= torch.where(torch.rand((HEADS, blocks * BLOCK, 1), generator=generator) < 0.01, 4.0, 1.0)
    return keys


@pytest.mark.parametrize("kind", ["round", "outliers", "alike", "sharp"])
@pytest.mark.parametrize("rule", RULES, ids=["default", "no echo", "raw", "each head", "each query head"])
def test_the_proven_choice_is_that_of_every_key(kind, rule):
    for seed in range(4):
        keys = keys_like(kind, seed, 60)
        layer, _ = layer_of(keys)
        for asking in (1, 16):
            queries = torch.randn((1, 4, 16, DIM), generator=torch.Generator().manual_seed(seed + 100)) * 2
            chosen = choose(rule, queries, layer, 60, asking)
            assert chosen.exact
            assert chosen.certified == "memory"
            assert blocks_of(chosen) == by_float64(rule, queries, keys, asking)


def test_few_true_keys_are_read_where_keys_differ_clearly():
    keys = keys_like("sharp", 7, 400)
    layer, shelf = layer_of(keys)
    queries = keys[:, [5000, 5001, 5002]].repeat_interleave(2, 0)[None] * 1.5
    chosen = choose(replace(RULE, echo=0.0), queries, layer, 400, asking=1)
    assert 0 < shelf.read < 40
    assert chosen.keys_rescored == shelf.read * BLOCK
    assert 5002 // BLOCK in blocks_of(chosen)[0]


def test_nothing_is_read_twice_and_everything_at_most():
    layer, shelf = layer_of(torch.ones(HEADS, 40 * BLOCK, DIM))  # all alike: only everything proves anything
    chosen = choose(RULE, torch.ones(1, 4, 16, DIM), layer, 40)
    assert chosen.exact
    assert shelf.read <= 40
    assert blocks_of(chosen) == [{1, 2, 3}]  # equal votes go to the lower Block


def test_a_block_found_damaged_while_it_is_read_is_not_chosen():
    keys = keys_like("sharp", 3, 60)
    keys[:, 1000] = keys[:, 640] * 0.9999  # so that the first two cannot be told apart in 8 bits
    queries = keys[:, [640]].repeat_interleave(2, 0)[None] * 2.0
    rule = replace(RULE, echo=0.0, blocks=1)
    layer, shelf = layer_of(keys)
    assert blocks_of(choose(rule, queries, layer, 60)) == [{20}]
    assert shelf.read
    assert blocks_of(choose(rule, queries, layer_of(keys, damaged=(20,))[0], 60)) == [{31}]


FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e-6, 1.0, 1e3]), outlier=st.sampled_from([0.0, 50.0, 1e4]), offset=FLOATS)
def test_no_key_scores_outside_its_bound(seed: int, spread: float, outlier: float, offset: float):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn((4, 1, BLOCK, 16), generator=generator) * spread
    keys[..., 3] += outlier
    keys += offset * torch.randn(16, generator=generator)
    queries = torch.randn((1, 5, 16), generator=generator) * spread
    queries[0, 0] = 0.0
    queries[0, 1] = keys[2, 0, 7]
    summary = LayerSummary(1, 16)
    summary.append(keys)
    estimate, error = operations().block_bounds(queries, [summary.bounded(0, 4)], 0.25)
    true = torch.einsum("md,nbd->mnb", queries[0].double(), (keys[:, 0] - summary.centre[0]).double()).amax(-1) * 0.25
    assert bool(((estimate[0] - true).abs() <= error[0]).all())


def test_votes_stay_between_the_bounds_of_votes():
    generator = torch.Generator().manual_seed(0)
    candidates = torch.rand(50, generator=generator) < 0.8
    for rule in RULES:
        votes = Votes(rule, operations())
        scores = torch.randn((HEADS, 16, 50), generator=generator) * 3
        error = torch.rand((HEADS, 16, 50), generator=generator)
        low, high = vote_bounds(votes, scores - error, scores + error, 4, candidates)
        for _ in range(50):
            moved = scores + error * (2 * torch.rand(error.shape, generator=generator) - 1)
            cast = votes.cast(moved[None], 4, candidates[None, None])
            assert bool((low <= cast + 1e-4).all())
            assert bool((cast <= high + 1e-4).all())
