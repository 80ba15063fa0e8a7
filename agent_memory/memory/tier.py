"""How layers share slots, and how many slots a Tier's bytes buy.

Knows shapes and arithmetic; nothing of what is in the slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..types import KVLayout
from .block import kv_dtype
from .packing import Packing


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Layers whose Blocks have one shape, and so share slots.

    Attributes:
        shape: one Block, ``(2, kv_heads, block_tokens, head_dim)``.
        block_bytes: bytes of one Block at one layer.
        layers: the layers, ascending.
    """

    shape: tuple[int, int, int, int]
    block_bytes: int
    layers: tuple[int, ...]


def block_kinds(layout: KVLayout, packing: Packing | None = None) -> list[BlockKind]:
    """The kinds of Blocks of a layout, by their first layer; how many bytes one takes depends on how it is packed."""
    layers: dict[tuple[int, int, int, int], list[int]] = {}
    for layer in range(layout.layers):
        layers.setdefault(layout.block_shape(layer), []).append(layer)
    size = kv_dtype(layout).itemsize
    return [
        BlockKind(shape, math.prod(shape) * size if packing is None else packing.row_bytes(shape), tuple(where))
        for shape, where in layers.items()
    ]


def fit_slots(kinds: Sequence[BlockKind], budget: int, *, min_blocks: int = 0, unsaved_blocks: int = 0) -> list[int]:
    """Slots of each kind within ``budget`` bytes together, about as many Blocks at every layer.

    Args:
        kinds: kinds of Blocks.
        budget: bytes.
        min_blocks: slots every kind needs for one reading at one layer.
        unsaved_blocks: slots every *layer* needs besides, for Blocks that exist nowhere else yet.

    Raises:
        ConfigError: if the budget does not cover what is needed; names the least that does.
    """
    needed = [unsaved_blocks * len(kind.layers) + min_blocks for kind in kinds]
    least = sum(slots * kind.block_bytes for slots, kind in zip(needed, kinds, strict=True))
    if least > budget:
        raise ConfigError(
            f"a budget of {budget} bytes for Blocks is too small: one step needs {least} "
            f"({min_blocks} Blocks read at one layer, {unsaved_blocks} waiting to be saved at every layer); "
            f"raise Budget.device to at least {least}"
        )
    per_block = sum(len(kind.layers) * kind.block_bytes for kind in kinds)
    return [slots + (budget - least) * len(kind.layers) // per_block for slots, kind in zip(needed, kinds, strict=True)]
