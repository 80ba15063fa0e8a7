"""Keys on grids of 8 bits, and how far from their true place that puts them.

Knows numbers and their rounding; nothing of Blocks or of who asks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantise(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys on a symmetric 8-bit grid of their own, and what that lost.

    Args:
        keys: ``[..., d]``, any floating-point dtype.

    Returns:
        ``q8`` int8 ``[..., d]``, ``scale`` fp32 ``[...]``, ``residual`` fp32 ``[...]`` = ``|keys - scale * q8|`` rounded up, so that
        ``|q . keys - q . (scale * q8)| <= |q| * residual``. A key that is not finite gets zeros and an infinite residual.
    """
    exact = keys.to(torch.float64)
    largest = exact.abs().amax(dim=-1)
    finite = largest.isfinite()
    scale = torch.where(finite, largest / 127, 0.0).to(torch.float32)
    step = scale.to(torch.float64)[..., None]
    # A key so small that its step underflows is kept as zero; its residual says all of it is lost.
    q8 = torch.where(step > 0, (exact / step).round().clamp(-127, 127), 0.0)
    # Exact in fp64 but for the sum's last bits, which the step to the next fp32 number covers many times over.
    lost = (exact - step * q8).norm(dim=-1).to(torch.float32)
    rounded_up = torch.nextafter(lost, torch.full_like(lost, math.inf))
    residual = torch.where(finite, torch.where(lost > 0, rounded_up, lost), math.inf)
    return q8.to(torch.int8), scale, residual


def coarsen(q8: Tensor, scale: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys with a step each ``[n, Hk, 32, d]``, ``[n, Hk, 32]``, less ``centre [Hk, d]``, on one grid for each Block.

    Returns:
        int8 ``[n, Hk, 32, d]``, its step fp32 ``[n, Hk]``, and fp32 ``[n, Hk, 32]``: how far each key was moved, rounded up.
    """
    keys = as_float(q8).mul_(scale[..., None]).sub_(centre[:, None])
    step = keys.abs().amax(dim=(-2, -1)) / 127
    on_grid = torch.where(step[..., None, None] > 0, keys / step[..., None, None], 0.0).round_().clamp_(-127, 127)
    moved = keys.sub_(on_grid * step[..., None, None]).norm(dim=-1)
    return on_grid.to(torch.int8), step, moved * (1 + 2.0**-16) + step[..., None] * (127 * 2.0**-20)


def as_float(q8: Tensor) -> Tensor:
    """fp32 copy, contiguous in the order it is looked at (one pass over the bytes)."""
    return torch.empty(q8.shape, dtype=torch.float32, device=q8.device).copy_(q8)
