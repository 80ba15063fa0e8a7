"""What is kept beside Blocks, taken up from disk: as it was written, or made again from the Blocks where another method wrote them.

Knows summaries and keys of one layer; does not know files or Tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .layer_kv import LayerKV

Read = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Keys and values ``[Hk, tokens, d]`` of the Blocks, in order and some at a time."""


def restore_layer(part: LayerKV, first: int, blocks: int, known: dict[str, Tensor], lost: bool, read: Read) -> None:
    """Take up what is kept beside ``blocks`` Blocks from ``first`` on.

    Args:
        part: the layer, which holds what is kept beside the Blocks before them.
        first: number of the first one.
        blocks: how many.
        known: rows by name, as they were written.
        lost: they are damaged, and nothing is known.
        read: reads the Blocks; used only where something has to be made again.
    """
    summary, every_key = part.summary, part.every_key
    if summary is not None and lost:
        summary.load(summary.blank(blocks))
    elif summary is not None and "mean" in known:
        summary.load(known)
    if part.representatives is not None:
        part.representatives.load(first, known.get("representative"), blocks)
    anew = summary is not None and not lost and "mean" not in known
    if not anew and every_key is None:
        return
    for k, _ in read():
        keys = _by_block(k, BLOCK_TOKENS)
        if anew and summary is not None:
            summary.append(keys)
        if every_key is not None:
            every_key.append(keys)


def _by_block(k: Tensor, size: int) -> Tensor:
    """``[Hk, n * size, d]`` to ``[n, Hk, size, d]``."""
    return torch.movedim(k.unflatten(1, (-1, size)), 1, 0)
