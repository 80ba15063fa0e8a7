"""Queries and keys turned to positions of our choice, as their model does it.

Knows one rotation a layer; does not know who attends to what, or why a key stands where it does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor


class Rotary(Protocol):
    """The rotation of one attention layer, as its model does it."""

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Pair for ``positions [n]``, each ``[1, n, r]``, made in one call."""
        ...

    def table(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        """``cos_sin`` of positions 0 to n - 1, kept between calls."""
        ...

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``x [B, H, n, d]``."""
        ...

    def halves(self, layer: int, n: int) -> Tensor | None:
        """``[n, r]``: the r / 2 cosines, then the sines, of positions 0 to n - 1, kept between calls, where dimension i turns with
        dimension i + r / 2 by the same angle, whatever other positions are asked for; None where it is otherwise."""
        ...


class Buffers:
    """Memory for tensors of one layer at a time, used again by the next one: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def take(self, name: Hashable, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of that shape, with dtype and device of ``like``; whoever took the name before has lost what was in it."""
        size, kept = math.prod(shape), self._kept.get(name)
        if kept is None or len(kept) < size or kept.dtype != like.dtype:
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(tuple(shape))


Turn = Tensor | tuple[Tensor, Tensor]
"""Angles of some positions: halves ``[..., r]``, or a pair of cosines and sines ``[..., r]``."""


@dataclass(frozen=True, slots=True)
class Turning:
    """Turns queries and keys of one layer.

    Attributes:
        rotary: the model's rotation.
        layer: dense layer index.
        buffers: where tensors are kept that the next layer overwrites; None makes new ones.
        name: of the buffers.
    """

    rotary: Rotary
    layer: int
    buffers: Buffers | None = None
    name: Hashable = None

    def turns(self, positions: Sequence[Tensor]) -> list[Turn]:
        """Angles of several tensors of positions, from one rotary call (longrope picks its factors by the largest position)."""
        if not positions:
            return []
        if any(p.is_floating_point() for p in positions):
            cos, sin = self.rotary.cos_sin(self.layer, torch.cat([p.reshape(-1).float() for p in positions]))
            sizes = [p.numel() for p in positions]
            pairs = zip(torch.split(cos[0], sizes), torch.split(sin[0], sizes), positions, strict=True)
            return [(c.reshape(*p.shape, -1), s.reshape(*p.shape, -1)) for c, s, p in pairs]
        count = 1 + max(int(p.max()) for p in positions if p.numel())
        halves = self.rotary.halves(self.layer, count)
        if halves is not None:
            return [self._rows(halves, p, at) for at, p in enumerate(positions)]
        cos, sin = self.rotary.table(self.layer, count)
        return [(_at(cos[0], p), _at(sin[0], p)) for p in positions]

    def turned(self, x: Tensor, turn: Turn, part: Hashable = None) -> Tensor:
        """``x [G, H, n, d]`` turned by angles of ``[n]``, ``[G, n]`` or ``[G, H, n]`` positions; ``part`` names its buffer."""
        if isinstance(turn, Tensor):
            return self._turned_halves(x, turn, part)
        cos, sin = turn
        rotate = partial(self.rotary.rotate, self.layer)
        if cos.dim() == 2:
            return rotate(x, cos[None], sin[None])
        if cos.dim() == 3:
            return rotate(x, cos, sin)
        groups, heads, n, d = x.shape
        flat = rotate(x.reshape(groups * heads, 1, n, d), cos.reshape(groups * heads, n, -1), sin.reshape(groups * heads, n, -1))
        return flat.reshape(groups, heads, n, d)

    def _rows(self, halves: Tensor, positions: Tensor, at: int) -> Tensor:
        shape = (*positions.shape, halves.shape[1])
        if self.buffers is None:
            return halves.index_select(0, positions.reshape(-1)).view(shape)
        rows = self.buffers.take((self.name, "angles", at), shape, halves)
        torch.index_select(halves, 0, positions.reshape(-1), out=rows.view(-1, halves.shape[1]))
        return rows

    def _turned_halves(self, x: Tensor, rows: Tensor, part: Hashable) -> Tensor:
        """The paper's rotary embedding in GPT-NeoX's order (arXiv 2104.09864), each half in two passes."""
        if rows.dim() == 3:
            rows = rows[:, None]
        width, half = rows.shape[-1], rows.shape[-1] // 2
        out = torch.empty_like(x) if self.buffers is None else self.buffers.take((self.name, part), x.shape, x)
        cos, sin, first, second = rows[..., :half], rows[..., half:], x[..., :half], x[..., half:width]
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half:width]).addcmul_(first, sin)
        if width < x.shape[-1]:
            out[..., width:] = x[..., width:]
        return out


def rotated(x: Tensor, positions: Tensor, rotary: Rotary, layer: int) -> Tensor:
    """``x [G, H, T, d]`` at integer positions ``[T]``, ``[G, T]`` or ``[G, H, T]``."""
    turning = Turning(rotary, layer)
    return turning.turned(x, turning.turns([positions])[0])


def rotate_keys(rotary: Rotary, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
    """``keys [Hk, n, d]`` of one layer at positions ``[n]``."""
    return rotated(keys[None], positions, rotary, layer)[0]


def _at(table: Tensor, positions: Tensor) -> Tensor:
    return table.index_select(0, positions.reshape(-1)).view(*positions.shape, -1)
