"""Attention weights of 8-bit keys, by products in fp32 or of integers.

Shapes as in ``dense``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scan import FINE, in_15_bits, multiply_in_parts

LOGITS_HELD = 1 << 18
"""Logits held at most, so that they stay in a CPU's cache until their weights are known."""

KEYS_WIDENED = 2048
"""Keys widened to fp32 at a time, so that they stay in a CPU's cache until they are multiplied."""

KEYS_AT_ONCE = 4096
"""Keys in one product of integers at most. Few shapes, since a CPU keeps a compiled kernel for each one it has seen."""

LARGEST = 69.0
"""Of a logit above its reference, that thousands of weights can be added up in fp32."""

LINE = 8
"""Columns of integers that a product of matrices takes no longer for than for fewer."""


@dataclass(frozen=True, slots=True)
class Span:
    """Keys that follow each other, and queries as they meet them.

    Attributes:
        queries: ``[S, rows, d]``, rotated to where these keys are.
        keys: for each key head, int8 ``[n, block, d]`` and the fp32 step ``[n]`` of each Block's grid.
        offset: fp32 ``[S, rows]``, added to logits before they are capped; None is 0.
    """

    queries: Tensor
    keys: Sequence[tuple[Tensor, Tensor]]
    offset: Tensor | None = None


def key_weights(
    spans: Sequence[Span], scale: float, reference: Tensor, out: Tensor, softcap: float | None = None, *, integers: bool = False
) -> None:
    """Attention weights of keys, relative to a reference: ``exp(logit - reference)``.

    Args:
        spans: the keys, in order; all of as many key heads and rows.
        scale: logit factor.
        reference: fp32 ``[S, rows]``, a logit; best one that no sum of weights exceeds by far.
        out: fp32 ``[S, keys, rows]``, contiguous for each head.
        softcap: logits become ``softcap * tanh(logits / softcap)``.
        integers: multiply integers: keys as they are, and queries in 15 bits. For few rows that is several times as fast on a CPU. Many
            rows are multiplied in fp32 as fast, and then no pass is needed that makes logits of integers.
    """
    if integers:
        _integer_weights(spans, scale, reference, out, softcap)
        return
    at = 0
    for span in spans:
        for head, keys in enumerate(span.keys):
            stop = at + keys[0].shape[0] * keys[0].shape[1]
            offset = None if span.offset is None else span.offset[head]
            _widened_weights(span.queries[head], keys, scale, reference[head], out[head, at:stop], softcap, offset)
        at = stop


def _integer_weights(spans: Sequence[Span], scale: float, reference: Tensor, out: Tensor, softcap: float | None) -> None:
    """Write weights to ``out``.

    A query has one unit for all spans, its norm, which no rotation changes: one product makes logits of the integers of all of them.
    """
    queries = torch.stack([span.queries for span in spans]).float()
    heads, rows, dim = queries.shape[1:]
    unit = queries[0].norm(dim=-1).clamp_(min=1e-30).div_(127)
    coarse, fine = in_15_bits(queries, unit[..., None])
    width = -(-2 * rows // LINE) * LINE
    planes = torch.zeros((len(spans), heads, dim, width), dtype=torch.int8, device=out.device)
    planes[..., :rows], planes[..., rows : 2 * rows] = coarse.transpose(2, 3), fine.transpose(2, 3)
    products = torch.empty((heads, out.shape[1], width), dtype=torch.int32, device=out.device)
    at = 0
    for span, columns in zip(spans, planes, strict=True):
        for head, (codes, _) in enumerate(span.keys):
            flat = codes.flatten(0, 1)
            multiply_in_parts(flat, columns[head], products[head, at : at + len(flat)], KEYS_AT_ONCE)
        at += len(flat)
    together = torch.zeros((heads, width, rows), device=out.device)
    steps = torch.diag_embed(unit * (scale / FINE))
    together[:, :rows], together[:, rows : 2 * rows] = steps * FINE, steps
    torch.bmm(products.float(), together, out=out)
    _rescale(spans, reference, out, softcap)
    if softcap is not None:
        out.div_(softcap).tanh_().mul_(softcap).sub_(reference[:, None])
    out.clamp_(max=LARGEST).exp_()


def _rescale(spans: Sequence[Span], reference: Tensor, products: Tensor, softcap: float | None) -> None:
    """Multiply products with the codes of keys by the steps of their Blocks, add offsets, and where no cap comes between subtract the
    reference."""
    block, at = spans[0].keys[0][0].shape[1], 0
    for span in spans:
        stop = at + len(span.keys[0][0]) * block
        added = torch.zeros_like(reference) if span.offset is None else span.offset
        if softcap is None:
            added = added - reference
        for some, (_, steps), one in zip(products[:, at:stop], span.keys, added, strict=True):
            by_block = some.view(-1, block, some.shape[-1])
            torch.addcmul(one, by_block, steps[:, None, None], out=by_block)
        at = stop


def _widened_weights(
    queries: Tensor,
    keys: tuple[Tensor, Tensor],
    scale: float,
    reference: Tensor,
    out: Tensor,
    softcap: float | None,
    offset: Tensor | None,
) -> None:
    """Write the weights of one head's keys in one span."""
    codes, steps = keys
    columns = (queries.float() * scale).T.contiguous()
    before = torch.zeros_like(reference) if offset is None else offset
    added = before - reference if softcap is None else before
    few = len(queries) < codes.shape[2]  # then fewer logits than numbers of keys have to be multiplied by a step
    step = max(1, min(KEYS_WIDENED, LOGITS_HELD // len(queries)) // codes.shape[1])
    for some, grid, logits in zip(codes.split(step), steps.split(step), out.split(step * codes.shape[1]), strict=True):
        if few:
            torch.mm(some.float().flatten(0, 1), columns, out=logits)
            by_block = logits.view(len(some), -1, len(queries))
            torch.addcmul(added, by_block, grid[:, None, None], out=by_block)
        else:
            torch.addmm(added, (some.float() * grid[:, None, None]).flatten(0, 1), columns, out=logits)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap).sub_(reference)
        logits.clamp_(max=LARGEST).exp_()
