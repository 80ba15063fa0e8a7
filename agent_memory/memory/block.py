"""The shape of a Block in memory, and the seam through which evicted Blocks come back.

Knows the layout of a Block's bytes; nothing of Tiers, nor of what lies behind a source.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from ..errors import ConfigError
from ..types import KVLayout


class BlockSource(Protocol):
    """Where evicted Blocks come back from."""

    def read_kv(self, layer: int, blocks: np.ndarray, out: torch.Tensor) -> np.ndarray:
        """Fill ``out`` with the keys (index 0) and values (index 1) of ``blocks``.

        Args:
            layer: attention layer.
            blocks: int64 ``[n]``, Block numbers in the Session.
            out: CPU tensor ``[n, 2, kv_heads, block_tokens, head_dim]`` of the layout's dtype, contiguous.

        Returns:
            bool ``[n]``, False where the Block is damaged or missing; its place in ``out`` is then not to be trusted.
        """


class NoDisk:
    """Stands behind Blocks that never leave memory, so that none is read back: those of a text that is only scored."""

    def read_kv(self, layer: int, blocks: np.ndarray, out: torch.Tensor) -> np.ndarray:
        """Never called."""
        raise RuntimeError("these Blocks have no disk to be read from")


def kv_dtype(layout: KVLayout) -> torch.dtype:
    """The torch dtype a layout names.

    Raises:
        ConfigError: if torch has no floating-point dtype of that name.
    """
    dtype = getattr(torch, layout.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"{layout.dtype!r} is not a floating-point torch dtype; write one such as 'float32' or 'bfloat16'")
    return dtype


def block_bytes(layout: KVLayout, layer: int) -> int:
    """Bytes of one Block's keys and values at one layer."""
    return math.prod(layout.block_shape(layer)) * kv_dtype(layout).itemsize
