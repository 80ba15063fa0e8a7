"""What is kept beside Blocks, taken up from disk: as it was written, or made again from the Blocks where another method wrote them.

Knows summaries and keys of one layer; does not know files or Tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .growing import GrowingRows
from .layer_kv import LayerKV
from .parts import ORDER, LayerParts
from .summary import LayerSummary

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
    summary, parts = part.summary, part.parts
    known = {name: rows for name, rows in known.items() if _fits(part, name, rows, blocks)}
    anew: list[GrowingRows | LayerSummary] = [] if part.every_key is None else [part.every_key]
    if summary is not None and not _restore_summary(summary, blocks, known, lost):
        anew.append(summary)
    if part.representatives is not None:
        part.representatives.load(first, known.get("representative"), blocks)
    if parts is not None and _restore_parts(parts, blocks, known, lost):
        parts = None
    if anew or parts is not None:
        for k, v in read():
            for rows in anew:
                rows.append(_by_block(k, BLOCK_TOKENS))
            if parts is not None:
                parts.append(_by_block(k, BLOCK_TOKENS), _by_block(v, BLOCK_TOKENS))
    if part.rotated_keys is not None and summary is not None:
        part.rotated_keys.append(summary.float_keys(first, first + blocks))


def _fits(part: LayerKV, name: str, rows: Tensor, blocks: int) -> bool:
    """Whether rows are what this layer keeps under their name; those that are not, or that it does not keep, are as if not there."""
    shapes = {} if part.summary is None else dict(part.summary.shapes)
    if part.parts is not None:
        shapes |= part.parts.shapes
    if part.representatives is not None:
        shapes["representative"] = (torch.float32, (part.representatives.heads, part.representatives.head_dim))
    dtype, shape = shapes.get(name, (None, ()))
    if rows.dtype != dtype or tuple(rows.shape) != (blocks, *shape):
        return False
    if name == ORDER:
        return bool((rows.sort(-1).values == torch.arange(BLOCK_TOKENS, dtype=rows.dtype, device=rows.device)).all())
    return name in ("residual", "representative") or bool(rows.isfinite().all())  # those two may say that nothing is known


def _restore_summary(summary: LayerSummary, blocks: int, known: dict[str, Tensor], lost: bool) -> bool:
    """Take up summaries as they were written; False if there are none, and they have to be made again."""
    if lost:
        summary.load(summary.blank(blocks))
    elif all(name in known for name in summary.shapes):
        summary.load(known)
    else:
        return False
    return True


def _restore_parts(parts: LayerParts, blocks: int, known: dict[str, Tensor], lost: bool) -> bool:
    """Take up parts as they were written; False if there are none, and they have to be made again."""
    if lost:
        parts.append_blank(blocks)
        return True
    return parts.load(known)


def _by_block(k: Tensor, size: int) -> Tensor:
    """``[Hk, n * size, d]`` to ``[n, Hk, size, d]``."""
    return torch.movedim(k.unflatten(1, (-1, size)), 1, 0)
