"""Clusters of like keys: who is in which, where their centres are, and that both depend on the keys alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.memory.cluster_tables import MEMBERS
from agent_memory.memory.clusters import STEP_TOKENS, ClusterPlan, Coded, FetchOfHead, KeyClusters, LayerClusters
from agent_memory.memory.halving import halve

DIM = 16

GRID = 0.125
"""Keys are multiples of this."""


def keys_of(seed: int, tokens: int, heads: int = 2, kinds: int = 40) -> torch.Tensor:
    """Keys ``[heads, tokens, DIM]`` around some centres, as those of like tokens are."""
    torch.manual_seed(seed)
    centres = torch.randn(kinds, DIM) * 3
    return on_grid(centres[torch.randint(kinds, (heads, tokens))] + torch.randn(heads, tokens, DIM))


def on_grid(keys: torch.Tensor) -> torch.Tensor:
    return (keys / GRID).round().clamp(-127, 127) * GRID


def coded(keys: torch.Tensor) -> FetchOfHead:
    """Gives keys ``[Hk, n, DIM]`` that are on the grid in 8 bits."""
    return lambda head, tokens: ((keys[head, tokens] / GRID).to(torch.int8), torch.full((len(tokens),), GRID))


def covered(keys: torch.Tensor, stops: list[int], start: int = STEP_TOKENS, members: int = MEMBERS) -> LayerClusters:
    layer = LayerClusters(keys.shape[0], DIM, ClusterPlan(start, members=members, holds_keys=True))
    for stop in stops:
        layer.cover(stop, coded(keys))
    return layer


def sound(head: KeyClusters, keys: torch.Tensor) -> None:
    """Every token is in one cluster, no cluster is too large, and what is said of a cluster is true of its members."""
    members = head.members
    there = members >= 0
    assert sorted(members[there].tolist()) == list(range(head.tokens))
    assert (there.int().diff(dim=1) <= 0).all()  # padded at the end
    sizes = there.sum(1)
    assert int(sizes.max()) <= head.room
    held = head.tables.codes[head.head].float() * head.tables.steps[head.head][..., None]
    assert torch.equal(held[: len(head)][there], keys[members[there].long()])
    for at in sizes.nonzero()[:, 0].tolist():
        own = keys[members[at][there[at]].long()].double()
        centre = own.mean(0)
        torch.testing.assert_close(head.centres[at].double(), centre, atol=1e-4, rtol=1e-4)
        variance = (own - centre).square().sum(1).mean()
        expected = (variance * 2 * torch.tensor(float(len(own))).log() / DIM).sqrt()
        torch.testing.assert_close(head.reach[at].double(), expected, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("members", [32, MEMBERS])
def test_clusters_hold_every_token_once_and_know_their_members(members: int):
    keys = keys_of(0, 3 * STEP_TOKENS)
    layer = covered(keys, [3 * STEP_TOKENS], members=members)
    assert layer.blocks == 3 * STEP_TOKENS // 32
    for number, head in enumerate(layer.heads):
        sound(head, keys[number])
        assert len(head) < 8 * head.tokens / members  # and they are not nearly empty


def test_keys_lie_with_the_clusters_that_are_taken_up_again():
    keys = keys_of(8, 3 * STEP_TOKENS)
    layer = covered(keys, [3 * STEP_TOKENS])
    again = covered(keys, [])
    again.load(layer.state(), 3 * STEP_TOKENS - 1, coded(keys))
    assert again.blocks == 0  # of more tokens than there are
    again.load(layer.state(), 3 * STEP_TOKENS, coded(keys))
    assert again.blocks == layer.blocks
    for number, head in enumerate(again.heads):
        sound(head, keys[number])


def test_there_are_none_before_the_start_and_only_whole_steps_after():
    keys = keys_of(1, 4 * STEP_TOKENS)
    start = 2 * STEP_TOKENS
    assert covered(keys, [start - 1], start).blocks == 0
    assert covered(keys, [start + STEP_TOKENS - 1], start).blocks == start // 32


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4 * STEP_TOKENS), max_size=6))
def test_how_tokens_arrived_makes_no_difference(stops: list[int]):
    keys = keys_of(2, 4 * STEP_TOKENS)
    whole, parts = covered(keys, [4 * STEP_TOKENS]), covered(keys, [*sorted(stops), 4 * STEP_TOKENS])
    for one, other in zip(whole.heads, parts.heads, strict=True):
        assert torch.equal(one.members, other.members)
        assert torch.equal(one.centres, other.centres)
        assert torch.equal(one.reach, other.reach)


def test_a_fork_and_what_it_came_from_go_their_own_ways():
    keys, others = keys_of(3, 4 * STEP_TOKENS), keys_of(4, 4 * STEP_TOKENS)
    layer = covered(keys, [3 * STEP_TOKENS])
    expected = [head.members.clone() for head in layer.heads]
    fork = layer.fork()
    assert fork.nbytes == 0
    mixed = torch.cat([keys[:, : 2 * STEP_TOKENS], others[:, 2 * STEP_TOKENS :]], 1)
    fork.truncate(2 * STEP_TOKENS + 5, coded(keys))
    assert fork.blocks == 2 * STEP_TOKENS // 32
    for number, head in enumerate(fork.heads):
        sound(head, mixed[number])
    fork.cover(4 * STEP_TOKENS, coded(mixed))
    for number, head in enumerate(fork.heads):
        sound(head, mixed[number])
    for head, members in zip(layer.heads, expected, strict=True):
        assert torch.equal(head.members, members)
    layer.cover(4 * STEP_TOKENS, coded(keys))
    for number, head in enumerate(layer.heads):
        sound(head, keys[number])


def test_broken_off_it_is_made_again():
    keys = keys_of(7, 4 * STEP_TOKENS)
    layer, calls = covered(keys, [2 * STEP_TOKENS]), iter(range(100))

    def fetch(head: int, tokens: torch.Tensor) -> Coded:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return coded(keys)(head, tokens)

    with pytest.raises(KeyboardInterrupt):
        layer.cover(4 * STEP_TOKENS, fetch)
    layer.cover(4 * STEP_TOKENS, coded(keys))
    again = covered(keys, [4 * STEP_TOKENS])
    assert all(torch.equal(a.members, b.members) for a, b in zip(layer.heads, again.heads, strict=True))


def test_cut_below_the_start_nothing_is_left():
    keys = keys_of(5, 3 * STEP_TOKENS)
    layer = covered(keys, [3 * STEP_TOKENS], 2 * STEP_TOKENS)
    layer.truncate(2 * STEP_TOKENS - 1, coded(keys))
    assert layer.blocks == 0
    again = covered(keys, [3 * STEP_TOKENS], 2 * STEP_TOKENS)
    layer.cover(3 * STEP_TOKENS, coded(keys))
    assert all(torch.equal(a.members, b.members) for a, b in zip(layer.heads, again.heads, strict=True))


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_keys_that_cannot_be_told_apart_are_halved_all_the_same(kinds: int):
    keys = on_grid(torch.randn(kinds, DIM)[torch.arange(2 * STEP_TOKENS) % kinds].repeat(1, 1, 1))
    layer = covered(keys, [STEP_TOKENS, 2 * STEP_TOKENS])
    assert sorted(layer.heads[0].members[layer.heads[0].members >= 0].tolist()) == list(range(2 * STEP_TOKENS))


def test_halving_separates_what_lies_apart():
    torch.manual_seed(6)
    keys = torch.cat([torch.randn(90, DIM) + 9, torch.randn(70, DIM) - 9])
    group, count = halve(keys, torch.zeros(160, dtype=torch.int64), 1, MEMBERS)
    assert count == 2
    assert group[:90].unique().numel() == group[90:].unique().numel() == 1
    assert group[0] != group[-1]
