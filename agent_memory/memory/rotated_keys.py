"""One layer's keys in 8 bits, rotated to where they stand in the timeline, so that a product with a rotated query is the attention logit
at their true distance.

Knows unrotated keys and how to rotate them; nothing of selection, Tiers or files. Positions are counted from the last multiple of a
period: fp32 angles lose precision with the position, and tables of cosines would grow with the timeline.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .growing import GrowingRows

Rotate = Callable[[Tensor, Tensor], Tensor]
"""``rotate(x [Hk, n, d], positions int64 [n]) -> [Hk, n, d]``, in the model's own way."""

AT_ONCE = 256
"""Blocks rotated at a time, where many are made again."""


class RotatedKeys:
    """Keys of whole Blocks, rotated and rounded to 127 steps of their Block.

    Args:
        kv_heads: KV heads of the layer (``Hk``).
        head_dim: head dimension (``d``).
        period: positions are counted from its multiples; a multiple of 32, at least the longest distance that is asked for.
        rotate: the layer's rotation.
        device: where the rows lie.
    """

    def __init__(self, kv_heads: int, head_dim: int, period: int, rotate: Rotate, device: torch.device | str = "cpu") -> None:
        self.period, self._rotate, self._shape, self._device = period, rotate, (kv_heads, head_dim), device
        self._codes = [GrowingRows((BLOCK_TOKENS, head_dim), torch.int8, device=device) for _ in range(kv_heads)]
        self._steps = [GrowingRows((), torch.float32, device=device) for _ in range(kv_heads)]

    @property
    def heads(self) -> range:
        """The KV heads, by number."""
        return range(len(self._codes))

    def __len__(self) -> int:
        return len(self._steps[-1])

    def append(self, keys: Tensor) -> None:
        """Add the unrotated ``keys [n, Hk, 32, d]`` (any floating-point dtype) of the next ``n`` Blocks."""
        start = len(self)
        try:
            for part in keys.split(AT_ONCE):
                self._append(part)
        except BaseException:
            self.truncate(start)  # all heads grow, or none
            raise

    def _append(self, keys: Tensor) -> None:
        count, heads, size, dim = keys.shape
        positions = (torch.arange(count * size, device=keys.device) + len(self) * size) % self.period
        turned = self._rotate(keys.transpose(0, 1).reshape(heads, count * size, dim), positions).float().view(heads, count, size, dim)
        steps = turned.abs().amax(dim=(-2, -1)) / 127
        codes = (turned / steps.clamp(min=1e-30)[..., None, None]).round_().clamp_(-127, 127).to(torch.int8)
        for head in range(heads):
            self._codes[head].append(codes[head])
            self._steps[head].append(steps[head])

    def span(self, head: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """One KV head's keys int8 ``[n, 32, d]`` of Blocks ``[start, stop)``, and the fp32 step ``[n]`` of each; views where they lie
        together."""
        return self._codes[head].slice(start, stop), self._steps[head].slice(start, stop)

    def truncate(self, n: int) -> None:
        """Forget every Block from ``n`` on."""
        for rows in (*self._codes, *self._steps):
            rows.truncate(n)

    def fork(self, n: int) -> RotatedKeys:
        """A child that knows Blocks ``[0, n)``, sharing their rows; neither disturbs the other afterwards."""
        child = RotatedKeys(*self._shape, self.period, self._rotate, self._device)
        child._codes = [rows.fork(n) for rows in self._codes]
        child._steps = [rows.fork(n) for rows in self._steps]
        return child

    @property
    def nbytes(self) -> int:
        """Bytes reserved; rows inherited by a fork are counted by the object that made them."""
        return sum(rows.nbytes for rows in (*self._codes, *self._steps))
