"""Triton kernels that find the best of many by radix selection: exact, equal ones to the lower index, one launch, nothing sorted.

A row is one program. It looks at its scores in tiles, once for each of four digits and once to write what it chose, so that rows of any
length need no more registers. ``reference.paged`` defines each operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import Placed, Timeline, Workspace, launch
from .place import borders, lay_out
from .place import room as room_for

LARGEST_TILE = 8192
"""Scores of one tile; more need more registers than there are."""

WARPS = {512: 4, 1024: 4, 2048: 8, 4096: 8, 8192: 16}
"""Warps of a program, by tile."""


@triton.jit
def ordered(score, WHOLE: tl.constexpr):
    """uint32 in the order of the scores; 0 for what is never chosen."""
    if WHOLE:
        return tl.maximum(score, 0).to(tl.uint32, bitcast=True)
    score = tl.where(score == 0.0, 0.0, score)  # two zeros, one rank
    bits = score.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    return tl.where((score == score) & (score > float("-inf")), key, tl.zeros_like(key))


@triton.jit
def load_keys(scores, names, index, start, stop, n, WHOLE: tl.constexpr, NAMED: tl.constexpr):
    """Ordered scores at ``index``; 0 where the index, or where ``NAMED`` its name, lies outside ``[start, stop)``."""
    inside = index < n
    name = tl.load(names + index, mask=inside, other=-1) if NAMED else index
    inside = inside & (name >= start) & (name < stop)
    if WHOLE:
        return ordered(tl.load(scores + index, mask=inside, other=0), WHOLE)
    else:
        return ordered(tl.load(scores + index, mask=inside, other=float("-inf")), WHOLE)


@triton.jit
def threshold(
    scores, names, start, stop, n, count, TILE: tl.constexpr, TILES: tl.constexpr, WHOLE: tl.constexpr, NAMED: tl.constexpr
):  # fmt: skip
    """The ``count``-th largest key, or 0 if there are fewer, and how many of those equal to it are taken."""
    digits = tl.arange(0, 256)
    level = tl.zeros([1], tl.uint32)
    room = tl.zeros([1], tl.int32) + count
    for turn in tl.static_range(4):
        seen = tl.zeros([256], tl.int32)
        for i in tl.range(0, TILES):
            if (i * TILE < n) & ((i * TILE < stop) | NAMED):
                key = load_keys(scores, names, i * TILE + tl.arange(0, TILE), start, stop, n, WHOLE, NAMED)
                take = key > 0
                if turn > 0:
                    take = take & ((key >> (32 - 8 * turn)) == level)
                seen += tl.histogram(((key >> (24 - 8 * turn)) & 255).to(tl.int32), 256, mask=take)
        above = tl.sum(seen, axis=0) - tl.cumsum(seen, axis=0)
        digit = tl.maximum(tl.sum((above + seen >= room).to(tl.int32), axis=0) - 1, 0)
        room -= tl.sum(tl.where(digits > digit, seen, 0), axis=0)
        level = level * 256 + digit.to(tl.uint32)
    return level, room


@triton.jit
def best(key, level, room, equal):
    """Which keys are above the level, or among the first ``room`` on it, of which there were ``equal`` before; and how many now."""
    same = (key == level) & (key > 0)
    rank = equal + tl.cumsum(same.to(tl.int32), axis=0)
    return (key > level) | (same & (rank <= room)), equal + tl.sum(same.to(tl.int32), axis=0)


@triton.jit
def pad(out, taken, count, TILE: tl.constexpr, PADS: tl.constexpr):
    """-1 from ``taken`` to ``count``."""
    for i in tl.range(0, PADS):
        index = i * TILE + tl.arange(0, TILE)
        tl.store(out + index, tl.full([TILE], -1, tl.int32), mask=(index >= taken) & (index < count))


@triton.jit
def write_best(
    scores, names, out, start, stop, n, count, TILE: tl.constexpr, TILES: tl.constexpr, PADS: tl.constexpr, WHOLE: tl.constexpr,
    NAMES: tl.constexpr, NAMED: tl.constexpr,
):  # fmt: skip
    """Write the ``count`` best, or their names (``NAMES`` scores share one), and -1 after them."""
    level, room = threshold(scores, names, start, stop, n, count, TILE, TILES, WHOLE, NAMED)
    taken, equal = 0, 0
    for i in tl.range(0, TILES):
        if (i * TILE < n) & ((i * TILE < stop) | NAMED):
            index = i * TILE + tl.arange(0, TILE)
            take, equal = best(load_keys(scores, names, index, start, stop, n, WHOLE, NAMED), level, room, equal)
            rank = taken + tl.cumsum(take.to(tl.int32), axis=0) - 1
            name = index
            if NAMES:
                name = tl.load(names + index // NAMES, mask=take, other=-1) * NAMES + index % NAMES
            tl.store(out + rank, name, mask=take)
            taken += tl.sum(take.to(tl.int32), axis=0)
    pad(out, taken, count, TILE, PADS)


@triton.jit
def select_kernel(
    scores, starts, lengths, names, out, per_session, n, count, TILE: tl.constexpr, TILES: tl.constexpr, PADS: tl.constexpr,
    WHOLE: tl.constexpr, STARTS: tl.constexpr, LENGTHS: tl.constexpr, NAMES: tl.constexpr,
):  # fmt: skip
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64)
    session = row // per_session
    start = tl.load(starts + session) if STARTS else 0
    stop = tl.minimum(tl.load(lengths + session), n) if LENGTHS else n
    if NAMES:
        names += row * (n // NAMES)
    write_best(scores + row * n, names, out + row * count, start, stop, n, count, TILE, TILES, PADS, WHOLE, NAMES, False)


@triton.jit
def certify_kernel(
    lower, upper, starts, lengths, out, found, per_session, n, count, capacity, TILE: tl.constexpr, TILES: tl.constexpr,
    PADS: tl.constexpr, STARTS: tl.constexpr, LENGTHS: tl.constexpr,
):  # fmt: skip
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64)
    session = row // per_session
    lower += row * n
    upper += row * n
    out += row * capacity
    start = tl.load(starts + session) if STARTS else 0
    stop = tl.minimum(tl.load(lengths + session), n) if LENGTHS else n
    reach, _ = threshold(lower, lower, start, stop, n, count, TILE, TILES, False, False)
    many = 0
    for i in tl.range(0, TILES):
        if i * TILE < stop:
            key = load_keys(upper, upper, i * TILE + tl.arange(0, TILE), start, stop, n, False, False)
            many += tl.sum(((key > 0) & (key >= reach)).to(tl.int32), axis=0)
    level = tl.zeros([1], tl.uint32)
    room = tl.zeros([1], tl.int32)
    if many > capacity:
        level, room = threshold(upper, upper, start, stop, n, capacity, TILE, TILES, False, False)
    taken, equal = 0, 0
    for i in tl.range(0, TILES):
        if i * TILE < stop:
            index = i * TILE + tl.arange(0, TILE)
            key = load_keys(upper, upper, index, start, stop, n, False, False)
            take, equal = best(key, level, room, equal)
            take = take & (key >= reach)
            rank = taken + tl.cumsum(take.to(tl.int32), axis=0) - 1
            tl.store(out + rank, index, mask=take)
            taken += tl.sum(take.to(tl.int32), axis=0)
    pad(out, taken, capacity, TILE, PADS)
    tl.store(found + row, many)


@triton.jit
def select_and_place_kernel(
    scores, names, out, table, sinks, stops, lengths, entries, positions, missed, heads, count, capacity, sink_blocks, local_blocks,
    queries, table_row, n, TILE: tl.constexpr, TILES: tl.constexpr, PADS: tl.constexpr, SIZE: tl.constexpr, SINKS: tl.constexpr,
    LOCALS: tl.constexpr, QUERIES: tl.constexpr, CHOSEN: tl.constexpr, CHOSEN_TILES: tl.constexpr, NAMES: tl.constexpr,
):  # fmt: skip
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64)
    sink, stop, _ = borders(sinks, stops, lengths, row // heads)
    end = tl.where(stop > sink, (stop + SIZE - 1) // SIZE, 0)
    write_best(
        scores + row * n, names + row * n, out + row * count, sink // SIZE, end, n, count, TILE, TILES, PADS, False, NAMES, NAMES > 0
    )  # fmt: skip
    tl.debug_barrier()  # what other threads chose is read next
    lay_out(
        out, table, sinks, stops, lengths, entries, positions, missed, heads, count, capacity, sink_blocks, local_blocks, queries,
        table_row, CHOSEN, CHOSEN_TILES, SIZE, SINKS, LOCALS, QUERIES,
    )  # fmt: skip


@triton.jit
def tally_kernel(named, counts, n, width, TILE: tl.constexpr):
    """Program (row, tile)."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    name = tl.load(named + row * n + index, mask=index < n, other=-1)
    there = (name >= 0) & (name < width)
    tl.atomic_add(counts + row * width + name, tl.full([TILE], 1, tl.int32), mask=there, sem="relaxed")


