"""Triton kernels that score Blocks from 8-bit keys: bounds over all query rows, and one score of each row.

Half the bytes of ``score`` are read. ``reference.paged`` defines each operation.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import Codes, Pages, Workspace, launch
from .reference.paged import LARGEST, LEAST, ROUNDING
from .score import NOTHING, joined, load_rows, plan, store_each, tile_pages, tokens_of, upcast


@triton.jit
def score_int8_kernel(
    queries, codes, scales, residuals, table, counts, tokens, lower, upper, heads, m, capacity, q_session, q_head, q_row, k_page, k_head,
    k_token, s_page, s_head, s_token, table_row, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr,
    TILES: tl.constexpr, ROWS: tl.constexpr, ROW_TILES: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, EPSILON: tl.constexpr,
    LONGEST: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Program (session and head, run of tiles, cut of query rows)."""
    session = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    queries += session * q_session + head * q_head
    first_row = tl.program_id(2) * ROWS * ROW_TILES
    count = tl.minimum(tl.load(counts + session), capacity)
    there = tl.load(tokens + session).to(tl.int64) if TOKENS else count.to(tl.int64) * SIZE
    table += session * table_row
    line = (tl.program_id(2) * tl.num_programs(0).to(tl.int64) + session * heads + head) * capacity
    index = tl.arange(0, SPAN * SIZE)
    span = tl.arange(0, SPAN)
    dim = tl.arange(0, D)
    begin = tl.program_id(1) * TILES * SPAN
    if ROW_TILES == 1:
        high, low, step, length, rest = split(load_rows(queries, first_row, m, q_row, DIM, D, ROWS), D, EPSILON)
    if begin < count:
        for i in tl.range(0, TILES, num_stages=STAGES):
            first = begin + i * SPAN
            page = tile_pages(table, first + index // SIZE, index % SIZE, count, there, SIZE)
            at = page.to(tl.int64) * k_page + head * k_head + (index % SIZE) * k_token
            k = tl.load(codes + at[:, None] + dim[None, :], mask=(page >= 0)[:, None] & (dim < DIM)[None, :], other=0)
            at = page.to(tl.int64) * s_page + head * s_head + (index % SIZE) * s_token
            scale = tl.load(scales + at, mask=page >= 0, other=0.0)
            residual = tl.load(residuals + at, mask=page >= 0, other=0.0)
            longest = scale * LONGEST + LEAST / 256
            missed = residual * (1 + 4 * (DIM + 8) * EPSILON) + longest * (4 * (DIM + 8) * EPSILON)
            least = tl.full([SPAN * SIZE], NOTHING, tl.float32)
            most = tl.full([SPAN * SIZE], NOTHING, tl.float32)
            for j in tl.static_range(ROW_TILES):
                if ROW_TILES > 1:
                    high, low, step, length, rest = split(load_rows(queries, first_row + j * ROWS, m, q_row, DIM, D, ROWS), D, EPSILON)
                whole = tl.dot(high, tl.trans(k)) * 128 + tl.dot(low, tl.trans(k))
                off = (length[:, None] * missed[None, :] + rest[:, None] * longest[None, :]) * (1 + 16 * EPSILON) + LEAST
                known = (off == off) & (length[:, None] * (longest + residual)[None, :] <= LARGEST)
                middle = whole.to(tl.float32) * step[:, None] * scale[None, :]
                least = tl.maximum(least, tl.max(tl.where(known, middle - off, NOTHING), axis=0))
                most = tl.maximum(most, tl.max(tl.where(known, middle + off, -NOTHING), axis=0))
            least = tl.max(tl.reshape(tl.where(page >= 0, least, NOTHING), [SPAN, SIZE]), axis=1)
            most = tl.max(tl.reshape(tl.where(page >= 0, most, NOTHING), [SPAN, SIZE]), axis=1)
            tl.store(lower + line + first + span, least, mask=first + span < capacity)
            tl.store(upper + line + first + span, most, mask=first + span < capacity)
    else:
        nothing = tl.full([SPAN], NOTHING, tl.float32)
        for i in tl.range(0, TILES):
            block = begin + i * SPAN + span
            tl.store(lower + line + block, nothing, mask=block < capacity)
            tl.store(upper + line + block, nothing, mask=block < capacity)


@triton.jit
def split(q, D: tl.constexpr, EPSILON: tl.constexpr):
    """Two 8-bit parts of queries ``[rows, D]``, the step of the lower one, and the norms of the queries and of what is left over."""
    q = q.to(tl.float32)
    most = tl.max(tl.where(q == q, tl.abs(q), -NOTHING), axis=1)
    finite = most < -NOTHING
    q = tl.where(finite[:, None], q, 0.0)
    bits = (tl.maximum(tl.where(finite, most, 0.0), 7.888609052210118e-31) / 127).to(tl.int32, bitcast=True)
    bits = (bits + 0x007FFFFF) & 0x7F800000
    coarse = bits.to(tl.float32, bitcast=True)
    step = coarse * 0.0078125
    scaled = q * (0x7F000000 - bits).to(tl.float32, bitcast=True)[:, None]  # a division by a power of two, which loses nothing
    high = tl.floor(scaled + 0.5)
    left = (scaled - high) * 128
    low = tl.floor(left + 0.5)
    left = left - low
    up = 1 + (D + 16) * EPSILON
    rest = tl.sqrt(tl.sum(left * left, axis=1)) * step * up
    length = tl.where(finite, tl.sqrt(tl.sum(scaled * scaled, axis=1)) * coarse * up, -NOTHING)
    return high.to(tl.int8), low.to(tl.int8), step, length, rest


@triton.jit
def code_products(q, codes, scale, page, head, offset, k_page, k_head, k_token, DIM: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr):
    """``tile_products`` of 8-bit keys, ``scale [tokens]`` the step of each."""
    dim = tl.arange(0, D)
    at = page.to(tl.int64) * k_page + head * k_head + offset * k_token
    k = tl.load(codes + at[:, None] + dim[None, :], mask=(page >= 0)[:, None] & (dim < DIM)[None, :], other=0)
    if UPCAST:
        q = q.to(tl.float32)
    k = k.to(q.dtype)  # whole numbers this small lose nothing
    if q.dtype == tl.float32:
        # The first operand is fetched first, and codes are written to shared memory once more: queries that came first would fill the
        # registers while all threads wait for that.
        s = tl.trans(tl.dot(k, tl.trans(q), input_precision="ieee"))
    else:
        s = tl.dot(q, tl.trans(k))
    s = s * scale[None, :]
    return tl.where((page >= 0)[None, :] & (s == s), s, NOTHING)


@triton.jit
def score_codes_kernel(
    queries, codes, scales, table, counts, tokens, out, heads, m, capacity, q_session, q_head, q_row, k_page, k_head, k_token, s_page,
    s_head, s_token, table_row, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, ROW_TILES: tl.constexpr, TOKENS: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (session and head, run of tiles, cut of query rows)."""
    session = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    queries += session * q_session + head * q_head
    first_row = tl.program_id(2) * ROWS * ROW_TILES
    count = tl.minimum(tl.load(counts + session), capacity)
    there = tl.load(tokens + session).to(tl.int64) if TOKENS else count.to(tl.int64) * SIZE
    table += session * table_row
    out += (session * heads + head) * m * capacity
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
            at = page.to(tl.int64) * s_page + head * s_head + (index % SIZE) * s_token
            scale = tl.load(scales + at, mask=page >= 0, other=0.0)
            for j in tl.static_range(ROW_TILES):
                if ROW_TILES > 1:
                    q = load_rows(queries, first_row + j * ROWS, m, q_row, DIM, D, ROWS)
                s = code_products(q, codes, scale, page, head, index % SIZE, k_page, k_head, k_token, DIM, D, UPCAST)
                if SIZE > 1:
                    s = tl.max(tl.reshape(s, [ROWS, SPAN, SIZE]), axis=2)
                store_each(out, s, row + j * ROWS, first + span, m, capacity)
    else:
        for i in tl.range(0, TILES):
            for j in tl.static_range(ROW_TILES):
                store_each(out, tl.full([ROWS, SPAN], NOTHING, tl.float32), row + j * ROWS, begin + i * SPAN + span, m, capacity)


def score_int8(queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.paged.score_int8`."""
    checks.check_score_codes(queries, codes, pages)
    rows, heads, m, dim = queries.shape
    capacity, size = pages.table.shape[1], codes.codes.shape[2]
    grid, shape = plan(queries, size, capacity, codes.codes.element_size())
    out = torch.empty((2, grid[2], rows, heads, capacity), dtype=torch.float32, device=queries.device)
    if out.numel():
        arguments = (
            *(queries, codes.codes, codes.scale, codes.residual, pages.table, pages.counts, tokens_of(pages), *out, heads, m, capacity),
            *(*queries.stride()[:3], *codes.codes.stride()[:3], *codes.scale.stride(), pages.table.stride(0)),
        )
        bound = {"EPSILON": ROUNDING, "LONGEST": 127 * math.sqrt(dim) * (1 + 8 * ROUNDING), "LARGEST": LARGEST, "LEAST": LEAST}
        launch(score_int8_kernel, grid, arguments, workspace, DIM=dim, SIZE=size, TOKENS=pages.tokens is not None, **shape, **bound)
    return joined(out[0]), joined(out[1])


def score_codes(queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> Tensor:
    """See :func:`.reference.paged.score_codes`."""
    checks.check_score_codes(queries, codes, pages)
    rows, heads, m, dim = queries.shape
    capacity, size = pages.table.shape[1], codes.codes.shape[2]
    grid, shape = plan(queries, size, capacity, queries.element_size())  # codes are multiplied as the query's numbers
    out = torch.empty((rows, heads, m, capacity), dtype=torch.float32, device=queries.device)
    if out.numel():
        arguments = (
            *(queries, codes.codes, codes.scale, pages.table, pages.counts, tokens_of(pages), out, heads, m, capacity),
            *(*queries.stride()[:3], *codes.codes.stride()[:3], *codes.scale.stride(), pages.table.stride(0)),
        )
        flags = {"TOKENS": pages.tokens is not None, "UPCAST": upcast(queries)}
        launch(score_codes_kernel, grid, arguments, workspace, DIM=dim, SIZE=size, **shape, **flags)
    return out
