"""Scores of Blocks by kernels, against their definition, a dense oracle, and the bounds they promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory_kernels import Codes, PagedOperations, Pages, Workspace, paged
from agent_memory_kernels.reference.paged_attention import quantise

pytestmark = [pytest.mark.usefixtures("holes"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF = float("inf")
TORCH = paged("torch")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}


def pool(device: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def table(device: str, rows: int, pages: int, blocks: int, counts: list[int], tokens: list[int] | None = None, seed: int = 7) -> Pages:
    g = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(pages, generator=g)[:blocks] for _ in range(rows)]).to(device, torch.int32)
    ints = [None if x is None else torch.tensor(x, dtype=torch.int32, device=device) for x in (counts, tokens)]
    assert ints[0] is not None
    return Pages(chosen, ints[0], ints[1])


def test_tokens_without_a_block_are_none(kernels: PagedOperations, device: str) -> None:
    queries, keys, pages = pool(device, 1, 1, 2, 32), pool(device, 4, 1, 16, 32, seed=1), table(device, 1, 4, 4, [2], [64])
    codes = Codes(*quantise(keys))
    for operations in (kernels, TORCH):
        for scores in (operations.score(queries, keys, pages), *operations.score_int8(queries, codes, pages)):
            assert bool((scores[0, 0, :2] > -INF).all() & (scores[0, 0, 2:] == -INF).all())


def dense_scores(queries: torch.Tensor, keys: torch.Tensor, pages: Pages) -> torch.Tensor:
    """fp64 ``[R, S, m, N, B]`` one product at a time; ``-inf`` where there is none."""
    rows, heads, m, _ = queries.shape
    size, capacity = keys.shape[2], pages.table.shape[1]
    out = torch.full((rows, heads, m, capacity, size), -INF, dtype=torch.float64)
    q, k = queries.double().cpu(), keys.double().cpu()
    for row in range(rows):
        limit = int(pages.counts[row]) * size if pages.tokens is None else int(pages.tokens[row])
        for block in range(min(int(pages.counts[row]), capacity)):
            page = int(pages.table[row, block])
            for offset in range(size):
                if page >= 0 and block * size + offset < limit:
                    out[row, :, :, block, offset] = torch.einsum("smd,sd->sm", q[row], k[page, :, offset])
    return out


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "m", "size"), [(32, 1, 32), (64, 4, 32), (80, 16, 32), (96, 5, 16), (128, 7, 32), (256, 2, 32), (64, 70, 32), (128, 3, 1)]
)
def test_score(kernels: PagedOperations, device: str, dim: int, m: int, size: int, dtype: torch.dtype, each: bool) -> None:
    queries, keys = pool(device, 3, 2, m, dim, dtype=dtype), pool(device, 9, 2, size, dim, dtype=dtype, seed=1)
    pages = table(device, 3, 9, 7, [7, 1, 0], [7 * size - size // 2, size, 0] if size > 1 else None)
    pages.table[0, 3] = -1
    got = kernels.score(queries, keys, pages, each=each)
    expected = dense_scores(queries, keys, pages).amax(-1)
    expected = expected if each else expected.amax(2)
    assert torch.allclose(got.double().cpu(), expected, atol=TOLERANCE[dtype] * 5, rtol=TOLERANCE[dtype])
    assert torch.allclose(got, TORCH.score(queries, keys, pages, each=each), atol=TOLERANCE[dtype] * 5, rtol=TOLERANCE[dtype])


def test_score_of_many_rows_is_cut_and_joined(kernels: PagedOperations, device: str) -> None:
    queries, keys, pages = pool(device, 1, 1, 300, 32), pool(device, 3, 1, 16, 32, seed=1), table(device, 1, 3, 3, [3])
    for each in (False, True):
        expected = TORCH.score(queries, keys, pages, each=each)
        assert torch.allclose(kernels.score(queries, keys, pages, each=each), expected, atol=1e-4)


def test_scores_that_are_not_numbers_count_for_nothing(kernels: PagedOperations, device: str) -> None:
    queries, keys = pool(device, 1, 1, 2, 32), pool(device, 4, 1, 16, 32, seed=1)
    keys[0, 0, 3], keys[1, 0, :] = float("nan"), float("nan")
    keys[2, 0, 5, 0] = INF
    queries[..., 0] = queries[..., 0].abs()
    pages = Pages(torch.tensor([[0, 1, 2, 3]], dtype=torch.int32, device=device), torch.tensor([4], dtype=torch.int32, device=device))
    got = kernels.score(queries, keys, pages)[0, 0]
    assert got[0].isfinite() and got[1] == -INF and got[2] == INF and got[3].isfinite()
    assert torch.allclose(got, TORCH.score(queries, keys, pages)[0, 0], atol=1e-4)


def test_a_long_table_is_scanned_to_its_end_and_filled_beyond(kernels: PagedOperations, device: str) -> None:
    queries, keys = pool(device, 1, 1, 2, 32), pool(device, 3, 1, 16, 32, seed=1)
    for count, capacity in ((40, 41), (3, 70), (70, 70)):
        pages = Pages(
            (torch.arange(capacity, device=device) % 3).to(torch.int32)[None], torch.tensor([count], dtype=torch.int32, device=device)
        )
        assert torch.allclose(kernels.score(queries, keys, pages), TORCH.score(queries, keys, pages), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("dim", "m", "by_token"), [(64, 3, False), (80, 20, False), (128, 1, True), (96, 40, True)])
def test_rescore_of_lists_is_score(kernels: PagedOperations, device: str, dim: int, m: int, by_token: bool, dtype: torch.dtype) -> None:
    queries, keys = pool(device, 2, 2, m, dim, dtype=dtype), pool(device, 9, 2, 32, dim, dtype=dtype, seed=1)
    pages = table(device, 2, 9, 7, [7, 4], [7 * 32 - 9, 999])
    listed = torch.tensor([[0, 2, 6, 5, -1], [3, 1, -1, -1, 6]], dtype=torch.int32, device=device)[:, None].expand(2, 2, 5)
    got = kernels.rescore(queries, keys, pages, listed, by_token=by_token)
    full = dense_scores(queries, keys, pages).amax(2)
    expected = torch.gather(full, 2, listed.cpu().long().clamp(min=0)[..., None].expand(-1, -1, -1, 32))
    expected = expected.masked_fill((listed.cpu() < 0)[..., None], -INF)
    expected = expected.flatten(2) if by_token else expected.amax(-1)
    assert torch.allclose(got.double().cpu(), expected, atol=1e-3 if dtype == torch.float16 else 1e-4)
    assert torch.allclose(got, TORCH.rescore(queries, keys, pages, listed, by_token=by_token), atol=1e-3)


def test_rescore_of_a_list_for_each_row(kernels: PagedOperations, device: str) -> None:
    queries, keys, pages = pool(device, 2, 2, 3, 64), pool(device, 9, 2, 16, 64, seed=1), table(device, 2, 9, 7, [7, 4])
    listed = torch.randint(-1, 7, (2, 2, 3, 9), generator=torch.Generator().manual_seed(3)).to(device, torch.int32)
    got = kernels.rescore(queries, keys, pages, listed, by_token=True)
    assert got.shape == (2, 2, 3, 9 * 16)
    assert torch.allclose(got, TORCH.rescore(queries, keys, pages, listed, by_token=True), atol=1e-4)
    each = dense_scores(queries, keys, pages)[1, 1, 2]
    for at, block in enumerate(listed[1, 1, 2].tolist()):
        part = got[1, 1, 2, at * 16 : (at + 1) * 16].double().cpu()
        assert torch.allclose(part, each[block] if block >= 0 else torch.full_like(part, -INF), atol=1e-4)


def adversarial(seed: int, dim: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries ``[1, 1, 3, d]`` and keys ``[8, 1, 16, d]`` of very different sizes, with outlier channels, zeros and what is no number."""
    g = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(1, 1, 3, dim, generator=g), torch.randn(8, 1, 16, dim, generator=g)
    keys[0, :, :, 3] *= 300
    keys[1] *= 10.0**-spread
    keys[2] *= 10.0**spread
    keys[3, :, ::2] = 0
    keys[4] *= 10 ** (torch.rand(1, 16, 1, generator=g) * spread)
    keys[5, 0, 4, 1], keys[5, 0, 5, 2], keys[5, 0, 6, 3] = float("nan"), INF, -INF
    queries[0, 0, 1] *= 10.0 ** (spread * float(torch.rand(1, generator=g)) - spread / 2)
    queries[0, 0, 2, dim // 2 :] *= 10.0**-spread
    return queries, keys


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), dim=st.sampled_from([32, 80, 128]), spread=st.sampled_from([1.0, 6.0, 18.0, 30.0, 37.0]))
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_bounds_hold_whatever_the_keys(kernels: PagedOperations, device: str, backend: str, seed: int, dim: int, spread: float) -> None:
    queries, keys = (x.to(device) for x in adversarial(seed, dim, spread))
    operations = kernels if backend == "triton" else TORCH
    pages = Pages(torch.arange(8, dtype=torch.int32, device=device)[None], torch.tensor([8], dtype=torch.int32, device=device))
    lower, upper = operations.score_int8(queries, Codes(*quantise(keys)), pages)
    forward = torch.zeros(8, 3, 16, device=device)
    backward = torch.zeros(8, 3, 16, device=device)
    for at in range(dim):  # one product after the other, from both ends
        forward += queries[0, 0, None, :, None, at] * keys[:, 0, None, :, at]
        backward += queries[0, 0, None, :, None, dim - 1 - at] * keys[:, 0, None, :, dim - 1 - at]
    for true in (forward, backward, TORCH.score(queries, keys, pages, each=True)[0, 0].T[..., None]):
        best = torch.where(true.isnan(), -INF, true).amax((1, 2))
        assert bool((lower[0, 0] <= best).all()) and bool((best <= upper[0, 0]).all())
    assert not bool(lower.isnan().any() | upper.isnan().any())
    if spread <= 6:
        assert bool((upper - lower)[0, 0, :5].isfinite().all())


