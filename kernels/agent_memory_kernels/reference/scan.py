"""Scans of 8-bit keys, defined by integer products: the best key of each Block, with or without a bound on what rounding did.

Shapes as in ``dense``. Integers have one result whatever the order and the shape of the sums, so what is chosen does not depend on how
keys are cut.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCKS_AT_ONCE = 128
"""Blocks in one product at most. Few shapes, since a CPU keeps a compiled kernel for each one it has seen."""

BLOCKS_HELD = 1024
"""Blocks of which all products are held at most, so that they stay in a CPU's cache until the largest are known."""

COLUMNS = 16
"""Columns of each of two planes of integers that a product of matrices takes no longer for than for fewer."""

WIDEST = 32
"""The same of a single plane."""

MOST_KEYS = 8
"""Keys in one line at most: with more, too many products are of zeros."""

FINE = 254
"""Steps of the finer row of integers of a query in one of the coarser; their sum of d products stays below 2**31 up to d = 500."""


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
    asked = queries.float()
    unit = asked.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
    size = keys[0][0][0].shape[1]
    whole, together = _side_by_side([(asked / unit).round_()], size, WIDEST)
    blocks = sum(len(part) for part, _ in keys[0])
    best = torch.empty((blocks, whole.shape[3]), dtype=torch.int32, device=queries.device)
    out = torch.empty((heads, rows, blocks), device=queries.device)
    for head in range(heads):
        _best_of_blocks(whole[head, :, 0], [part for part, _ in keys[head]], together, best)
        largest = best.view(blocks, together, -1).amax(1)[:, :rows] if together > 1 else best[:, :rows]
        torch.mul(largest.T, torch.cat([steps for _, steps in keys[head]]), out=out[head])
    return out.mul_(unit * scale)


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
    coarse, fine = in_15_bits(asked, unit)
    norm = (asked.norm(dim=-1) * (1 + (dim + 3) * 2.0**-24)).clamp_(min=1e-30)  # a Block that is lost has an infinite radius
    planes, _ = _side_by_side([coarse, fine], keys[0][0][0].shape[1], COLUMNS)
    # What the finer row of integers leaves over is at most half its step in each of d places, where a key has 127 steps at most.
    left = unit / FINE * (0.5 * 127 * dim)
    estimates = torch.empty((heads, rows, sum(len(part[0]) for part in keys[0])), device=queries.device)
    errors = torch.empty_like(estimates)
    for head in range(heads):
        steps, radius = (torch.cat([part[i] for part in keys[head]]) for i in (1, 2))
        best = torch.cat([_best_of_planes(planes[head], part[0]) for part in keys[head]])
        torch.mul(best[:, :rows].T, steps, out=estimates[head])
        torch.mul(norm[head][:, None], radius, out=errors[head]).addcmul_(left[head], steps)
    return estimates.mul_(unit / FINE * scale), errors.mul_(scale * (1 + 2.0**-20))


