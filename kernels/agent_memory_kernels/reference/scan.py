"""Scans of 8-bit keys, defined by integer products: the best key of each Block, with or without a bound on what rounding did.

Shapes as in ``dense``. Integers have one result whatever the order and the shape of the sums, so what is chosen does not depend on how
keys are cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS_AT_ONCE = 128
"""Blocks in one product at most. Few shapes, since a CPU keeps a compiled kernel for each one it has seen."""

FEW = 8
"""Queries of a scan, if there are no more."""

FINE = 254
"""Steps of the finer row of integers of a query in one of the coarser; their sum of d products stays below 2**31 up to d = 500."""

ROWS = 32
"""Queries of a scan are filled up to a multiple of this, so that a pass over integers has no remainder."""


def block_maxima(queries: Tensor, keys: list[list[tuple[Tensor, Tensor]]], scale: float) -> Tensor:
    """The best product each query has with any key of each Block, both in 8 bits; the products themselves are never all held.

    Args:
        queries: ``[S, rows, d]``, not rotated; each is rounded to 127 steps of its own.
        keys: for each key head, pairs that follow each other: int8 ``[*, block, d]``, and the fp32 step ``[*]`` of each Block's grid.
        scale: logit factor.

    Returns:
        ``[S, rows, blocks]`` fp32.
    """
    heads, rows, _ = queries.shape
    asked = torch.nn.functional.pad(queries.float(), (0, 0, 0, _filled(rows) - rows))
    unit = asked.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
    whole = (asked / unit).round_().to(torch.int8).transpose(1, 2)
    blocks = sum(len(part) for part, _ in keys[0])
    best = torch.empty((blocks, asked.shape[1]), dtype=torch.int32, device=queries.device)
    out = torch.empty((heads, rows, blocks), device=queries.device)
    for head in range(heads):
        _best_of_blocks(whole[head], [part for part, _ in keys[head]], best)
        torch.mul(best[:, :rows].transpose(0, 1), torch.cat([steps for _, steps in keys[head]]), out=out[head])
    return out.mul_(unit[:, :rows] * scale)


def block_bounds(queries: Tensor, keys: list[list[tuple[Tensor, Tensor, Tensor]]], scale: float) -> tuple[Tensor, Tensor]:
    """The best product each query has with any key of each Block, from 8-bit keys, and how far it can be from the true one.

    Queries are taken in 15 bits, as two rows of integers, so that what is lost is what was lost of the keys.

    Args:
        queries: ``[S, rows, d]``, not rotated.
        keys: for each key head, parts that follow each other: int8 ``[*, block, d]``, the fp32 step ``[*]`` of each Block's grid and its
            fp32 radius ``[*]``, no less than the norm of what any of its keys lost, fp32 rounding of a product included.
        scale: logit factor, positive.

    Returns:
        fp32 ``[S, rows, blocks]`` twice: estimates, and bounds of ``|true - estimate|`` by Cauchy and Schwarz.
    """
    heads, rows, dim = queries.shape
    asked = queries.float()
    unit = asked.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
    coarse = (asked / unit).round_()
    fine = ((asked - coarse * unit) / (unit / FINE)).round_().clamp_(-127, 127)
    norm = asked.norm(dim=-1) * (1 + (dim + 3) * 2.0**-24)
    planes = torch.nn.functional.pad(torch.cat([coarse, fine], 1), (0, 0, 0, _filled(2 * rows) - 2 * rows)).to(torch.int8).transpose(1, 2)
    estimates, errors = [], []
    for head in range(heads):
        steps, radius = (torch.cat([part[i] for part in keys[head]]) for i in (1, 2))
        best = torch.cat([_best_of_planes(planes[head], part[0], rows) for part in keys[head]]).T
        # What the finer row of integers leaves over is at most half its step in each of d places, where a key has 127 steps at most.
        lost = unit[head] / FINE * (0.5 * 127 * dim) * steps
        estimates.append(best.mul_(steps).mul_(unit[head] / FINE * scale))
        errors.append((norm[head][:, None] * radius + lost).mul_(scale * (1 + 2.0**-20)))
    return torch.stack(estimates), torch.stack(errors)


def _filled(rows: int) -> int:
    """So many rows of integers are multiplied."""
    return FEW if rows <= FEW else -(-rows // ROWS) * ROWS


def _best_of_planes(planes: Tensor, keys: Tensor, rows: int) -> Tensor:
    """fp32 ``[blocks, rows]``: the largest product with each Block's keys, in steps of the finer plane."""
    count, size, dim = keys.shape
    step, flat = min(BLOCKS_AT_ONCE, count), keys.reshape(-1, dim)
    out = torch.empty((count, rows), device=keys.device)
    products = torch.empty((step * size, planes.shape[1]), dtype=torch.int32, device=keys.device)
    for at in range(0, count, BLOCKS_AT_ONCE):
        first = min(at, count - step)
        _multiply(flat[first * size : (first + step) * size], planes, products)
        whole = torch.add(products[:, rows : 2 * rows], products[:, :rows], alpha=FINE)
        out[first : first + step] = whole.view(step, size, rows).amax(1)
    return out


def _best_of_blocks(queries: Tensor, keys: list[Tensor], best: Tensor) -> None:
    """Write the largest products of ``queries`` int8 ``[d, rows]`` with each Block's keys to ``best`` int32 ``[blocks, rows]``."""
    done, rows = 0, queries.shape[1]
    for part in keys:
        count, size, dim = part.shape
        step, flat = min(BLOCKS_AT_ONCE, count), part.reshape(-1, dim)
        products = torch.empty((step * size, rows), dtype=torch.int32, device=queries.device)
        for at in range(0, count, BLOCKS_AT_ONCE):
            first = min(at, count - step)  # the last chunk overlaps: products of one shape share one compiled kernel
            _multiply(flat[first * size : (first + step) * size], queries, products)
            torch.amax(products.view(step, size, rows), 1, out=best[done + first : done + first + step])
        done += count


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """int32 product of int8 matrices."""
    if left.device.type == "cpu":
        torch._int_mm(left, right, out=out)
    else:
        out.copy_(left.float() @ right.float())  # exact: a sum of d products of 7 bits each stays below 2**24
