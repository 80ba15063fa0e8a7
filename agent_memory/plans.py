"""What a method needs of the memory of one model: shapes, windows, and how many Blocks have to fit.

Knows models' layers and methods; nothing of Stores, Sessions or text.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .attention.methods import Method
from .attention.rotation import rotate_keys
from .errors import ConfigError
from .memory.cache import TieredCache
from .memory.layer_kv import KVPlan
from .memory.tier import block_kinds
from .model.attach import Attachment
from .types import BLOCK_TOKENS, SEGMENT_BLOCKS, KVLayout


def named_choosers(config: Any) -> frozenset[int] | None:
    """Layers a checkpoint names as those whose queries find things (``recall_layers`` in its config); None where it names none."""
    named = getattr(config, "recall_layers", None)
    return None if named is None else frozenset(int(layer) for layer in named)


def named_settings(config: Any) -> dict[str, Any]:
    """Options of ``recall`` that a checkpoint names (``recall`` in its config); none where it names none.

    Raises:
        ConfigError: they are no options.
    """
    named = getattr(config, "recall", None)
    if named is None:
        return {}
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"the model's config has recall={named!r}; it must be an object of options")
    return dict(named)


def layout_of(attachment: Attachment) -> KVLayout:
    """Shapes of the keys and values of a model.

    Raises:
        ConfigError: they have a dtype that cannot be stored.
    """
    layers = attachment.layers
    dtype = str(attachment.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"keys of dtype {dtype} cannot be stored; load the model with dtype='bfloat16', 'float16' or 'float32'")
    return KVLayout(tuple(layer.kv_heads for layer in layers), tuple(layer.head_dim for layer in layers), dtype)


def kv_plan(attachment: Attachment, method: Method, chunk: int) -> KVPlan:
    """What a Session keeps beside its Blocks; ``chunk`` is the tokens of one forward at most."""
    sizes, layers = method.sizes, attachment.layers
    keep = None
    if sizes is not None and method.attended is not None:
        chunk = max(chunk, sizes.group)
        wide = [layer.sliding_window or 0 for layer in layers if not layer.recalls]
        keep = max([method.attended + chunk + unsettled(method), *(width + chunk for width in wide)])
    return KVPlan(
        BLOCK_TOKENS if sizes is None else sizes.sink,
        keep,
        tuple(layer.recalls and method.recalls and method.chooses(layer.index) for layer in layers),
        method.selector.keeps,
        None if keep is None else keep - chunk,
        tuple(layer.query_heads for layer in layers),
        partial(rotate_keys, attachment),
    )


def unsettled(method: Method) -> int:
    """Tokens at the end that cannot be written yet, since their block is still in the local window."""
    plan = method.selector.keeps.representatives
    return 0 if plan is None else plan.local + plan.block


def unread_layers(attachment: Attachment, method: Method) -> list[int]:
    """Layers that recall nothing."""
    return [layer.index for layer in attachment.layers if not (layer.recalls and method.reads(layer.index))]


def least_blocks(method: Method, layout: KVLayout) -> int:
    """Blocks one group may need at one layer: every KV head its own choice; and a Segment to write."""
    whole = 0 if method.sizes is None else -(-method.sizes.recalled // BLOCK_TOKENS) * 2
    return max((method.blocks_read or whole) * max(layout.kv_heads), SEGMENT_BLOCKS)


def unsaved_blocks(method: Method) -> int:
    """Blocks that may wait to be saved."""
    return 2 * SEGMENT_BLOCKS + unsettled(method) // BLOCK_TOKENS


def sessions_at_once(method: Method, layout: KVLayout, cache: TieredCache) -> int:
    """Sessions that may be open together: each may have Blocks that wait to be saved, which cannot leave the device before."""
    rooms = ((cache.max_read(kind.layers[0]) - least_blocks(method, layout)) // len(kind.layers) for kind in block_kinds(layout))
    return max(1, min(rooms) // unsaved_blocks(method))