def test_bounds_are_tight_and_those_of_the_definition(kernels: PagedOperations, device: str) -> None:
    for dim, m, dtype in ((128, 4, torch.float16), (80, 40, torch.float32), (256, 17, torch.float32)):
        queries, keys = pool(device, 2, 2, m, dim, dtype=dtype), pool(device, 9, 2, 32, dim, dtype=dtype, seed=1)
        pages = table(device, 2, 9, 7, [7, 3], [7 * 32 - 9, 70])
        codes = Codes(*quantise(keys))
        lower, upper = kernels.score_int8(queries, codes, pages)
        for got, expected in zip((lower, upper), TORCH.score_int8(queries, codes, pages), strict=True):
            assert torch.allclose(got, expected, atol=1e-3, rtol=1e-5)
        there = lower > -INF
        gap = (upper - lower)[there].amax()
        assert gap < 2.5 * 0.0085 * dim, gap  # twice |q| |k| / 254 / sqrt(3) * 3, and little more
        assert bool((lower[1, :, 3:] == -INF).all() & (upper[1, :, 3:] == -INF).all())


def unread(keys: torch.Tensor) -> Codes:
    """8-bit keys whose residuals nobody may read."""
    codes, scale, residual = quantise(keys)
    return Codes(codes, scale, torch.full_like(residual, float("nan")))


