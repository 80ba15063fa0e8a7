"""The best of many by kernels, against sorting."""

from __future__ import annotations

import pytest
import torch

from agent_memory_kernels import (
    Codes,
    PagedOperations,
    Pages,
    Workspace,
    certified_blocks,
    most_named,
    paged,
    top_tokens,
)
from agent_memory_kernels.reference.paged_attention import quantise

pytestmark = [pytest.mark.usefixtures("holes"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF = float("inf")
TORCH = paged("torch")


def ints(device: str, *values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def best(scores: list[float], count: int, start: int = 0, stop: int | None = None) -> list[int]:
    """Indices of the best, by sorting; equal ones by index, never -inf or NaN."""
    allowed = [i for i in range(start, len(scores) if stop is None else min(stop, len(scores))) if scores[i] > -INF]
    chosen = sorted(sorted(allowed, key=lambda i: (-scores[i], i))[:count])
    return chosen + [-1] * (count - len(chosen))


def check(kernels: PagedOperations, scores: torch.Tensor, count: int) -> None:
    flat = scores.flatten(0, -2)
    got = kernels.select(scores, count).flatten(0, -2)
    assert got.dtype == torch.int32
    for row, chosen in zip(flat.tolist(), got.tolist(), strict=True):
        assert chosen == best(row, count)
    assert torch.equal(TORCH.select(scores, count).flatten(0, -2), got)


@pytest.mark.parametrize("count", [1, 7, 64, 600, 800])
@pytest.mark.parametrize("levels", [2, 40, 10**6])
def test_select_is_a_stable_sort(kernels: PagedOperations, device: str, count: int, levels: int) -> None:
    g = torch.Generator().manual_seed(count)
    scores = (torch.randint(0, levels, (3, 2, 700), generator=g) - levels // 2).float()
    scores[torch.rand(scores.shape, generator=g) < 0.1] = -INF
    scores[0, 1] = -INF
    scores[1, 0, 5:] = float("nan")
    scores[1, 1, 3], scores[1, 1, 9], scores[1, 1, 11] = INF, INF, float("nan")
    check(kernels, scores.to(device), count)


def test_zeros_of_either_sign_are_equal_and_small_numbers_are_told_apart(kernels: PagedOperations, device: str) -> None:
    tiny = [0.0, -0.0, 1e-45, -1e-45, -0.0, 0.0, 1.1754944e-38, 3.4e38, -3.4e38, -1.0000001, -1.0]
    for count in range(1, 12):
        check(kernels, torch.tensor([tiny], device=device), count)


@pytest.mark.parametrize("n", [1, 2, 513, 9000, 20000])
def test_select_of_any_length(kernels: PagedOperations, device: str, n: int) -> None:
    scores = torch.randint(0, 50, (2, n), generator=torch.Generator().manual_seed(n)).float().to(device)
    check(kernels, scores, 33)


def test_select_within_limits_and_by_name(kernels: PagedOperations, device: str) -> None:
    scores = torch.randn(3, 2, 600, generator=torch.Generator().manual_seed(1)).to(device)
    starts, stops = ints(device, 0, 5, 300), ints(device, 600, 0, 310)
    got = kernels.select(scores, 12, starts=starts, lengths=stops)
    for row in range(3):
        for head in range(2):
            assert got[row, head].tolist() == best(scores[row, head].tolist(), 12, int(starts[row]), int(stops[row]))
    names = torch.arange(600, dtype=torch.int32, device=device).expand(3, 2, 600).contiguous() * 3 + 1
    named = kernels.select(scores, 12, starts=starts, lengths=stops, names=names)
    assert torch.equal(named, torch.where(got < 0, -1, got * 3 + 1))
    assert torch.equal(named, TORCH.select(scores, 12, starts=starts, lengths=stops, names=names))
    named = kernels.select(scores, 12, starts=starts, lengths=stops, names=names[..., ::4].contiguous(), size=4)
    expected = torch.where(got < 0, -1, (got // 4 * 12 + 1) * 4 + got % 4)
    assert torch.equal(named, expected)
    assert torch.equal(named, TORCH.select(scores, 12, starts=starts, lengths=stops, names=names[..., ::4].contiguous(), size=4))


def test_select_of_counts(kernels: PagedOperations, device: str) -> None:
    counts = torch.randint(-1, 4, (2, 900), generator=torch.Generator().manual_seed(2)).to(device, torch.int32)
    got = kernels.select(counts, 400)
    for row, chosen in zip(counts.tolist(), got.tolist(), strict=True):
        assert chosen == best([x if x > 0 else -INF for x in row], 400)
    assert torch.equal(got, TORCH.select(counts, 400))


@pytest.mark.parametrize("wide", [0.0, 0.3, 3.0, INF])
@pytest.mark.parametrize("capacity", [5, 40, 700])
def test_certify_lists_all_that_can_be_best(kernels: PagedOperations, device: str, wide: float, capacity: int) -> None:
    g = torch.Generator().manual_seed(capacity)
    middle = torch.randint(0, 60, (3, 2, 600), generator=g).float().to(device)
    off = (torch.rand(middle.shape, generator=g) * min(wide, 9)).to(device)
    if wide == INF:
        off[:, :, ::50] = INF
    lower, upper = middle - off, middle + off
    starts, stops = ints(device, 0, 9, 0), ints(device, 600, 300, 3)
    listed, found = kernels.certify(lower, upper, 5, capacity, starts=starts, lengths=stops)
    for row in range(3):
        for head in range(2):
            inside = range(int(starts[row]), int(stops[row]))
            low, high = lower[row, head].tolist(), upper[row, head].tolist()
            levels = sorted((low[i] for i in inside), reverse=True)
            level = levels[4] if len(levels) >= 5 else -INF
            can = [i for i in inside if high[i] >= level]
            assert int(found[row, head]) == len(can)
            kept = sorted(sorted(can, key=lambda i: (-high[i], i))[:capacity])
            assert listed[row, head].tolist() == kept + [-1] * (capacity - len(kept))
    for got, expected in zip((listed, found), TORCH.certify(lower, upper, 5, capacity, starts=starts, lengths=stops), strict=True):
        assert torch.equal(got, expected)


def whole_numbers(device: str, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small integers: products are exact in any order, and many are equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_certified_blocks_are_the_best_ones(kernels: PagedOperations, device: str, backend: str, dtype: torch.dtype) -> None:
    operations = kernels if backend == "triton" else TORCH
    queries, keys = whole_numbers(device, 2, 2, 4, 64, seed=1, dtype=dtype), whole_numbers(device, 40, 2, 16, 64, seed=2, dtype=dtype)
    keys[7, 0, 3, 5] = float("nan")
    pages = Pages(torch.stack([torch.randperm(40), torch.arange(40)]).to(device, torch.int32), ints(device, 40, 29))
    stored = keys, Codes(*quantise(keys))
    workspace = Workspace()
    got, found = certified_blocks(operations, queries, stored, pages, 6, capacity=40, starts=ints(device, 0, 3), workspace=workspace)
    assert sum(workspace.launches.values()) == (4 if backend == "triton" else 0)
    assert bool(found.proven.all()) and bool((found.rescored >= 6).all()) and found.rescored.shape == (2, 2)
    products = torch.einsum("rsmd,rnsbd->rsmnb", queries.double(), keys.double()[pages.table.long()])
    maxima = torch.where(products.isnan(), -INF, products).amax((2, 4))
    for row in range(2):
        for head in range(2):
            assert got[row, head].tolist() == best(maxima[row, head].tolist(), 6, 3 * row, int(pages.counts[row]))


def test_certified_blocks_say_when_they_are_not_proven(kernels: PagedOperations, device: str) -> None:
    queries, keys = torch.randn(2, 1, 4, 64).to(device), torch.randn(40, 1, 16, 64).to(device)
    keys[:20] = keys[0]  # equal ones can all be best
    pages = Pages(torch.arange(40, dtype=torch.int32, device=device).expand(2, 40).contiguous(), ints(device, 40, 2))
    queries[0, 0, :] = keys[0, 0, 0]
    for operations in (kernels, TORCH):
        _, found = certified_blocks(operations, queries, (keys, Codes(*quantise(keys))), pages, 4, capacity=8)
        assert found.proven.flatten().tolist() == [False, True]
        assert found.rescored.flatten().tolist() == [8, 2]


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("count", [1, 5, 70])
def test_top_tokens_are_the_best_of_all(kernels: PagedOperations, device: str, each: bool, count: int) -> None:
    queries, keys = whole_numbers(device, 2, 2, 3, 32, seed=3), whole_numbers(device, 12, 2, 16, 32, seed=4)
    pages = Pages(torch.stack([torch.randperm(12), torch.arange(12)]).to(device, torch.int32), ints(device, 12, 3), ints(device, 185, 34))
    workspace = Workspace()
    got = top_tokens(kernels, queries, keys, pages, count, each=each, workspace=workspace)
    assert sum(workspace.launches.values()) == 4
    assert torch.equal(got, top_tokens(TORCH, queries, keys, pages, count, each=each))
    products = torch.einsum("rsmd,rnsbd->rsmnb", queries.double(), keys.double()[pages.table.long()]).flatten(3)
    for row in range(2):
        scores = products[row, :, :, : int(pages.tokens[row])]  # type: ignore[index]
        for head in range(2):
            if not each:
                assert got[row, head].tolist() == best(scores[head].amax(0).tolist(), count)
            for at in range(3 if each else 0):
                assert got[row, head, at].tolist() == best(scores[head, at].tolist(), count)


def test_most_named_is_the_vote_of_reattention(kernels: PagedOperations, device: str) -> None:
    """Each (query head, query) names its best tokens; a row keeps those that most name, the lower of equals."""
    queries, keys = whole_numbers(device, 2, 2, 4, 32, seed=5), whole_numbers(device, 10, 2, 16, 32, seed=6)
    pages = Pages(torch.arange(10, dtype=torch.int32, device=device).expand(2, 10).contiguous(), ints(device, 10, 6))
    for operations in (kernels, TORCH):
        named = top_tokens(operations, queries, keys, pages, 4, each=True)
        kept = most_named(operations, named, 160, 6)
        for row in range(2):
            scores = torch.einsum("smd,nsbd->smnb", queries[row].double(), keys.double())[:, :, : int(pages.counts[row])].flatten(2)
            counts = [0] * 160
            for line in scores.flatten(0, 1).tolist():
                for token in best(line, 4):
                    counts[token] += 1
            assert kept[row].tolist() == best([x if x else -INF for x in counts], 6)
        assert torch.equal(operations.tally(named, 160).sum(1).cpu(), torch.tensor([32, 32]))
