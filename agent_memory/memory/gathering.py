"""Keys and values of chosen tokens out of a pool of Blocks, written where attention reads them, and two gatherings as one.

Knows shapes; nothing of Tiers, or of who chose.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .layer_kv import Gathered


def write_tokens(pool: Tensor, slots: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Write rows at ``offsets`` of ``slots``, both int64 ``[G, S, n]``, of ``pool [slots, 2, Hk, size, d]`` to ``out [2, G, Hk, n, d]``."""
    _, _, heads, size, dim = pool.shape
    head = torch.arange(heads, device=pool.device)[None, :, None]
    rows = (slots * (2 * heads) + head) * size + offsets
    flat = pool.reshape(-1, dim)
    for part, shift in enumerate((0, heads * size)):
        index, there = (rows + shift).reshape(-1), out[part]
        if there.is_contiguous():
            torch.index_select(flat, 0, index, out=there.view(-1, dim))
        else:
            there.copy_(flat.index_select(0, index).view(*rows.shape, dim))


def write_blocks(pool: Tensor, slots: Tensor, out: Tensor) -> None:
    """Write whole Blocks in ``slots``, int64 ``[G, S, b]``, of ``pool [slots, 2, Hk, size, d]`` to ``out [2, G, Hk, b * size, d]``: keys
    of a Block, and its values, are one run of bytes for each KV head."""
    _, _, heads, size, dim = pool.shape
    groups, scope, count = slots.shape
    flat, rows = pool.view(-1, size * dim), slots * (2 * heads)
    for group in range(groups):
        for head in range(heads):
            own = rows[group, head % scope] + head
            for part in range(2):
                torch.index_select(flat, 0, own + part * heads, out=out[part, group, head].view(count, size * dim))


def joined(a: Gathered, b: Gathered) -> Gathered:
    """What was gathered for some groups, and for those after them."""
    blocks, first = np.unique(np.concatenate([a.blocks, b.blocks]), return_index=True)
    return Gathered(torch.cat([a.valid, b.valid]), blocks, np.concatenate([a.tiers, b.tiers])[first])
