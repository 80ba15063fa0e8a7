"""Triton kernels that give each Block the best product of its keys: all Blocks or listed ones; and how a scan is cut into tiles.

A tile of keys is read once for all query rows that share a KV head, and its products are reduced before they leave the registers.
``reference.paged`` defines each operation; ``score_int8`` has those that read 8-bit keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import Pages, Workspace, launch

KEYS_AT_ONCE = {1: {32: 128, 64: 128, 128: 128, 256: 64}, 2: {32: 128, 64: 128, 128: 128, 256: 64}, 4: {32: 64, 64: 64, 128: 32, 256: 32}}
"""Keys of a tile, by bytes of a number and padded head size."""

PROGRAMS = 1056
"""Programs a scan is cut into, if it has tiles for so many: 8 for each of an H200's 132 processors."""

ROWS = {1: 32, 2: 64, 4: 16}
"""Query rows of a tile where there are more than 16, by bytes of a key's number."""

ROW_TILES = {1: {32: 2, 64: 2, 128: 2, 256: 1}, 2: {32: 2, 64: 2, 128: 1, 256: 1}, 4: {32: 1, 64: 1, 128: 1, 256: 1}}
"""Such tiles one program looks at, by bytes of a number and padded head size; more rows are cut."""

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def tile_products(q, keys, page, head, offset, k_page, k_head, k_token, DIM: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr):
    """Products fp32 ``[rows, tokens]`` of a query tile with the keys at ``page`` and ``offset``; ``-inf`` where the page is negative."""
    dim = tl.arange(0, D)
    at = page.to(tl.int64) * k_page + head * k_head + offset * k_token
    k = tl.load(keys + at[:, None] + dim[None, :], mask=(page >= 0)[:, None] & (dim < DIM)[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
        k = k.to(tl.float32)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    return tl.where((page >= 0)[None, :] & (s == s), s, NOTHING)


@triton.jit
def tile_pages(table, block, offset, count, tokens, SIZE: tl.constexpr):
    """Page of each token, -1 where there is none."""
    page = tl.load(table + block, mask=block < count, other=-1)
    return tl.where(block.to(tl.int64) * SIZE + offset < tokens, page, -1)


@triton.jit
def load_rows(queries, first, m, q_row, DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Query rows from ``first`` on; the last one again where there are no more, so that none wins that is not there."""
    row = tl.minimum(first + tl.arange(0, ROWS), m - 1)
    dim = tl.arange(0, D)
    return tl.load(queries + row[:, None] * q_row + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)


@triton.jit
def score_kernel(
    queries, keys, table, counts, tokens, out, heads, m, capacity, q_session, q_head, q_row, k_page, k_head, k_token, table_row,
    DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr,
    ROW_TILES: tl.constexpr, EACH: tl.constexpr, TOKENS: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (session and head, run of tiles, cut of query rows)."""
    session = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    queries += session * q_session + head * q_head
    first_row = tl.program_id(2) * ROWS * ROW_TILES
    count = tl.minimum(tl.load(counts + session), capacity)
    there = tl.load(tokens + session).to(tl.int64) if TOKENS else count.to(tl.int64) * SIZE
    table += session * table_row
    pair = session * heads + head
    if EACH:
        out += pair * m * capacity
    else:
        out += (tl.program_id(2) * (tl.num_programs(0).to(tl.int64)) + pair) * capacity
    index = tl.arange(0, SPAN * SIZE)
    span = tl.arange(0, SPAN)
    row = first_row + tl.arange(0, ROWS)
    begin = tl.program_id(1) * TILES * SPAN
    if begin < count:
        if ROW_TILES == 1:
            q = load_rows(queries, first_row, m, q_row, DIM, D, ROWS)
        for i in tl.range(0, TILES, num_stages=STAGES):
            first = begin + i * SPAN
            page = tile_pages(table, first + index // SIZE, index % SIZE, count, there, SIZE)
            best = tl.full([SPAN], NOTHING, tl.float32)
            for j in tl.static_range(ROW_TILES):
                if ROW_TILES > 1:
                    q = load_rows(queries, first_row + j * ROWS, m, q_row, DIM, D, ROWS)
                s = tile_products(q, keys, page, head, index % SIZE, k_page, k_head, k_token, DIM, D, UPCAST)
                if SIZE > 1:
                    s = tl.max(tl.reshape(s, [ROWS, SPAN, SIZE]), axis=2)
                if EACH:
                    store_each(out, s, row + j * ROWS, first + span, m, capacity)
                else:
                    best = tl.maximum(best, tl.max(s, axis=0))
            if not EACH:
                tl.store(out + first + span, best, mask=first + span < capacity)
    else:
        for i in tl.range(0, TILES):
            block = begin + i * SPAN + span
            if EACH:
                for j in tl.static_range(ROW_TILES):
                    store_each(out, tl.full([ROWS, SPAN], NOTHING, tl.float32), row + j * ROWS, block, m, capacity)
            else:
                tl.store(out + block, tl.full([SPAN], NOTHING, tl.float32), mask=block < capacity)


@triton.jit
def store_each(out, s, row, block, m, capacity):
    """Write ``s [rows, Blocks]`` where there are such."""
    tl.store(out + row[:, None].to(tl.int64) * capacity + block[None, :], s, mask=(row < m)[:, None] & (block < capacity)[None, :])


@triton.jit
def rescore_kernel(
    queries, keys, table, counts, tokens, listed, out, heads, m, blocks, capacity, q_session, q_head, q_row, k_page, k_head, k_token,
    table_row, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, ROW_TILES: tl.constexpr,
    EACH: tl.constexpr, BY_TOKEN: tl.constexpr, TOKENS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Program (session, head and, for EACH, query row; tile of the list)."""
    pair = tl.program_id(0) // m if EACH else tl.program_id(0)
    session = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    queries += session * q_session + head * q_head
    count = tl.minimum(tl.load(counts + session), capacity)
    there = tl.load(tokens + session).to(tl.int64) if TOKENS else count.to(tl.int64) * SIZE
    line = tl.program_id(0).to(tl.int64) * blocks
    first = tl.program_id(1) * SPAN
    index = tl.arange(0, SPAN * SIZE)
    place = first + index // SIZE
    block = tl.load(listed + line + place, mask=place < blocks, other=-1)
    page = tl.load(table + session * table_row + block, mask=(block >= 0) & (block < count), other=-1)
    page = tl.where(block.to(tl.int64) * SIZE + index % SIZE < there, page, -1)
    best = tl.full([SPAN * SIZE], NOTHING, tl.float32)
    for j in tl.range(0, ROW_TILES, num_stages=1):
        if EACH:
            row = tl.program_id(0) % m
            q = load_rows(queries, row, row + 1, q_row, DIM, D, ROWS)
        else:
            q = load_rows(queries, j * ROWS, m, q_row, DIM, D, ROWS)
        s = tile_products(q, keys, page, head, index % SIZE, k_page, k_head, k_token, DIM, D, UPCAST)
        best = tl.maximum(best, tl.max(s, axis=0))
    if BY_TOKEN:
        tl.store(out + line * SIZE + first * SIZE + index, best, mask=place < blocks)
    else:
        span = first + tl.arange(0, SPAN)
        tl.store(out + line + span, tl.max(tl.reshape(best, [SPAN, SIZE]), axis=1), mask=span < blocks)


def score(queries: Tensor, keys: Tensor, pages: Pages, *, each: bool = False, workspace: Workspace | None = None) -> Tensor:
    """See :func:`.reference.paged.score`."""
    checks.check_score(queries, keys, pages)
    rows, heads, m, dim = queries.shape
    capacity, size = pages.table.shape[1], keys.shape[2]
    grid, shape = plan(queries, size, capacity, keys.element_size())
    each_or_cut = (rows, heads, m, capacity) if each else (grid[2], rows, heads, capacity)
    out = torch.empty(each_or_cut, dtype=torch.float32, device=queries.device)
    if out.numel():
        arguments = (
            *(queries, keys, pages.table, pages.counts, tokens_of(pages), out, heads, m, capacity),
            *(*queries.stride()[:3], *keys.stride()[:3], pages.table.stride(0)),
        )
        flags = {"EACH": each, "TOKENS": pages.tokens is not None, "UPCAST": upcast(keys)}
        launch(score_kernel, grid, arguments, workspace, DIM=dim, SIZE=size, **shape, **flags)
    return out if each else joined(out)


def rescore(
    queries: Tensor, keys: Tensor, pages: Pages, listed: Tensor, *, by_token: bool = False, workspace: Workspace | None = None
) -> Tensor:
    """See :func:`.reference.paged.rescore`."""
    checks.check_score(queries, keys, pages)
    checks.check_listed(queries, listed, by_token)
    listed = listed.contiguous()
    rows, heads, m, dim = queries.shape
    size, blocks, each = keys.shape[2], listed.shape[-1], listed.dim() == 4
    span = max(1, KEYS_AT_ONCE[keys.element_size()][_padded(dim)] // 2 // size)
    row = 16 if m <= 16 or each else ROWS[keys.element_size()]
    row_tiles = 1 if each else 1 << (-(-m // row) - 1).bit_length()
    out = torch.empty((*listed.shape[:-1], blocks * size if by_token else blocks), dtype=torch.float32, device=queries.device)
    if out.numel():
        arguments = (
            *(queries, keys, pages.table, pages.counts, tokens_of(pages), listed, out, heads, m, blocks, pages.table.shape[1]),
            *(*queries.stride()[:3], *keys.stride()[:3], pages.table.stride(0)),
        )
        shape = {"DIM": dim, "D": _padded(dim), "SIZE": size, "SPAN": span, "ROWS": row, "ROW_TILES": row_tiles}
        flags = {"EACH": each, "BY_TOKEN": by_token, "TOKENS": pages.tokens is not None, "UPCAST": upcast(keys)}
        launch(
            rescore_kernel,
            (listed.numel() // blocks, -(-blocks // span)),
            arguments,
            workspace,
            **shape,
            **flags,
            num_warps=4 if m <= 16 or keys.element_size() < 4 else 8,
        )
    return out


def plan(queries: Tensor, size: int, capacity: int, number: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid and tile sizes of a scan over ``capacity`` Blocks of ``size`` tokens, multiplied as numbers of ``number`` bytes."""
    rows, heads, m, dim = queries.shape
    span = max(1, KEYS_AT_ONCE[number][_padded(dim)] // size)
    tiles = -(-capacity // span)
    row = 16 if m <= 16 else ROWS[number]
    row_tiles = min(-(-m // row), ROW_TILES[number][_padded(dim)])
    cuts = -(-m // (row * row_tiles))
    run = min(max(1, rows * heads * cuts * tiles // PROGRAMS), 64)
    run = 1 << (run - 1).bit_length()  # few values, since each is a kernel of its own
    shape = {"D": _padded(dim), "SPAN": span, "TILES": run, "ROWS": row, "ROW_TILES": row_tiles, "STAGES": 3 if run > 1 else 1}
    return (rows * heads, -(-tiles // run), cuts), {**shape, "num_warps": 8 if m > 16 and number == 1 else 4}


def _padded(dim: int) -> int:
    return 1 << (dim - 1).bit_length()


def tokens_of(pages: Pages) -> Tensor:
    """Tokens of each row, or what a kernel that does not read them can be given instead."""
    return pages.counts if pages.tokens is None else pages.tokens


def upcast(x: Tensor) -> bool:
    """The interpreter multiplies the bit patterns of bf16."""
    return bool(triton.knobs.runtime.interpret) and x.dtype == torch.bfloat16


def joined(cuts: Tensor) -> Tensor:
    """The best over cuts ``[cuts, ...]`` of the query rows."""
    return cuts[0] if len(cuts) == 1 else cuts.amax(0)
