"""The most recent tokens' keys and values of one layer, contiguous, so that local attention reads views and copies nothing.

Knows token indices and tensors; does not know Blocks, Tiers or which tokens are still needed.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerWindow:
    """Keys and values of tokens ``[start, stop)`` of one layer, appended at the end, dropped at the front.

    Args:
        kv_heads: KV heads ``Hk``.
        head_dim: head dimension ``d``.
        keep: how many of the newest tokens are held when older ones are dropped; None keeps every token.
        least: how many of the newest tokens must be held after a truncation; None is all there are.
        dtype: dtype of keys and values.
        device: where they are.
    """

    def __init__(
        self, kv_heads: int, head_dim: int, keep: int | None, least: int | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keep, self.least = keep, least
        self.start = 0
        self.stop = 0
        self._offset = 0
        self._kv = torch.empty((2, kv_heads, 2 * keep if keep else 1024, head_dim), dtype=dtype, device=device)
        self._shared = False

    def append(self, k: Tensor, v: Tensor) -> None:
        """Append keys and values ``[Hk, T, d]``."""
        count = k.shape[1]
        if self._shared:
            self._kv, self._shared = self._kv.clone(), False
        self._make_room(count)
        at = self._offset + self.stop - self.start
        self._kv[0, :, at : at + count] = k
        self._kv[1, :, at : at + count] = v
        self.stop += count

    def view(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, stop - start, d]`` of tokens that are held; no copy."""
        if start < self.start or stop > self.stop:
            raise IndexError(f"tokens [{start}, {stop}) are not in the window [{self.start}, {self.stop})")
        at = self._offset - self.start
        return self._kv[0, :, at + start : at + stop], self._kv[1, :, at + start : at + stop]

    def spans(self, first: int, step: int, count: int, length: int) -> tuple[Tensor, Tensor]:
        """``count`` overlapping spans of ``length`` tokens, the i-th at ``first + i * step``: ``[count, Hk, length, d]``, no copy."""
        k, v = self.view(first, first + (count - 1) * step + length)
        return k.unfold(1, length, step).permute(1, 0, 3, 2), v.unfold(1, length, step).permute(1, 0, 3, 2)

    def truncate(self, stop: int) -> bool:
        """Forget tokens from ``stop`` on; False if that leaves less than ``least`` of the tokens before it: then it must be refilled."""
        if stop >= self.stop:
            return True
        self.stop = max(stop, self.start)
        return self.stop == stop and (self.least is None or self.stop - self.start >= min(stop, self.least))

    def reset(self, at: int) -> None:
        """Hold nothing; the next token appended is ``at``."""
        self.start = self.stop = at
        self._offset = 0

    def copy(self) -> LayerWindow:
        """An independent window holding the same tokens; they are shared until either appends to them."""
        self._shared = True
        twin = object.__new__(LayerWindow)
        twin.keep, twin.least, twin.start, twin.stop, twin._offset = self.keep, self.least, self.start, self.stop, self._offset
        twin._kv, twin._shared = self._kv, True
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._kv.numel() * self._kv.element_size()

    def _make_room(self, count: int) -> None:
        held = self.stop - self.start
        if self._offset + held + count <= self._kv.shape[2]:
            return
        drop = 0 if self.keep is None else max(0, held - self.keep)
        old = self._kv[:, :, self._offset + drop : self._offset + held]
        if held - drop + count > self._kv.shape[2]:
            fresh = self._kv.new_empty((2, self._kv.shape[1], 2 * (held - drop + count), self._kv.shape[3]))
        else:
            fresh, old = self._kv, old.clone()
        fresh[:, :, : held - drop] = old
        self._kv, self._offset = fresh, 0
        self.start += drop
