"""Plain-torch definition of placing, attending to and summarising Blocks that lie in pages: what the kernels must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..paging import Codes, LogitRule, Placed, Pool, Regions, Rotation, Timeline, Workspace
from .dense import EMPTY


def borders(timeline: Timeline) -> tuple[Tensor, Tensor, Tensor]:
    """Where the sinks end, where local tokens begin, and the length, in order: int32 ``[R]`` each."""
    sink = torch.minimum(timeline.sinks, timeline.lengths)
    return sink, torch.minimum(torch.maximum(timeline.stops, sink), timeline.lengths), timeline.lengths


def place(blocks: Tensor, timeline: Timeline, size: int, *, workspace: Workspace | None = None) -> Placed:
    """Chosen Blocks between sink and local tokens, at packed positions: each token stands at its rank among what is attended.

    Args:
        blocks: int32 ``[R, S or 1, n]`` ascending, padded with -1; of each, the tokens from the sinks' end up to the stop are seen.
        timeline: what stands around them.
        size: ``B``, tokens of a Block.
        workspace: not used.
    """
    checks.check_blocks(blocks, timeline, size)
    return place_chosen(blocks, timeline, size)


def place_chosen(blocks: Tensor, timeline: Timeline, size: int) -> Placed:
    """:func:`place` of what has been checked."""
    rows, heads, _ = blocks.shape
    sink, stop, length = (x[:, None, None].long() for x in borders(timeline))
    index = torch.arange(timeline.table.shape[1], device=blocks.device)
    first = index[: timeline.sink_blocks].expand(rows, heads, -1)
    begin = _entries(first, torch.zeros_like(sink), sink, first * size, timeline.table, size)
    seen = ((stop - blocks * size).clamp(0, size) - (sink - blocks * size).clamp(0, size)).clamp(min=0).masked_fill(blocks < 0, 0)
    start = sink + seen.cumsum(-1) - seen
    middle = _entries(blocks.long(), sink, stop, start - (sink - blocks * size).clamp(0, size), timeline.table, size)
    done = sink + seen.sum(-1, keepdim=True)
    last = torch.div(stop, size, rounding_mode="floor") + torch.arange(timeline.local_blocks, device=blocks.device)
    end = _entries(last.expand(rows, heads, -1), stop, length, done + last * size - stop, timeline.table, size)
    whole = done + length - stop
    asked = torch.arange(timeline.queries, device=blocks.device) - timeline.queries
    missed = (sink - first.shape[-1] * size).clamp(min=0) + (length - (last[..., -1:] + 1) * size).clamp(min=0)
    entries = torch.cat([begin, _empty(begin, timeline.sink_blocks - first.shape[-1]), middle, end], dim=2)
    return Placed(
        entries.to(torch.int32),
        (whole + asked).clamp(min=0).expand(rows, heads, -1).to(torch.int32).contiguous(),
        missed[..., 0].expand(rows, heads).to(torch.int32).contiguous(),
    )


def _empty(like: Tensor, count: int) -> Tensor:
    return like.new_tensor([-1, 0, 0, 0]).expand(*like.shape[:2], count, 4)


def _entries(blocks: Tensor, start: Tensor, stop: Tensor, position: Tensor, table: Tensor, size: int) -> Tensor:
    """Entries ``[R, S, n, 4]`` of Blocks of which tokens ``[start, stop)`` are seen; nothing where none is."""
    first, end = ((edge - blocks * size).clamp(0, size) for edge in (start, stop))
    there = (blocks >= 0) & (blocks < table.shape[1]) & (end > first)
    slot = table.long()[torch.arange(len(table), device=table.device)[:, None, None], blocks.clamp(0, table.shape[1] - 1)]
    there &= slot != -1
    parts = torch.stack([slot, position.expand_as(slot), first, end], dim=-1)
    return torch.where(there[..., None], parts, parts.new_tensor([-1, 0, 0, 0]))


def attend(
    queries: Tensor, pool: Pool, regions: Regions, rotation: Rotation | None, rule: LogitRule, *, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over the entries of all Regions, merged; keys and queries are rotated at the positions they have in each.

    Args:
        queries: ``[R, S, m, d]``, not rotated; row ``h * T + t`` is query ``t`` of the group's query head ``h``.
        pool: keys and values, not rotated, of the same dtype.
        regions: which keys, where they stand, who sees them.
        rotation: rotary tables; None rotates nothing. Done in fp32, then rounded to the dtype of the queries.
        rule: scale, softcap, sinks.
        workspace: not used.

    Returns:
        ``[R, S, m, dv]`` in the dtype of the queries (0 where a row sees nothing) and the log-sum-exp ``[R, S, m]`` fp32, of the sinks
        too.
    """
    checks.check_attend(queries, pool, regions, rotation, rule.sinks)
    logits, values, begin = [], [], 0
    for at, (end, band) in enumerate(zip(regions.ends, regions.bands, strict=True)):
        logits.append(_logits(queries, pool, regions, at, begin, end, band, rotation, rule))
        values.append(_slots(regions.entries[:, :, begin:end, 0], pool.values, pool.host_values).flatten(2, 3))
        begin = end
    return _softmax(torch.cat(logits, -1), torch.cat(values, 2), rule, regions.positions.shape[3], queries.dtype)


