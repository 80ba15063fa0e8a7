"""Rows of chosen tokens out of a pool of Blocks, and two gatherings as one.

Knows shapes; nothing of Tiers, or of who chose.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .layer_kv import Gathered


def token_rows(pool: Tensor, slots: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[G, Hk, n, d]`` of keys and values out of ``pool [slots, 2, Hk, size, d]``, at ``offsets`` of ``slots`` ``[G, S, n]``."""
    _, _, heads, size, dim = pool.shape
    head = torch.arange(heads, device=pool.device)[None, :, None]
    rows = (slots * (2 * heads) + head) * size + offsets
    flat = pool.reshape(-1, dim)
    shape = (*rows.shape, dim)
    return flat.index_select(0, rows.reshape(-1)).view(shape), flat.index_select(0, (rows + heads * size).reshape(-1)).view(shape)


def joined(a: Gathered, b: Gathered) -> Gathered:
    """What was gathered for some groups, and for those after them."""
    blocks, first = np.unique(np.concatenate([a.blocks, b.blocks]), return_index=True)
    return Gathered(
        torch.cat([a.keys, b.keys]),
        torch.cat([a.values, b.values]),
        torch.cat([a.valid, b.valid]),
        blocks,
        np.concatenate([a.tiers, b.tiers])[first],
    )
