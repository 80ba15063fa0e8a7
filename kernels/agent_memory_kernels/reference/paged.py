"""Plain-torch definition of scoring and choosing Blocks that lie in pages: what the kernels must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..paging import Codes, Pages, Placed, Timeline, Workspace
from . import dense
from .dense import EMPTY
from .paged_attention import attend, borders, place, place_chosen, summarize

__all__ = [
    "attend",
    "certify",
    "place",
    "rescore",
    "score",
    "score_codes",
    "score_int8",
    "select",
    "select_and_place",
    "summarize",
    "tally",
]

ROUNDING = 2.0**-24
"""Relative error of one rounding in fp32."""

LEAST = 2.0**-118
"""Covers what underflows in up to 256 products, also where numbers below 2**-126 count as 0."""

LARGEST = 1e38
"""Sums of larger numbers may overflow on the way, whatever they come to."""


def score(queries: Tensor, keys: Tensor, pages: Pages, *, each: bool = False, workspace: Workspace | None = None) -> Tensor:
    """The best product of each Block's keys with the query rows, in fp32; a product that is NaN counts for nothing.

    Args:
        queries: ``[R, S, m, d]``, not rotated; fp16, bf16 or fp32.
        keys: pool ``[P, S, B, d]`` of the same dtype; means are Blocks of one token.
        pages: where each row's Blocks are.
        each: keep the query rows apart.
        workspace: not used.

    Returns:
        fp32 ``[R, S, N]``, or ``[R, S, m, N]`` for ``each``; ``-inf`` where there is no Block.
    """
    checks.check_score(queries, keys, pages)
    products = torch.einsum("rsmd,rnsbd->rsmnb", queries.float(), _of_pages(keys, pages.table).float())
    there = _there(pages, pages.table.shape[1], keys.shape[2])
    products = products.masked_fill(~there[:, None, None] | products.isnan(), EMPTY)
    best = products.amax(-1)
    return best if each else best.amax(2)


def score_int8(queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of what ``score`` gives for the keys that ``codes`` were made from, in whatever order it adds.

    Queries are split in two 8-bit parts of steps that are powers of two, so that the split loses nothing but its rest, and products of
    codes are exact integers. See :func:`split` and :func:`reach` for the bound.

    Args:
        queries: ``[R, S, m, d]``; fp16, bf16 or fp32.
        codes: 8-bit keys of the pool.
        pages: where each row's Blocks are.
        workspace: not used.

    Returns:
        lower and upper, fp32 ``[R, S, N]``; both ``-inf`` where there is no Block.
    """
    checks.check_score_codes(queries, codes, pages)
    dim, size = queries.shape[3], codes.codes.shape[2]
    whole, step, length, rest = split(queries.float())
    products = torch.einsum("rsmd,rnsbd->rsmnb", whole.double(), _of_pages(codes.codes, pages.table).double()).float()
    scale, residual = (_of_pages(x, pages.table).permute(0, 2, 1, 3)[:, :, None] for x in (codes.scale, codes.residual))
    off = reach(length[..., None, None], rest[..., None, None], scale, residual, dim)
    middle = (products * step[..., None, None] * scale).masked_fill(off.isinf(), 0.0)
    there = _there(pages, pages.table.shape[1], size)[:, None, None]
    lower, upper = (x.masked_fill(~there, EMPTY).amax((2, 4)) for x in (middle - off, middle + off))
    return lower, upper


