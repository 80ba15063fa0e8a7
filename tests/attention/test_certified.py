"""Certified recall: the proven choice is what the same rule gives in float64 over every key, and the bounds it rests on hold."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.attention.selectors import Ask, Bounds, RecallSelector, Selection
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.attention.selectors.recall.certified import Certified, score_bounds, vote_bounds
from agent_memory.attention.selectors.recall.votes import Votes
from agent_memory.memory.layer_kv import LayerKV
from agent_memory.memory.session_kv import SessionKV
from agent_memory.memory.summary import LayerSummary
from agent_memory_kernels import Operations, operations

BLOCK, SINK, DIM, HEADS = 32, 32, 32, 2
RULE = RecallRule(blocks=3, scan="certified")
RULES = [RULE, replace(RULE, echo=0.0), replace(RULE, vote="max"), replace(RULE, scope="kv_head"), replace(RULE, pool=False)]


class Shelf:
    """True keys ``[Hk, blocks, 32, d]``, some of them damaged, and how many were read."""

    def __init__(self, keys: torch.Tensor, damaged: tuple[int, ...] = ()) -> None:
        self.keys, self.damaged, self.read, self.seen = keys.transpose(0, 1), damaged, 0, list[tuple[int | None, int]]()

    def __call__(self, blocks: torch.Tensor, head: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += len(blocks)
        self.seen += [(head, number) for number in blocks.tolist()]
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


RAW = replace(RULE, vote="max", pool=False, scope="kv_head", blocks=6)


@pytest.mark.parametrize("rule", [RAW, replace(RAW, scope="layer"), replace(RAW, pool=True)], ids=["each head", "layer", "pooled"])
@pytest.mark.parametrize("kind", ["round", "outliers", "alike", "sharp"])
def test_raw_votes_read_only_what_lies_at_the_border(kind, rule):
    for seed in range(6):
        keys = keys_like(kind, seed, 90)
        layer, shelf = layer_of(keys)
        queries = torch.randn((1, 4, 16, DIM), generator=torch.Generator().manual_seed(seed + 50)) * 2
        chosen = choose(rule, queries, layer, 90, asking=2)
        assert blocks_of(chosen) == by_float64(rule, queries, keys, 2)
        heads = HEADS if rule.scope == "layer" else 1
        assert chosen.keys_rescored == shelf.read * BLOCK
        assert chosen.keys_scored == HEADS * 90 * BLOCK + shelf.read * BLOCK * heads
        assert len(set(shelf.seen)) == shelf.read <= 89 * (HEADS // heads)


class Off:
    """Operations whose estimates are as far off as they say they can be."""

    def __init__(self, estimates: torch.Tensor, errors: torch.Tensor) -> None:
        self._bounds = estimates, errors

    def __getattr__(self, name: str) -> object:
        return getattr(operations(), name)

    def block_bounds(self, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self._bounds[0].clone(), self._bounds[1].clone()


def chosen_by_estimates(
    rule: RecallRule, keys: torch.Tensor, rows: torch.Tensor, off: torch.Tensor, errors: torch.Tensor, damaged: tuple[int, ...] = ()
):
    """Choice from true scores ``off`` by so much, true votes fp32 ``[S, n]``, what they choose, and which Blocks were read."""
    layer, shelf = layer_of(keys, damaged)
    blocks = keys.shape[1] // BLOCK
    true = (rows @ keys.transpose(1, 2)).unflatten(2, (blocks, BLOCK)).amax(-1)
    votes = Votes(rule, cast(Operations, Off(true + off, errors)))
    candidates = torch.arange(blocks) > 0
    assert layer.summary is not None
    choice = Certified(votes, layer.summary, shelf, 1.0).choose(rows[None], 1, candidates[None])
    given_ = votes.cast(true[None].clone(), 1, candidates[None, None])
    return choice, given_[0], votes.best(given_), shelf


@settings(max_examples=200, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), widest=st.sampled_from([0, 1, 4, 30]), rule=st.sampled_from([RAW, replace(RAW, scope="layer")]))
def test_a_raw_choice_is_right_wherever_estimates_lie_within_their_bounds(seed: int, widest: int, rule: RecallRule):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-2, 3, (HEADS, 40 * BLOCK, DIM), generator=generator).float()  # whole numbers: many votes and bounds are equal
    keys[:, :BLOCK] = 0.0
    rows = torch.randint(-1, 2, (HEADS, 3, DIM), generator=generator).float()
    errors = torch.randint(0, widest + 1, (HEADS, 3, 40), generator=generator).float()
    off = errors * torch.randint(-1, 2, errors.shape, generator=generator)
    choice, _, expected, shelf = chosen_by_estimates(rule, keys, rows, off, errors)
    assert choice.proven
    assert choice.blocks.tolist() == expected.tolist()
    assert len(set(shelf.seen)) == shelf.read == choice.rescored


def test_what_bounds_leave_open_is_read_from_the_border_on():
    generator = torch.Generator().manual_seed(9)
    keys, rows = keys_like("round", 9, 300), torch.randn((HEADS, 3, DIM), generator=generator)
    keys[:, :BLOCK] = 0.0
    wide = 1.5 * torch.ones(HEADS, 3, 300)
    choice, votes, _, shelf = chosen_by_estimates(replace(RAW, blocks=60), keys, rows, 0.0 * wide, wide)
    last = votes.topk(60).values[:, -1]
    assert shelf.read
    assert all(abs(float(votes[head or 0, block] - last[head or 0])) < 1.1 * 1.5 for head, block in shelf.seen)


def test_those_after_damaged_blocks_are_read_until_enough_are_sound():
    keys, rows = torch.zeros(HEADS, 40 * BLOCK, DIM), torch.eye(1, DIM).expand(HEADS, 1, DIM)
    keys[..., 0] = torch.arange(40).repeat_interleave(BLOCK)  # each Block has its number as score
    wide = 1.5 * torch.ones(HEADS, 1, 40)
    damaged = (38, 37, 36, 35, 34, 33, 32, 31, 29)  # each that is found so opens the border to the next
    choice, *_ = chosen_by_estimates(replace(RAW, blocks=3), keys, rows, 0.0 * wide, wide, damaged)
    assert choice.blocks.tolist() == [[[28, 30, 39]] * HEADS]
    clear, *_ = chosen_by_estimates(replace(RAW, blocks=3), keys, rows, 0.0 * wide, 0.3 * wide)
    assert (clear.blocks.tolist(), clear.rescored) == ([[[37, 38, 39]] * HEADS], 0)  # all apart: there is nothing to read


def test_true_keys_are_read_in_parts_where_few_fit_the_device():
    kv: Any = object.__new__(SessionKV)
    pool = torch.randn(9, 2, HEADS, BLOCK, DIM)
    slots = np.array([4, 0, 8, -1, 2])  # the fourth is damaged
    reading = lambda layer, uids, *_: nullcontext(SimpleNamespace(pool=pool, slots=torch.from_numpy(slots[uids])))  # noqa: E731
    kv._names = SimpleNamespace(uids=np.arange(5), lost=np.zeros(5, dtype=bool))
    kv.source, kv.cache = None, SimpleNamespace(reading=reading)
    for most in (2, 5):
        kv.cache.max_read = lambda layer, most=most: most
        keys, sound = kv.true_keys(0, torch.arange(5), 1)
        assert sound.tolist() == (slots >= 0).tolist() == (~kv.lost).tolist()
        assert torch.equal(keys[sound], pool[slots[slots >= 0], 0, 1:2])


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


@pytest.mark.parametrize("dim", [256, 448])
def test_no_score_is_outside_its_bound_however_far_all_keys_are_from_zero(dim):
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randn(dim, generator=generator).sign()
        keys = torch.zeros(3, 1, BLOCK, dim)
        keys[0] = sign * (float(torch.rand(1, generator=generator)) * 100 + 1)  # the centre; the other Blocks lie at zero
        # As far from what two rows of integers give as can be, so that nothing of the bound is left for what is added.
        queries = (torch.randint(60, 127, (4, dim), generator=generator) + (0.499 / 254) * (1 if seed % 2 else -1)) * sign
        queries[:, 0] = 127.0 * sign[0]
        summary = LayerSummary(1, dim)
        summary.append(keys)
        estimate, error = score_bounds(operations(), queries[None], summary, 3, 1.0)
        true = torch.einsum("md,nbd->mnb", queries.double(), keys[:, 0].double()).amax(-1)
        assert bool(((estimate[0] - true).abs() <= error[0]).all())


@pytest.mark.parametrize("size", [BLOCK, 24, 7])
@pytest.mark.parametrize("blocks", [(1,), (3, 5), (130, 7), (1100,)])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 16, 17, 40])
def test_estimates_are_the_best_products_on_the_grid_whatever_is_multiplied_together(rows: int, blocks: tuple[int, ...], size: int):
    generator = torch.Generator().manual_seed(rows)
    queries = torch.randn((2, rows, 16), generator=generator)
    parts = [
        [(torch.randint(-127, 128, (n, size, 16), generator=generator).to(torch.int8), torch.rand(n), torch.rand(n)) for n in blocks]
    ] * 2
    estimate, error = operations().block_bounds(queries, parts, 0.5)
    keys, steps, radius = (torch.cat([part[i] for part in parts[0]]) for i in range(3))
    true = torch.einsum("smd,nbd->smnb", queries.double(), keys.double() * steps[:, None, None]).amax(-1) * 0.5
    assert bool(((estimate - true).abs() <= error - 0.499 * queries.norm(dim=-1)[..., None] * radius).all())
    assert bool((error <= 0.51 * queries.norm(dim=-1)[..., None] * radius + 0.1 * steps).all())


def test_of_a_block_whose_sketch_is_lost_nothing_is_claimed():
    (summary := LayerSummary(1, DIM)).append(torch.ones(2, 1, BLOCK, DIM))
    summary.load(summary.blank(1))
    _, error = score_bounds(operations(), torch.zeros(1, 2, DIM), summary, 3, 1.0)
    assert bool((error[..., 2] == float("inf")).all())


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