def dense_code_scores(queries: torch.Tensor, codes: Codes, pages: Pages) -> torch.Tensor:
    """fp64 ``[R, S, m, N]`` of what ``score_codes`` promises."""
    products = dense_scores(queries, codes.codes.double() * codes.scale.double()[..., None], pages)
    return products.masked_fill(products.isnan(), -INF).amax(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "m", "size"),
    [(32, 1, 32), (64, 4, 32), (80, 16, 32), (96, 5, 16), (128, 7, 32), (256, 2, 64), (64, 70, 32), (128, 33, 128), (128, 3, 1)],
)
def test_score_codes(kernels: PagedOperations, device: str, dim: int, m: int, size: int, dtype: torch.dtype) -> None:
    queries, codes = pool(device, 3, 2, m, dim, dtype=dtype), unread(pool(device, 9, 2, size, dim, seed=1))
    pages = table(device, 3, 9, 7, [7, 1, 0], [7 * size - size // 2, size, 0] if size > 1 else None)
    pages.table[0, 3] = -1
    got = kernels.score_codes(queries, codes, pages)
    assert got.dtype == torch.float32 and got.shape == (3, 2, m, 7)
    for expected in (dense_code_scores(queries, codes, pages), TORCH.score_codes(queries, codes, pages).double().cpu()):
        assert torch.allclose(got.double().cpu(), expected, atol=TOLERANCE[dtype] * 5, rtol=TOLERANCE[dtype])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from([32, 80, 96]),
    m=st.integers(1, 70),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    partly=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_score_codes_of_ragged_rows_with_holes(
    kernels: PagedOperations, device: str, seed: int, dim: int, m: int, counts: list[int], partly: bool, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, heads, capacity, size = len(counts), 2, 7, 16
    queries = torch.randn(rows, heads, m, dim, generator=g)
    queries[torch.rand(queries.shape, generator=g) < 0.005] = INF
    queries[torch.rand(queries.shape, generator=g) < 0.002] = float("nan")
    codes = unread(torch.randn(heads, 9, size, dim, generator=g).transpose(0, 1).to(device))  # a pool that lies head by head
    codes.scale[(torch.rand(codes.scale.shape, generator=g) < 0.2).to(device)] = 0
    wide = torch.full((rows, capacity + 2), 2**30, dtype=torch.int32)  # a page that faults where a count beyond the table is believed
    wide[:, :capacity] = torch.randint(-2, 9, (rows, capacity), generator=g)
    tokens = torch.randint(0, (capacity + 1) * size, (rows,), generator=g, dtype=torch.int32)
    ints = torch.tensor(counts, dtype=torch.int32, device=device)
    pages = Pages(wide.to(device)[:, :capacity], ints, tokens.to(device) if partly else None)
    queries = queries.to(device, dtype)
    got = kernels.score_codes(queries, codes, pages)
    for expected in (dense_code_scores(queries, codes, pages), TORCH.score_codes(queries, codes, pages).double().cpu()):
        assert torch.allclose(got.double().cpu(), expected, atol=TOLERANCE[dtype] * 5, rtol=TOLERANCE[dtype])


def test_scores_from_codes_that_are_not_numbers_count_for_nothing(kernels: PagedOperations, device: str) -> None:
    queries, keys = -torch.ones(1, 1, 3, 32, device=device), torch.ones(3, 1, 16, 32, device=device)
    keys[0, 0, 3], keys[1, :] = float("nan"), 0  # neither can be told in 8 bits: their step is 0
    queries[0, 0, 1, 5], queries[0, 0, 2, 7] = float("nan"), -INF
    pages = Pages(torch.tensor([[0, 1, 2]], dtype=torch.int32, device=device), torch.tensor([3], dtype=torch.int32, device=device))
    for operations in (kernels, TORCH):
        got = operations.score_codes(queries, Codes(*quantise(keys)), pages)[0, 0]
        assert got[0, :2].tolist() == [0, 0] and abs(float(got[0, 2]) + 32) < 1e-4
        assert bool((got[1:] == -INF).all())


def test_scores_from_codes_go_to_the_end_of_a_long_table(kernels: PagedOperations, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory_kernels.score.PROGRAMS", 2)  # so that a program has several tiles
    codes = unread(pool(device, 3, 1, 16, 32, seed=1))
    for m, count, capacity, dtype in ((2, 40, 41, torch.float32), (2, 3, 70, torch.float32), (300, 70, 70, torch.float16)):
        queries = pool(device, 1, 1, m, 32, dtype=dtype)
        ints = torch.tensor([count], dtype=torch.int32, device=device)
        pages = Pages((torch.arange(capacity, device=device) % 3).to(torch.int32)[None], ints)
        assert torch.allclose(kernels.score_codes(queries, codes, pages), TORCH.score_codes(queries, codes, pages), atol=1e-4)


def test_scores_from_codes_are_within_the_bounds_of_the_rows_together(kernels: PagedOperations, device: str) -> None:
    queries, codes = pool(device, 2, 2, 5, 128), Codes(*quantise(pool(device, 9, 2, 32, 128, seed=1)))
    pages = table(device, 2, 9, 7, [7, 3], [7 * 32 - 9, 70])
    for operations in (kernels, TORCH):
        best = operations.score_codes(queries, codes, pages).amax(2)
        lower, upper = operations.score_int8(queries, codes, pages)
        assert bool(((lower <= best) & (best <= upper)).all())


def test_launches_are_counted(kernels: PagedOperations, device: str) -> None:
    workspace = Workspace()
    pages, keys = table(device, 1, 3, 3, [3]), pool(device, 3, 1, 16, 32)
    kernels.score(pool(device, 1, 1, 1, 32), keys, pages, workspace=workspace)
    assert workspace.launches == {"score_kernel": 1}
    kernels.score_codes(pool(device, 1, 1, 70, 32), Codes(*quantise(keys)), pages, workspace=workspace)
    assert workspace.launches == {"score_kernel": 1, "score_codes_kernel": 1}
