"""Triton kernel of attention over pages: keys are rotated as they are read, splits are merged by the last program to arrive.

One launch for up to three Regions, two pools, sinks and softcap. ``reference.paged`` defines the operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .paging import LogitRule, Pool, Regions, Rotation, Workspace, launch

KEYS_AT_ONCE = {
    (2, False): {32: 64, 64: 64, 128: 64, 256: 32},
    (2, True): {32: 64, 64: 64, 128: 32, 256: 32},
    (4, False): {32: 32, 64: 32, 128: 32, 256: 32},
    (4, True): {32: 32, 64: 32, 128: 32, 256: 32},
}
"""Keys of a tile, by bytes of a number, whether there are more than 16 query rows, and padded head size."""

ROWS = {2: 64, 4: 16}
"""Query rows of a tile where there are more than 16, by bytes of a number."""

WARPS = {(2, False): 4, (2, True): 8, (4, False): 8, (4, True): 8}
"""Warps of a program, by bytes of a number, and whether there are more than 16 query rows."""

PROGRAMS = 264
"""Programs that keys are split over, if there are so many: 2 for each of an H200's 132 processors."""

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def rotated(at, there, position, cos, sin, line, lines, HALF: tl.constexpr, H: tl.constexpr, UPCAST: tl.constexpr):
    """Both halves of rows at pointers ``at``, rotated to their positions in fp32 and rounded."""
    dim = tl.arange(0, H)
    inside = there[:, None] & (dim < HALF)[None, :]
    one = tl.load(at[:, None] + dim[None, :], mask=inside, other=0.0)
    two = tl.load(at[:, None] + (HALF + dim)[None, :], mask=inside, other=0.0)
    angle = tl.minimum(tl.maximum(position, 0), lines - 1).to(tl.int64) * line
    c = tl.load(cos + angle[:, None] + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle[:, None] + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    x, y = one.to(tl.float32), two.to(tl.float32)
    one, two = (x * c - y * s).to(one.dtype), (y * c + x * s).to(two.dtype)
    if UPCAST:
        return one.to(tl.float32), two.to(tl.float32)
    else:
        return one, two


@triton.jit
def plain(at, there, SKIP: tl.constexpr, COUNT: tl.constexpr, C: tl.constexpr, UPCAST: tl.constexpr):
    """Dimensions from ``SKIP`` on, as they are."""
    dim = tl.arange(0, C)
    x = tl.load(at[:, None] + (SKIP + dim)[None, :], mask=there[:, None] & (dim < COUNT)[None, :], other=0.0)
    if UPCAST:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def of_region(region, first, second, third):
    """One of three numbers."""
    return tl.where(region == 0, first, tl.where(region == 1, second, third))


@triton.jit
def finish(
    acc, most, total, row, there, sinks, out, lse, head_sinks, asked, DV: tl.constexpr, V: tl.constexpr, SINKS: tl.constexpr
):  # fmt: skip
    """Divide, let the sinks take their weight, and write."""
    if SINKS:
        sink = tl.load(sinks + head_sinks + row // asked, mask=there, other=NOTHING)
        level = tl.maximum(most, sink)
        safe = tl.where(level == NOTHING, 0.0, level)
        kept = tl.exp(most - safe)
        total = total * kept + tl.exp(sink - safe)
        acc = acc * kept[:, None]
        most = level
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    dim = tl.arange(0, V)
    tl.store(out + row[:, None] * DV + dim[None, :], acc.to(out.dtype.element_ty), mask=there[:, None] & (dim < DV)[None, :])
    tl.store(lse + row, tl.where(total == 0.0, NOTHING, most + tl.log(tl.where(total == 0.0, 1.0, total))), mask=there)


@triton.jit
def attend_kernel(
    queries, keys, values, host_keys, host_values, entries, positions, factors, cos, sin, sinks, out, lse, sums, stats, counters,
    heads, entry_heads, m, asked, held, end_0, end_1, split_1, split_2, lo_0, hi_0, lo_1, hi_1, lo_2, hi_2, scale, softcap,
    q_session, q_head, q_row, k_page, k_head, k_token, v_page, v_head, v_token, line, lines,
    DV: tl.constexpr, V: tl.constexpr, HALF: tl.constexpr, H: tl.constexpr, REST: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr,
    SPAN: tl.constexpr, TILES: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, HOST: tl.constexpr, FACTORS: tl.constexpr,
    SOFTCAP: tl.constexpr, SINKS: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (session and head, tile of query rows, split of one Region's entries)."""
    session = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    split = tl.program_id(2)
    region = (split >= split_1).to(tl.int32) + (split >= split_2).to(tl.int32)
    begin = of_region(region, 0, end_0, end_1) + (split - of_region(region, 0, split_1, split_2)) * (TILES * SPAN)
    stop = tl.minimum(of_region(region, end_0, end_1, held), begin + TILES * SPAN)
    low, high = of_region(region, lo_0, lo_1, lo_2), of_region(region, hi_0, hi_1, hi_2)
    pair = session * entry_heads + head % entry_heads
    sessions = (tl.num_programs(0) // heads).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = row < m
    asking = tl.load(positions + (region * sessions * entry_heads + pair) * asked + row % asked, mask=there, other=0)
    at = queries + session * q_session + head * q_head + row.to(tl.int64) * q_row
    if HALF > 0:
        q_one, q_two = rotated(at, there, asking, cos, sin, line, lines, HALF, H, UPCAST)
    if REST > 0:
        q_rest = plain(at, there, 2 * HALF, REST, C, UPCAST)
    factor = scale
    if FACTORS:
        factor = scale * tl.load(factors + (region * sessions + session) * asked + row % asked, mask=there, other=0.0)[:, None]
    most = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V], tl.float32)
    index = tl.arange(0, SPAN * SIZE)
    offset = index % SIZE
    for i in tl.range(0, TILES, num_stages=STAGES):
        place = begin + i * SPAN + index // SIZE
        entry = entries + (pair * held + place) * 4
        slot = tl.load(entry, mask=place < stop, other=-1)
        position = tl.load(entry + 1, mask=place < stop, other=0) + offset
        shown = (offset >= tl.load(entry + 2, mask=place < stop, other=0)) & (offset < tl.load(entry + 3, mask=place < stop, other=0))
        page = slot.to(tl.int64)
        if HOST:
            shown = shown & (slot != -1)
            far = slot < 0
            page = tl.where(far, -2 - page, page)
            k_at = page * k_page + head * k_head + offset * k_token
            v_at = page * v_page + head * v_head + offset * v_token
            # Without the hint a choice of two pointers is read number by number; checks.py holds both pools to it.
            k_at = tl.multiple_of(tl.where(far, host_keys + k_at, keys + k_at), [16])
            v_at = tl.multiple_of(tl.where(far, host_values + v_at, values + v_at), [16])
        else:
            shown = shown & (slot >= 0)
            k_at = keys + page * k_page + head * k_head + offset * k_token
            v_at = values + page * v_page + head * v_head + offset * v_token
        s = tl.zeros([ROWS, SPAN * SIZE], tl.float32)
        if HALF > 0:
            k_one, k_two = rotated(k_at, shown, position, cos, sin, line, lines, HALF, H, UPCAST)
            s = tl.dot(q_one, tl.trans(k_one), s, input_precision="ieee")
            s = tl.dot(q_two, tl.trans(k_two), s, input_precision="ieee")
        if REST > 0:
            s = tl.dot(q_rest, tl.trans(plain(k_at, shown, 2 * HALF, REST, C, UPCAST)), s, input_precision="ieee")
        s *= factor
        if SOFTCAP:
            s = softcap * (1 - 2 / (tl.exp(2 * s / softcap) + 1))
        apart = asking[:, None] - position[None, :]
        s = tl.where(shown[None, :] & (apart >= low) & (apart < high), s, NOTHING)
        level = tl.maximum(most, tl.max(s, axis=1))
        safe = tl.where(level == NOTHING, 0.0, level)
        kept = tl.exp(most - safe)
        p = tl.exp(s - safe[:, None])
        total = total * kept + tl.sum(p, axis=1)
        v = plain(v_at, shown, 0, DV, V, UPCAST)
        acc = tl.dot(p.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
        most = level
    line_out = tl.program_id(0).to(tl.int64) * m
    group = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    head_sinks = head * (m // asked)
    if SPLITS == 1:
        finish(acc, most, total, row, there, sinks, out + line_out * DV, lse + line_out, head_sinks, asked, DV, V, SINKS)
    else:
        tile = tl.arange(0, ROWS)[:, None] * V + tl.arange(0, V)[None, :]
        rows = tl.arange(0, ROWS)
        mine = group * SPLITS + split
        tl.store(sums + mine * (ROWS * V) + tile, acc)
        tl.store(stats + mine * (2 * ROWS) + rows, most)
        tl.store(stats + mine * (2 * ROWS) + ROWS + rows, total)
        tl.debug_barrier()  # all threads have written before one of them says so
        if tl.atomic_add(counters + group, 1, sem="acq_rel") == SPLITS - 1:
            most = tl.full([ROWS], NOTHING, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, V], tl.float32)
            for i in tl.range(0, SPLITS):
                other = group * SPLITS + i
                its_most = tl.load(stats + other * (2 * ROWS) + rows, cache_modifier=".cg")
                its_total = tl.load(stats + other * (2 * ROWS) + ROWS + rows, cache_modifier=".cg")
                level = tl.maximum(most, its_most)
                safe = tl.where(level == NOTHING, 0.0, level)
                kept, its = tl.exp(most - safe), tl.exp(its_most - safe)
                acc = acc * kept[:, None] + tl.load(sums + other * (ROWS * V) + tile, cache_modifier=".cg") * its[:, None]
                total = total * kept + its_total * its
                most = level
            finish(acc, most, total, row, there, sinks, out + line_out * DV, lse + line_out, head_sinks, asked, DV, V, SINKS)
            tl.store(counters + group, 0)


def attend(
    queries: Tensor, pool: Pool, regions: Regions, rotation: Rotation | None, rule: LogitRule, *, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.paged.attend`."""
    checks.check_attend(queries, pool, regions, rotation, rule.sinks)
    rows, heads, m, dim = queries.shape
    out = torch.empty((rows, heads, m, pool.values.shape[-1]), dtype=queries.dtype, device=queries.device)
    lse = torch.empty((rows, heads, m), dtype=torch.float32, device=queries.device)
    if not out.numel():
        return out, lse
    shape = _shape(dim, pool, rotation, m)
    cuts = -(-m // shape["ROWS"])
    splits = _splits(rows * heads * cuts, regions, shape["SPAN"])
    count = splits["SPLITS"]
    partial = torch.empty(
        (rows * heads * cuts * count if count > 1 else 1, shape["ROWS"], shape["V"] + 2), dtype=torch.float32, device=queries.device
    )
    sums, stats = partial.view(-1)[: partial[..., 2:].numel()], partial.view(-1)[partial[..., 2:].numel() :]
    workspace = workspace or Workspace()
    entries, positions = regions.entries.contiguous(), regions.positions.contiguous()
    arguments = (
        *(queries, pool.keys, pool.values, *_host(pool), entries, positions),
        *_tables(queries, regions.factors, rotation, rule.sinks),
        *(out, lse, sums, stats, workspace.zeros(queries.device, rows * heads * cuts), heads, entries.shape[1], m, positions.shape[3]),
        *(entries.shape[2], *_regions(regions, splits.pop("first_1"), splits.pop("first_2")), float(rule.scale), float(rule.softcap or 0)),
        *(*queries.stride()[:3], *pool.keys.stride()[:3], *pool.values.stride()[:3]),
        *((0, 1) if rotation is None else (rotation.cos.stride(0), len(rotation.cos))),
    )
    flags = {
        "HOST": pool.host_keys is not None,
        "FACTORS": regions.factors is not None,
        "SOFTCAP": rule.softcap is not None,
        "SINKS": rule.sinks is not None,
        "UPCAST": bool(triton.knobs.runtime.interpret) and queries.dtype == torch.bfloat16,
    }
    launch(attend_kernel, (rows * heads, cuts, count), arguments, workspace, **shape, **splits, **flags)
    return out, lse


def _shape(dim: int, pool: Pool, rotation: Rotation | None, m: int) -> dict[str, int]:
    """Tile sizes."""
    size, dv, wide = pool.keys.shape[2], pool.values.shape[-1], pool.keys.element_size()
    half = 0 if rotation is None else rotation.cos.shape[1] // 2
    kind = wide, m > 16
    keys = max(1, KEYS_AT_ONCE[kind][max(32, _padded(max(dim, dv)))] // size)
    shape = {"DV": dv, "V": _padded(dv), "HALF": half, "H": _padded(half), "REST": dim - 2 * half, "C": _padded(dim - 2 * half)}
    warps = WARPS[kind] if dim < 256 or wide < 4 else 16
    return {**shape, "SIZE": size, "SPAN": keys, "ROWS": ROWS[wide] if m > 16 else 16, "num_warps": warps}


def _splits(groups: int, regions: Regions, span: int) -> dict[str, int]:
    """How entries are split over programs: none holds those of two Regions."""
    sizes = [end - begin for begin, end in zip((0, *regions.ends), regions.ends, strict=False)]
    run = max(1, sum(-(-size // span) for size in sizes) * groups // PROGRAMS)
    run = 1 << (run - 1).bit_length()  # few values, since each is a kernel of its own
    counts = [-(-size // (span * run)) for size in sizes] + [0, 0]
    first_1, first_2, total = counts[0], counts[0] + counts[1], max(1, sum(counts))
    return {"TILES": run, "SPLITS": total, "STAGES": 2 if run > 1 else 1, "first_1": first_1, "first_2": first_2}


def _regions(regions: Regions, first_1: int, first_2: int) -> tuple[int, ...]:
    """Ends, first splits and bands of three Regions; those that are not there never begin."""
    held, count = regions.entries.shape[2], len(regions.ends)
    ends = (*regions.ends, held, held)
    never = 1 << 30
    bands = [*regions.bands, (0, 0), (0, 0)][:3]
    starts = (first_1 if count > 1 else never, first_2 if count > 2 else never)
    return (*ends[:2], *starts, *(edge for band in bands for edge in band))


def _host(pool: Pool) -> tuple[Tensor, Tensor]:
    if pool.host_keys is None or pool.host_values is None:
        return pool.keys, pool.values
    return pool.host_keys, pool.host_values


def _tables(queries: Tensor, factors: Tensor | None, rotation: Rotation | None, sinks: Tensor | None) -> list[Tensor]:
    """A pointer for each argument, whether it is read or not."""
    cos, sin = (None, None) if rotation is None else (rotation.cos, rotation.sin)
    given = (None if factors is None else factors.contiguous(), cos, sin, sinks)
    return [queries if x is None else x for x in given]


def _padded(dim: int) -> int:
    return max(16, 1 << max(0, dim - 1).bit_length())
