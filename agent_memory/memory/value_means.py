"""The mean values of the parts of each Block, which stand for it where it is not read.

Knows shapes only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .growing import GrowingRows

PART_TOKENS = 4
"""Tokens whose values share a mean."""

PARTS = BLOCK_TOKENS // PART_TOKENS
"""Parts of a Block."""

NAME = "value_mean"
"""Of the tensor in a Segment."""


def value_means(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str) -> GrowingRows:
    """Rows ``[PARTS, Hk, d]`` a Block, none yet."""
    return GrowingRows((PARTS, kv_heads, head_dim), dtype, device=device)


def means_of(values: Tensor) -> Tensor:
    """Mean values fp32 ``[n, PARTS, Hk, d]`` of the Blocks with ``values [n, Hk, 32, d]``."""
    parts: Tensor = values.float().unflatten(2, (PARTS, PART_TOKENS))
    return parts.mean(3).transpose(1, 2)
