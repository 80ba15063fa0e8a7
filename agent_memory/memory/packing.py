"""Blocks in fewer bytes, for a Tier that holds approximate copies: 8 or 4 bits a number, with a scale for each short run of them.

Knows shapes and rounding; nothing of Tiers, or of who may read what is approximate.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..types import ColdKind

INT4_RUN = 32
"""Numbers that share a scale in 4 bits, at most."""


class Packing(Protocol):
    """How Blocks ``[n, 2, kv_heads, block_tokens, head_dim]`` become rows of bytes."""

    def row_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one Block of that shape."""

    def fits(self, kv: Tensor) -> Tensor:
        """bool ``[n]``: False for Blocks whose numbers are not finite, or too large to be scaled."""

    def pack(self, kv: Tensor) -> Tensor:
        """uint8 ``[n, row_bytes]``, where ``kv`` is."""

    def unpack(self, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Blocks ``[n, *shape]`` close to those that were packed; NaN where a row is all ones."""


class Int8:
    """A signed byte a number; each token of each KV head has a scale (fp16) for its key and one for its value."""

    most = 127

    def row_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one Block of that shape."""
        return math.prod(shape) + 2 * math.prod(shape[:-1])

    def fits(self, kv: Tensor) -> Tensor:
        """bool ``[n]``: False for Blocks whose numbers are not finite, or too large to be scaled."""
        return _largest(kv) <= self.most * torch.finfo(torch.float16).max

    def pack(self, kv: Tensor) -> Tensor:
        """uint8 ``[n, row_bytes]``, where ``kv`` is."""
        codes, scale = _scaled(kv.float(), self.most)
        return torch.cat([_as_bytes(codes.to(torch.int8)), _as_bytes(scale)], 1)

    def unpack(self, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Blocks ``[n, *shape]`` close to those that were packed; NaN where a row is all ones."""
        size = math.prod(shape)
        codes = rows[:, :size].contiguous().view(torch.int8).view(-1, *shape)
        scale = rows[:, size:].contiguous().view(torch.float16).view(-1, *shape[:-1], 1)
        return (codes.float() * scale.float()).to(dtype)


class Int4:
    """Two numbers a byte; every run of at most 32 along a key or a value has a scale (fp16)."""

    most = 7

    def row_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one Block of that shape.

        Raises:
            ConfigError: an odd head dimension.
        """
        if shape[-1] % 2:
            raise ConfigError(f"cold='int4' keeps two numbers in a byte, but a head dimension is {shape[-1]}; use cold='int8'")
        return math.prod(shape) // 2 + 2 * math.prod(shape) // _run(shape)

    def fits(self, kv: Tensor) -> Tensor:
        """bool ``[n]``: False for Blocks whose numbers are not finite, or too large to be scaled."""
        return _largest(kv) <= self.most * torch.finfo(torch.float16).max

    def pack(self, kv: Tensor) -> Tensor:
        """uint8 ``[n, row_bytes]``, where ``kv`` is."""
        codes, scale = _scaled(kv.float().unflatten(-1, (-1, _run(kv.shape))), self.most)
        pairs = (codes + 8).to(torch.uint8).flatten(1).unflatten(1, (-1, 2))
        return torch.cat([pairs[..., 0] | pairs[..., 1] << 4, _as_bytes(scale)], 1)

    def unpack(self, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Blocks ``[n, *shape]`` close to those that were packed; NaN where a row is all ones."""
        size = math.prod(shape) // 2
        pairs = rows[:, :size]
        codes = torch.stack([pairs & 15, pairs >> 4], -1).view(len(rows), 2 * size // _run(shape), _run(shape)).float() - 8
        scale = rows[:, size:].contiguous().view(torch.float16)[..., None]
        return (codes * scale.float()).to(dtype).view(-1, *shape)


def packing_of(cold: ColdKind) -> Packing | None:
    """The packing of a kind; None for copies that stay as they are.

    Raises:
        ConfigError: no such kind.
    """
    kinds: dict[str, Packing | None] = {"exact": None, "int8": Int8(), "int4": Int4()}
    if cold not in kinds:
        raise ConfigError(f"cold={cold!r} is no kind of copy; choose one of {', '.join(kinds)}")
    return kinds[cold]


def _scaled(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Whole numbers in ``[-most, most]`` and their scale fp16 ``[..., 1]``, so that codes * scale is close to ``x`` ``[..., m]``."""
    scale = (x.abs().amax(-1, keepdim=True) / most).half()
    step = scale.float()
    # Numbers so small that their scale is zero in fp16 become zero.
    return torch.where(step > 0, x / step, 0.0).round_().clamp_(-most, most), scale


def _largest(kv: Tensor) -> Tensor:
    """fp32 ``[n]``: the largest absolute number of each Block; NaN stays NaN, which no comparison lets pass."""
    return kv.flatten(1).abs().amax(1).float()


def _run(shape: tuple[int, ...]) -> int:
    return math.gcd(shape[-1], INT4_RUN)


def _as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten(1).view(torch.uint8)