def _logits(
    queries: Tensor,
    pool: Pool,
    regions: Regions,
    at: int,
    begin: int,
    end: int,
    band: tuple[int, int],
    rotation: Rotation | None,
    rule: LogitRule,
) -> Tensor:
    """fp32 ``[R, S, m, n * B]`` of one Region, ``-inf`` where a key is not seen."""
    size, times = pool.keys.shape[2], queries.shape[2] // regions.positions.shape[3]
    slot, position, first, stop = (x.long() for x in regions.entries[:, :, begin:end].unbind(-1))
    offset = torch.arange(size, device=queries.device)
    there = ((slot[..., None] != -1) & (offset >= first[..., None]) & (offset < stop[..., None])).flatten(2)
    of_key = (position[..., None] + offset).flatten(2)
    of_query = regions.positions[at].long().repeat(1, 1, times)
    keys = _slots(slot, pool.keys, pool.host_keys).flatten(2, 3)
    rotated = _rotate(queries, of_query, rotation), _rotate(keys, of_key, rotation)
    logits = torch.matmul(rotated[0].float(), rotated[1].float().transpose(-1, -2)) * rule.scale
    if regions.factors is not None:
        logits = logits * regions.factors[at].repeat(1, times)[:, None, :, None]
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    apart = of_query[..., None] - of_key[:, :, None]
    return logits.masked_fill(~(there[:, :, None] & (apart >= band[0]) & (apart < band[1])), EMPTY)


def _slots(slots: Tensor, own: Tensor, host: Tensor | None) -> Tensor:
    """``[R, S, E, B, d]`` of slots ``[R, S or 1, E]``; zeros where there is nothing."""
    head = torch.arange(own.shape[1], device=own.device)[None, :, None]
    slots = slots.long().expand(-1, own.shape[1], -1)
    found = own[slots.clamp(min=0), head] if len(own) else own.new_zeros((*slots.shape, *own.shape[2:]))
    if host is not None and len(host):
        far = host.to(own.device)[(-2 - slots).clamp(min=0), head]
        found = torch.where((slots < -1)[..., None, None], far, found)
    return found.masked_fill((slots == -1 if host is not None else slots < 0)[..., None, None], 0)


def _rotate(x: Tensor, positions: Tensor, rotation: Rotation | None) -> Tensor:
    """``x [R, S, n, d]`` at ``positions [R, S or 1, n]``."""
    if rotation is None:
        return x
    half = rotation.cos.shape[1] // 2
    at = positions.clamp(0, len(rotation.cos) - 1)
    cos, sin = rotation.cos[at, :half].float(), rotation.sin[at, :half].float()
    one, two = x[..., :half].float(), x[..., half : 2 * half].float()
    return torch.cat([(one * cos - two * sin).to(x.dtype), (two * cos + one * sin).to(x.dtype), x[..., 2 * half :]], dim=-1)


def _softmax(logits: Tensor, values: Tensor, rule: LogitRule, queries: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if rule.sinks is not None:
        spread = rule.sinks.float().view(1, logits.shape[1], -1, 1).expand(len(logits), -1, -1, queries)
        logits = torch.cat([logits, spread.reshape(*logits.shape[:3], 1)], dim=-1)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == EMPTY, 0.0)[..., None])[..., : values.shape[2]]
    return torch.matmul(weights, values.float()).to(dtype), lse


def summarize(keys: Tensor, pages: Tensor, means: Tensor, codes: Codes | None, *, workspace: Workspace | None = None) -> None:
    """Write the mean and the 8-bit keys of new pages, each on the line of its page.

    Args:
        keys: pool ``[P, S, B, d]``, not rotated.
        pages: int32 ``[n]`` of full Blocks; negative ones are nothing.
        means: fp32 ``[P, S, d]``, written to.
        codes: written to; None keeps means only.
        workspace: not used.
    """
    checks.check_summarize(keys, pages, means, codes)
    new = pages[pages >= 0].long()
    means[new] = keys[new].float().mean(2)
    if codes is not None:
        codes.codes[new], codes.scale[new], codes.residual[new] = quantise(keys[new])


def quantise(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys ``[..., d]`` on a symmetric 8-bit grid of their own: codes, step, and at least the norm of what that lost."""
    exact = keys.double()
    largest = exact.abs().amax(-1)
    finite = largest.isfinite()
    scale = torch.where(finite, largest / 127, 0.0).float()
    step = scale.double()[..., None]
    codes = torch.where(step > 0, (exact / step).round().clamp(-127, 127), 0.0)
    lost = (exact - step * codes).norm(dim=-1).float()
    residual = torch.where(lost > 0, torch.nextafter(lost, torch.full_like(lost, math.inf)), lost)
    return codes.to(torch.int8), scale, torch.where(finite, residual, math.inf)