def score_codes(queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> Tensor:
    """The best ``scale * (q . codes)`` each query row has with any key of each Block, in fp32; what is NaN counts for nothing.

    Args:
        queries: ``[R, S, m, d]``, not rotated; fp16, bf16 or fp32. They are not rounded.
        codes: 8-bit keys of the pool; their residuals are not read, so a key that was not finite gives 0.
        pages: where each row's Blocks are.
        workspace: not used.

    Returns:
        fp32 ``[R, S, m, N]``; ``-inf`` where there is no Block.
    """
    checks.check_score_codes(queries, codes, pages)
    products = torch.einsum("rsmd,rnsbd->rsmnb", queries.float(), _of_pages(codes.codes, pages.table).float())
    products = products * _of_pages(codes.scale, pages.table).permute(0, 2, 1, 3)[:, :, None]
    there = _there(pages, pages.table.shape[1], codes.codes.shape[2])[:, None, None]
    return products.masked_fill(~there | products.isnan(), EMPTY).amax(-1)


def split(queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries as whole numbers of a small step, of which the first 7 bits and the last 7 fit 8-bit products.

    Returns:
        whole numbers fp32 ``[..., d]`` (``128 * high + low``), their step ``[...]``, the norm of each query rounded up, and the norm of
        what the whole numbers miss, rounded up. A query that is not finite gets zeros and an infinite norm.
    """
    most = queries.abs().amax(-1)
    finite = most.isfinite()
    queries = queries.masked_fill(~finite[..., None], 0.0)
    mantissa, exponent = torch.frexp(most.masked_fill(~finite, 0.0).clamp(min=2.0**-100) / 127)
    coarse = torch.ldexp(torch.ones_like(most), torch.where(mantissa == 0.5, exponent - 1, exponent))
    high = (queries / coarse[..., None] + 0.5).floor()
    step = coarse / 128
    low = ((queries - high * coarse[..., None]) / step[..., None] + 0.5).floor()
    whole = 128 * high + low
    up = 1 + (queries.shape[-1] + 16) * ROUNDING
    rest = ((queries - whole * step[..., None]) / step[..., None]).norm(dim=-1) * step * up
    length = ((queries / coarse[..., None]).norm(dim=-1) * coarse * up).masked_fill(~finite, math.inf)
    return whole, step, length, rest


def reach(length: Tensor, rest: Tensor, scale: Tensor, residual: Tensor, dim: int) -> Tensor:
    """How far a product can be from that of the codes.

    A key is at most ``127 * sqrt(d) * scale`` long without its residual. The codes miss ``|q| * residual``, the split of the query
    ``rest * |k|``. ``d`` roundings each of both sums lie within ``4 * (d + 8)`` roundings of ``|q| |k|``, also where a sum is cut off
    instead of rounded, as tensor cores do. Products that underflow lie within ``LEAST``.
    """
    rounding = 4 * (dim + 8) * ROUNDING
    longest = scale * (127 * math.sqrt(dim) * (1 + 8 * ROUNDING)) + LEAST / 256
    off = length * (residual * (1 + rounding) + longest * rounding) + rest * longest
    off = off * (1 + 16 * ROUNDING) + LEAST
    return off.masked_fill(off.isnan() | (length * (longest + residual) > LARGEST), math.inf)


def rescore(
    queries: Tensor, keys: Tensor, pages: Pages, listed: Tensor, *, by_token: bool = False, workspace: Workspace | None = None
) -> Tensor:
    """As :func:`score`, of listed Blocks only.

    Args:
        queries: ``[R, S, m, d]``, not rotated.
        keys: pool ``[P, S, B, d]``.
        pages: where each row's Blocks are.
        listed: int32 ``[R, S, C]``, Blocks all query rows of a KV head look at together, -1 padded; or ``[R, S, m, C]``, Blocks of each
            query row alone (``by_token`` only).
        by_token: give the score of every token instead of the Block's best.
        workspace: not used.

    Returns:
        fp32 ``[..., C]``, or ``[..., C * B]`` for ``by_token``; ``-inf`` where there is nothing.
    """
    checks.check_score(queries, keys, pages)
    checks.check_listed(queries, listed, by_token)
    rows, heads, m, _ = queries.shape
    lists = listed if listed.dim() == 4 else listed[:, :, None]
    table = pages.table[torch.arange(rows, device=listed.device)[:, None, None, None], lists.clamp(min=0)]
    each = keys[table.clamp(min=0), torch.arange(heads, device=listed.device)[None, :, None, None]]
    products = torch.einsum("rsmd,rszcbd->rsmzcb", queries.float(), each.float())
    of_row = torch.arange(m, device=listed.device)
    products = products[:, :, of_row, of_row] if listed.dim() == 4 else products[:, :, :, 0]
    there = _there(pages, pages.table.shape[1], keys.shape[2])
    shown = there[torch.arange(rows, device=listed.device)[:, None, None, None], lists.clamp(min=0)] & (lists >= 0)[..., None]
    products = products.masked_fill(~shown | products.isnan(), EMPTY)
    best = products if listed.dim() == 4 else products.amax(2)
    return best.flatten(-2) if by_token else best.amax(-1)


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
    """The ``count`` best of each row; equal ones go to the lower index, ``-inf`` and NaN (of integers: 0 and less) are never chosen.

    Args:
        scores: fp32 or int32 ``[R, ..., n]``.
        count: how many.
        starts: int32 ``[R]``, the first of a row's scores that counts; None is 0.
        lengths: int32 ``[R]``, where those that count end; None is all.
        names: int32 ``[R, ..., n / size]``, ascending where chosen: ``names * size + offset`` is given back instead of indices.
        size: scores that share a name, in the order of their offsets.
        workspace: not used.

    Returns:
        int32 ``[R, ..., count]`` ascending, padded with -1.
    """
    checks.check_select(scores, count, (starts, lengths), names, size)
    chosen = dense.select(_votes(scores, starts, lengths), count).to(torch.int32)
    if names is None:
        return chosen
    index = chosen.clamp(min=0).long()
    named = torch.gather(torch.nn.functional.pad(names, (0, 1)), -1, index // size) * size + (index % size).to(torch.int32)
    return named.masked_fill(chosen < 0, -1)


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
    """Everything that can be among the best ``count``: whose upper bound reaches the ``count``-th largest lower bound.

    Args:
        lower: fp32 ``[R, ..., n]``, at most the true score.
        upper: fp32, at least the true score; ``-inf`` where there is nothing.
        count: how many are wanted.
        capacity: room for candidates.
        starts: int32 ``[R]``, the first of a row's scores that counts; None is 0.
        lengths: int32 ``[R]``, where those that count end; None is all.
        workspace: not used.

    Returns:
        int32 ``[R, ..., capacity]`` ascending, padded with -1 (those with the largest upper bounds, if there is no room for all), and
        int32 ``[R, ...]``, how many there are: more than ``capacity`` if they did not fit.
    """
    checks.check_certify(lower, upper, count, capacity, (starts, lengths))
    low, high = _votes(lower, starts, lengths), _votes(upper, starts, lengths)
    take = min(count, lower.shape[-1])
    level = torch.topk(low, take, dim=-1).values[..., -1:] if take == count else torch.full_like(low[..., :1], EMPTY)
    can = (high >= level) & (high > EMPTY)
    listed = dense.select(high.masked_fill(~can, EMPTY), capacity)
    return listed.to(torch.int32), can.sum(-1, dtype=torch.int32)


def tally(named: Tensor, width: int, *, workspace: Workspace | None = None) -> Tensor:
    """How often each index is named: int32 ``[R, ...]`` (negative ones are nothing) to int32 ``[R, width]``."""
    checks.check_tally(named, width)
    flat = named.flatten(1).long()
    outside = (flat < 0) | (flat >= width)
    counts = torch.zeros((len(flat), width + 1), dtype=torch.int32, device=named.device)
    return counts.scatter_add_(1, flat.masked_fill(outside, width), torch.ones_like(flat, dtype=torch.int32))[:, :width].contiguous()


def select_and_place(
    scores: Tensor, count: int, timeline: Timeline, size: int, *, names: Tensor | None = None, workspace: Workspace | None = None
) -> tuple[Tensor, Placed]:
    """:func:`select` among Blocks with a token from the sinks' end up to the stop, and :func:`place`.

    Args:
        scores: fp32 ``[R, S or 1, n]``; index = Block, or position in ``names``.
        count: how many.
        timeline: what stands around them.
        size: ``B``, tokens of a Block.
        names: int32 of the shape of scores: Blocks that the scores are of, ascending, -1 padded.
        workspace: not used.

    Returns:
        int32 ``[R, S or 1, count]`` chosen Blocks, ascending, padded with -1; and where everything stands.
    """
    checks.check_select_and_place(scores, count, timeline, size, names)
    blocks = names if names is not None else torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    sink, stop, _ = (x[:, None, None] for x in borders(timeline))
    between = (blocks >= 0) & ((blocks + 1) * size > sink) & (blocks * size < stop) & (sink < stop)
    chosen = select(scores.masked_fill(~between, EMPTY), count, names=names)
    return chosen, place_chosen(chosen, timeline, size)


def _votes(scores: Tensor, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    if scores.dtype == torch.int32:
        votes = scores.double().masked_fill(scores <= 0, EMPTY)
    else:
        votes = scores.masked_fill(scores.isnan(), EMPTY)
    index = torch.arange(scores.shape[-1], device=scores.device)
    if starts is not None:
        votes = votes.masked_fill(index < starts.view(-1, *[1] * (scores.dim() - 1)), EMPTY)
    if lengths is not None:
        votes = votes.masked_fill(index >= lengths.view(-1, *[1] * (scores.dim() - 1)), EMPTY)
    return votes


def _of_pages(pool: Tensor, table: Tensor) -> Tensor:
    """``[R, N, S, B, ...]`` of a pool ``[P, S, B, ...]``; whatever is on page 0 where there is none."""
    return pool[table.clamp(min=0).long()]


def _there(pages: Pages, capacity: int, size: int) -> Tensor:
    """Bool ``[R, N, B]``: tokens there are."""
    index = torch.arange(capacity, device=pages.table.device)
    block = (pages.table >= 0) & (index < pages.counts[:, None])
    token = index[:, None] * size + torch.arange(size, device=pages.table.device)
    there = block[..., None].expand(-1, -1, size)
    return there if pages.tokens is None else there & (token < pages.tokens[:, None, None])
