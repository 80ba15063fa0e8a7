"""Triton kernel that lays chosen Blocks out between sink and local tokens, and its parts for the kernel that chooses them too.

``reference.paged`` defines the operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import Placed, Timeline, Workspace, launch

TILE = 256
"""Chosen Blocks looked at together."""


@triton.jit
def write_entries(entries, rank, mask, slot, position, first, end):
    """Write an entry for each of ``mask``: nothing where the slot is -1."""
    there = slot != -1
    at = entries + rank * 4
    tl.store(at, slot, mask=mask)
    tl.store(at + 1, tl.where(there, position, 0), mask=mask)
    tl.store(at + 2, tl.where(there, first, 0), mask=mask)
    tl.store(at + 3, tl.where(there, end, 0), mask=mask)


@triton.jit
def within(edge, block, SIZE: tl.constexpr):
    """Offset of token ``edge`` in each Block, at its ends where it lies outside."""
    return tl.minimum(tl.maximum(edge - block * SIZE, 0), SIZE)


@triton.jit
def write_part(entries, table, rank, mask, block, start, stop, position, capacity, SIZE: tl.constexpr):
    """Entries of Blocks of which tokens ``[start, stop)`` are seen."""
    first = within(start, block, SIZE)
    end = within(stop, block, SIZE)
    slot = tl.load(table + block, mask=mask & (end > first) & (block >= 0) & (block < capacity), other=-1)
    write_entries(entries, rank, mask, slot, position, first, end)


@triton.jit
def write_recalled(entries, table, block, rank, take, seen, sink, stop, capacity, SIZE: tl.constexpr):
    """Entries of chosen Blocks; ``seen`` recalled tokens stand before them. Gives how many do after them."""
    first = within(sink, block, SIZE)
    shown = tl.where(take, tl.maximum(within(stop, block, SIZE) - first, 0), 0)
    start = sink + seen + tl.cumsum(shown, axis=0) - shown
    write_part(entries, table, rank, take, block, sink, stop, start - first, capacity, SIZE)
    return seen + tl.sum(shown, axis=0)


@triton.jit
def write_nothing(entries, rank, mask):
    """Entries that are nothing."""
    nothing = tl.zeros_like(rank)
    write_entries(entries, rank, mask, nothing - 1, nothing, nothing, nothing)


@triton.jit
def write_rest(
    entries, positions, missed, table, sink, stop, length, seen, count, capacity, sink_blocks, local_blocks, queries,
    SIZE: tl.constexpr, SINKS: tl.constexpr, LOCALS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Sink and local entries, positions of the queries, and what had no room."""
    rank = tl.arange(0, SINKS)
    write_part(entries, table, rank, rank < sink_blocks, rank, 0, sink, rank * SIZE, capacity, SIZE)
    rank = tl.arange(0, LOCALS)
    block = stop // SIZE + rank
    position = sink + seen + block * SIZE - stop
    local = entries + (sink_blocks + count) * 4
    write_part(local, table, rank, rank < local_blocks, block, stop, length, position, capacity, SIZE)
    query = tl.arange(0, QUERIES)
    tl.store(positions + query, tl.maximum(sink + seen + length - stop - queries + query, 0), mask=query < queries)
    over = tl.maximum(sink - tl.minimum(sink_blocks, capacity) * SIZE, 0)
    tl.store(missed, over + tl.maximum(length - (stop // SIZE + local_blocks) * SIZE, 0))


@triton.jit
def lay_out(
    blocks, table, sinks, stops, lengths, entries, positions, missed, heads, count, capacity, sink_blocks, local_blocks, queries, table_row,
    TILE: tl.constexpr, TILES: tl.constexpr, SIZE: tl.constexpr, SINKS: tl.constexpr, LOCALS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Everything there is to write of one row."""
    row = tl.program_id(0).to(tl.int64)
    session = row // heads
    table += session * table_row
    entries += row * (sink_blocks + count + local_blocks) * 4
    sink, stop, length = borders(sinks, stops, lengths, session)
    seen = 0
    for i in tl.range(0, TILES):
        rank = i * TILE + tl.arange(0, TILE)
        block = tl.load(blocks + row * count + rank, mask=rank < count, other=-1, cache_modifier=".cg")
        write_nothing(entries + sink_blocks * 4, rank, (rank < count) & (block < 0))
        seen = write_recalled(entries + sink_blocks * 4, table, block, rank, block >= 0, seen, sink, stop, capacity, SIZE)
    write_rest(
        entries, positions + row * queries, missed + row, table, sink, stop, length, seen, count, capacity, sink_blocks, local_blocks,
        queries, SIZE, SINKS, LOCALS, QUERIES,
    )  # fmt: skip


@triton.jit
def borders(sinks, stops, lengths, session):
    """Where the sinks end, where local tokens begin, and the length, in order."""
    length = tl.load(lengths + session)
    sink = tl.minimum(tl.load(sinks + session), length)
    return sink, tl.minimum(tl.maximum(tl.load(stops + session), sink), length), length


@triton.jit
def place_kernel(
    blocks, table, sinks, stops, lengths, entries, positions, missed, heads, count, capacity, sink_blocks, local_blocks, queries, table_row,
    CHOSEN: tl.constexpr, CHOSEN_TILES: tl.constexpr, SIZE: tl.constexpr, SINKS: tl.constexpr, LOCALS: tl.constexpr,
    QUERIES: tl.constexpr,
):  # fmt: skip
    """Program (row)."""
    lay_out(
        blocks, table, sinks, stops, lengths, entries, positions, missed, heads, count, capacity, sink_blocks, local_blocks, queries,
        table_row, CHOSEN, CHOSEN_TILES, SIZE, SINKS, LOCALS, QUERIES,
    )  # fmt: skip


def place(blocks: Tensor, timeline: Timeline, size: int, *, workspace: Workspace | None = None) -> Placed:
    """See :func:`.reference.paged.place`."""
    checks.check_blocks(blocks, timeline, size)
    blocks = blocks.contiguous()
    rows, heads, count = blocks.shape
    placed, arguments, sizes = room(rows, heads, count, timeline, blocks.device)
    launch(place_kernel, (rows * heads,), (blocks, *arguments), workspace, SIZE=size, **sizes)
    return placed


def room(
    rows: int, heads: int, count: int, timeline: Timeline, device: torch.device
) -> tuple[Placed, tuple[Tensor | int, ...], dict[str, int]]:
    """What a placing kernel writes to, its arguments, and its constants."""
    held = timeline.sink_blocks + count + timeline.local_blocks
    placed = Placed(
        torch.empty((rows, heads, held, 4), dtype=torch.int32, device=device),
        torch.empty((rows, heads, timeline.queries), dtype=torch.int32, device=device),
        torch.empty((rows, heads), dtype=torch.int32, device=device),
    )
    arguments = (
        *(timeline.table, timeline.sinks, timeline.stops, timeline.lengths, placed.entries, placed.positions, placed.missed),
        *(heads, count, timeline.table.shape[1], timeline.sink_blocks, timeline.local_blocks, timeline.queries, timeline.table.stride(0)),
    )
    sizes = {"SINKS": timeline.sink_blocks, "LOCALS": timeline.local_blocks, "QUERIES": timeline.queries}
    padded = {name: 1 << max(0, value - 1).bit_length() for name, value in sizes.items()}
    return placed, arguments, {"CHOSEN": TILE, "CHOSEN_TILES": -(-count // TILE), **padded}
