"""One attention layer over keys that are made up, to be timed: how long a step takes depends on shapes, not on what keys say.

Knows the engine's own step; nothing of models, text or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from agent_memory_kernels import operations

from .attention.methods import Method
from .attention.recent_queries import RecentQueries
from .attention.region import LayerRule
from .attention.rotation import rotate_keys
from .attention.shares import AttentionShares
from .attention.step import MemoryStep
from .attention.trace import Trace
from .memory.block import NoDisk
from .memory.cache import TieredCache
from .memory.layer_kv import KVPlan
from .memory.session_kv import SessionKV
from .model.rope import half_rotation
from .types import Budget, KVLayout

AT_ONCE = 2048
"""Tokens made up at a time."""

KINDS = 1024
"""Kinds of keys, so that there are some alike."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Query heads, KV heads and head size of a layer, and where and in which dtype it is."""

    query_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


class _Rotary:
    """Llama's rotary embedding, base 500,000, applied as an attached model does."""

    def __init__(self, shape: LayerShape, longest: int) -> None:
        inverse = 500_000.0 ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(longest), inverse)
        both = torch.cat([angles, angles], dim=-1)
        self._cos, self._sin = (table[None].to(shape.device, shape.dtype) for table in (both.cos(), both.sin()))
        self._halves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(shape.device, shape.dtype)

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos[:, positions], self._sin[:, positions]

    def table(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        return self._cos[:, :n], self._sin[:, :n]

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return half_rotation(x, cos, sin)

    def halves(self, layer: int, n: int) -> Tensor:
        return self._halves[:n]


class MadeUpLayer:
    """A Session of one layer that holds ``tokens`` made-up tokens.

    Args:
        shape: of the layer.
        method: how memory takes part.
        tokens: how many.
        alike: how many times as far apart the kinds of keys are as the noise within one; 0 leaves the noise alone.
        varied: make up all keys, and not some that are repeated, which is quicker.
        seed: of what is made up.
    """

    def __init__(self, shape: LayerShape, method: Method, tokens: int, alike: float = 1.5, *, varied: bool = True, seed: int = 0) -> None:
        if method.sizes is None or method.attended is None:
            raise TypeError(f"method {method.name!r} attends to everything")
        self.shape, self.method = shape, method
        self.generator = torch.Generator().manual_seed(seed)
        self._kinds = alike * torch.randn((shape.kv_heads, KINDS, shape.head_dim), generator=self.generator)
        layout = KVLayout((shape.kv_heads,), (shape.head_dim,), str(shape.dtype).removeprefix("torch."))
        room = 2 * shape.kv_heads * shape.head_dim * shape.dtype.itemsize * (tokens + 16_384)
        cache = TieredCache(layout, Budget(device=room), shape.device, min_blocks=256, unsaved_blocks=256, host_bytes=0)
        self._rotary = _Rotary(shape, max(method.attended, method.sizes.attended, 2 * (method.selector.keeps.distances or 0)) + 64)
        plan = KVPlan(
            method.sizes.sink,
            method.attended + 1024,
            (True,),
            method.selector.keeps,
            method.attended,
            rotate=partial(rotate_keys, self._rotary),
        )
        self.kv = SessionKV(layout, plan, cache, NoDisk())
        self._recent, self.trace = RecentQueries(), Trace()
        made = self.made(min(tokens, AT_ONCE))
        for at in range(0, tokens, AT_ONCE):
            part = made if at == 0 or not varied else self.made(AT_ONCE)
            self.kv.append(0, *(x[:, : tokens - at] for x in part))

    def made(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, count, d]``."""
        heads, dim = self.shape.kv_heads, self.shape.head_dim
        which = torch.randint(KINDS, (heads, count, 1), generator=self.generator).expand(-1, -1, dim)
        keys = self._kinds.gather(1, which) + torch.randn((heads, count, dim), generator=self.generator)
        values = torch.randn((heads, count, dim), generator=self.generator)
        return keys.to(self.shape.device, self.shape.dtype), values.to(self.shape.device, self.shape.dtype)

    def decode(self, shares: AttentionShares | None = None) -> Tensor:
        """Append one token and attend to it, adding up the attention if asked to: ``[1, H, d]``."""
        return self._attend(1, self.trace, shares)

    def prefill(self, count: int) -> None:
        """Append as many tokens in one forward, after those that are left of the last group, and forget them again."""
        group = 1 if self.method.sizes is None else self.method.sizes.group
        self.kv.truncate(self.kv.length - self.kv.length % group)
        start = self.kv.length
        self._attend(count, None, None)
        self.kv.truncate(start)

    def _attend(self, count: int, trace: Trace | None, shares: AttentionShares | None) -> Tensor:
        start, shape = self.kv.length, self.shape
        span = (start, start + count)
        step = MemoryStep(self.kv, self.method, self._rotary, operations(), span, self._recent, trace, shares=shares)
        q = torch.randn((shape.query_heads, count, shape.head_dim), generator=self.generator).to(shape.device, shape.dtype)
        return step.attend(LayerRule(0, shape.head_dim**-0.5), q, *self.made(count))
