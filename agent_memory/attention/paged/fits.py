"""Which methods and models a reply can be decoded with on pages.

Knows what the paged operations offer; nothing of devices.
"""

from __future__ import annotations

from agent_memory_kernels.checks import HEAD_SIZES

from ...types import KVLayout
from ..methods import Method
from ..positions import PackedPositions
from ..selectors import RecallSelector

SCANS = ("clusters", "keys")
"""Both scan every key in 8 bits: on a device that is fast enough, and finds what clusters lead to and more."""


def why_not(method: Method, layout: KVLayout) -> str | None:
    """Why replies cannot be decoded on pages; None if they can."""
    selector = method.selector
    if not isinstance(selector, RecallSelector) or type(method.positions) is not PackedPositions or method.sizes is None:
        return f"method {method.name!r} has a way of choosing, or positions, of its own"
    rule = selector.rule
    if rule.scan not in SCANS:
        return f"scan={rule.scan!r} has no kernel that votes; choose one of {', '.join(SCANS)}"
    if rule.angle is not None:
        return f"angle={rule.angle} rotates queries before they choose"
    if rule.scope == "kv_head" and len(set(layout.kv_heads)) > 1:
        return f"layers have {sorted(set(layout.kv_heads))} KV heads, and each is to choose for itself"
    odd = sorted(set(layout.head_dim) - set(HEAD_SIZES))
    if odd:
        return f"heads of {odd[0]} numbers have no kernel; there are {', '.join(map(str, HEAD_SIZES))}"
    return None