def select(
    scores: Tensor,
    count: int,
    *,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    names: Tensor | None = None,
    size: int = 1,
    workspace: Workspace | None = None,
) -> Tensor:
    """See :func:`.reference.paged.select`."""
    checks.check_select(scores, count, (starts, lengths), names, size)
    scores, names = scores.contiguous(), None if names is None else names.contiguous()
    out = torch.empty((*scores.shape[:-1], count), dtype=torch.int32, device=scores.device)
    if out.numel():
        n, rows = scores.shape[-1], out.numel() // count
        given = {"STARTS": starts is not None, "LENGTHS": lengths is not None, "NAMES": 0 if names is None else size}
        arguments = (scores, *_or(scores, starts, lengths, names), out, rows // len(scores), n, count)
        launch(select_kernel, (rows,), arguments, workspace, WHOLE=scores.dtype == torch.int32, **_tiles(n, count), **given)
    return out


def certify(
    lower: Tensor,
    upper: Tensor,
    count: int,
    capacity: int,
    *,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.paged.certify`."""
    checks.check_certify(lower, upper, count, capacity, (starts, lengths))
    lower, upper = lower.contiguous(), upper.contiguous()
    out = torch.empty((*lower.shape[:-1], capacity), dtype=torch.int32, device=lower.device)
    found = torch.empty(lower.shape[:-1], dtype=torch.int32, device=lower.device)
    if out.numel():
        n, rows = lower.shape[-1], found.numel()
        arguments = (lower, upper, *_or(lower, starts, lengths), out, found, rows // len(lower), n, count, capacity)
        flags = {"STARTS": starts is not None, "LENGTHS": lengths is not None}
        launch(certify_kernel, (rows,), arguments, workspace, **_tiles(n, capacity), **flags)
    return out, found


def tally(named: Tensor, width: int, *, workspace: Workspace | None = None) -> Tensor:
    """See :func:`.reference.paged.tally`."""
    checks.check_tally(named, width)
    named = named.flatten(1).contiguous()
    counts = torch.zeros((len(named), width), dtype=torch.int32, device=named.device)
    if named.numel():
        n = named.shape[1]
        launch(tally_kernel, (len(named), -(-n // 1024)), (named, counts, n, width), workspace, TILE=1024)
    return counts


def select_and_place(
    scores: Tensor, count: int, timeline: Timeline, size: int, *, names: Tensor | None = None, workspace: Workspace | None = None
) -> tuple[Tensor, Placed]:
    """See :func:`.reference.paged.select_and_place`."""
    checks.check_select_and_place(scores, count, timeline, size, names)
    scores, names = scores.contiguous(), None if names is None else names.contiguous()
    rows, heads, n = scores.shape
    out = torch.empty((rows, heads, count), dtype=torch.int32, device=scores.device)
    placed, arguments, sizes = room_for(rows, heads, count, timeline, scores.device)
    if out.numel():
        given = (scores, *_or(scores, names), out, *arguments, n)
        flags = {"SIZE": size, "NAMES": int(names is not None), **sizes}
        launch(select_and_place_kernel, (rows * heads,), given, workspace, **_tiles(n, count), **flags)
    return out, placed


def _tiles(n: int, count: int) -> dict[str, int]:
    tile = min(LARGEST_TILE, 1 << max(9, (n - 1).bit_length())) if n else 512
    return {"TILE": tile, "TILES": -(-n // tile), "PADS": -(-count // tile), "num_warps": WARPS[tile]}


def _or(other: Tensor, *given: Tensor | None) -> list[Tensor]:
    """A pointer for each argument, whether it is read or not."""
    return [other if x is None else x for x in given]
