"""What the files of a Session have to hold: keys and values of every layer, in the shapes of its layout, and finite.

Knows names, dtypes and shapes; nothing of files or of the index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_memory.store.segments import Place, TensorBytes
from agent_memory.types import BLOCK_TOKENS, KVLayout

LAYER = re.compile(r"layers\.(\d{1,6})\.")
"""What the name of a tensor begins with; the group is the number of its layer."""

STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""safetensors names of the dtypes that keys and values may have."""

_EXPONENT: dict[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF << 52),
    "F32": (np.dtype("<u4"), 0xFF << 23),
    "F16": (np.dtype("<u2"), 0x1F << 10),
    "BF16": (np.dtype("<u2"), 0xFF << 7),
}
"""Integers of a number's size, and the bits of its exponent."""


def misfit(places: Mapping[str, Place | TensorBytes], layout: KVLayout, blocks: int | None) -> str | None:
    """What does not fit a layout in a Segment of so many Blocks, or in a tail (None); None if all does."""
    for name in places:
        numbered = LAYER.match(name)
        if numbered is None or int(numbered[1]) >= layout.layers:
            return f"tensor {name!r} is of no layer of the session's layout"
    for layer in range(layout.layers):
        name = f"layers.{layer}.kv"
        place = places.get(name)
        if place is None:
            return f"there is no tensor {name!r}"
        count, tokens = (1, place.shape[3] if len(place.shape) == 5 else 0) if blocks is None else (blocks, BLOCK_TOKENS)
        wanted = (count, 2, layout.kv_heads[layer], tokens, layout.head_dim[layer])
        if place.shape != wanted or place.dtype != STORED.get(layout.dtype):
            return f"tensor {name!r} is {place.dtype} {list(place.shape)}, the session's layout says {layout.dtype} {list(wanted)}"
    return None


def not_finite(tensors: Mapping[str, TensorBytes]) -> str | None:
    """Which keys and values hold a number that is none; None if all are numbers."""
    for name, tensor in tensors.items():
        if name.endswith(".kv") and not is_finite(tensor.dtype, tensor.data):
            return f"tensor {name!r} holds numbers that are not finite"
    return None


def is_finite(dtype: str, data: Any) -> bool:
    """Whether every floating-point number in a buffer is finite: infinities and NaN have all bits of the exponent set."""
    if dtype not in _EXPONENT:
        return True
    kind, exponent = _EXPONENT[dtype]
    numbers = np.frombuffer(memoryview(data).cast("B"), kind)
    return not bool(((numbers & exponent) == exponent).any())