def in_15_bits(queries: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Queries as whole numbers of ``unit``, of which none needs more than 127, and of a ``FINE``-th of it; half of one of these is lost."""
    coarse = (queries / unit).round_()
    return coarse, ((queries - coarse * unit) / (unit / FINE)).round_().clamp_(-127, 127)


def _side_by_side(planes: list[Tensor], size: int, columns: int) -> tuple[Tensor, int]:
    """Rows of integers of queries, for products with several keys of a Block at a time that lie behind each other.

    Few queries leave a product of matrices idle: keys are read faster where each column meets only one of ``p`` keys and is zero for the
    others, and fewer products have to be looked through for the largest.

    Args:
        planes: whole numbers ``[S, rows, d]`` each.
        size: keys of a Block.
        columns: of a plane, that a product takes little longer for than for fewer.

    Returns:
        int8 ``[S, p * d, planes, p * width]``: columns by key and query, queries filled up with zeros; and ``p``.
    """
    heads, rows, dim = planes[0].shape
    width = 1 << (rows - 1).bit_length() if rows <= columns else -(-rows // columns) * columns
    together = math.gcd(max(1, min(columns // width, MOST_KEYS)), size)
    made = torch.zeros((heads, together, dim, len(planes), together, width), dtype=torch.int8, device=planes[0].device)
    for key in range(together):
        for number, plane in enumerate(planes):
            made[:, key, :, number, key, :rows] = plane.transpose(1, 2)
    return made.view(heads, together * dim, len(planes), together * width), together


def _best_of_planes(planes: Tensor, keys: Tensor) -> Tensor:
    """int32 ``[blocks, width]``: the largest product with each Block's keys int8 ``[blocks, block, d]``, in steps of the finer plane.

    Args:
        planes: of one key head, see ``_side_by_side``.
        keys: of the same head.
    """
    count, size, dim = keys.shape
    together = planes.shape[0] // dim
    lines, width = size // together, planes.shape[2] // together
    step, flat, both = min(BLOCKS_HELD, count), keys.reshape(-1, together * dim), planes.flatten(1)
    best = torch.empty((count, together * width), dtype=torch.int32, device=keys.device)
    products = torch.empty((step * lines, both.shape[1]), dtype=torch.int32, device=keys.device)
    for at in range(0, count, BLOCKS_HELD):
        first = min(at, count - step)
        multiply_in_parts(flat[first * lines : (first + step) * lines], both, products, lines * BLOCKS_AT_ONCE)
        coarse, fine = products.view(step, lines, 2, -1).unbind(2)
        best[first : first + step] = _largest(fine.add_(coarse, alpha=FINE))
    return _largest(best.view(count, together, width))


def multiply_in_parts(left: Tensor, right: Tensor, out: Tensor, rows: int) -> None:
    """Write the int32 product of int8 ``left [n, d]`` and ``right [d, columns]`` to ``out``, so many ``rows`` at a time; the last part
    overlaps: products of one shape share one compiled kernel."""
    rows = min(rows, len(left))
    whole = len(left) // rows * rows
    for part, products in zip(left[:whole].split(rows), out[:whole].split(rows), strict=True):
        _multiply(part, right, products)
    if whole < len(left):
        _multiply(left[-rows:], right, out[-rows:])


def _largest(numbers: Tensor) -> Tensor:
    """Largest of ``[n, k, columns]`` along ``k``: half against half, since a pass over many columns is faster than one along few."""
    while numbers.shape[1] % 2 == 0:
        half = numbers.shape[1] // 2
        numbers = torch.maximum(numbers[:, :half], numbers[:, half:])
    return numbers.amax(1) if numbers.shape[1] > 1 else numbers[:, 0]


def _best_of_blocks(queries: Tensor, keys: list[Tensor], together: int, best: Tensor) -> None:
    """Write the largest products of ``queries`` int8 ``[p * d, columns]`` with each Block's keys, ``p`` at a time, to ``best`` int32
    ``[blocks, columns]``."""
    done, columns = 0, queries.shape[1]
    for part in keys:
        count, size, dim = part.shape
        lines, step, flat = size // together, min(BLOCKS_AT_ONCE, count), part.reshape(-1, together * dim)
        products = torch.empty((step * lines, columns), dtype=torch.int32, device=queries.device)
        for at in range(0, count, BLOCKS_AT_ONCE):
            first = min(at, count - step)  # the last chunk overlaps: products of one shape share one compiled kernel
            _multiply(flat[first * lines : (first + step) * lines], queries, products)
            torch.amax(products.view(step, lines, columns), 1, out=best[done + first : done + first + step])
        done += count


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """int32 product of int8 matrices."""
    if left.device.type == "cpu":
        torch._int_mm(left, right, out=out)
    else:
        out.copy_(left.float() @ right.float())  # exact: a sum of d products of 7 bits each stays below 2**24
