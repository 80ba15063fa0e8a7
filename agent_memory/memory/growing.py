"""Rows of one tensor that only grow at the end, shared with forks instead of copied.

Knows rows, sharing and copy-on-write; nothing of what a row means.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class GrowingRows:
    """Append-only rows of one tensor, preallocated by doubling.

    A fork shares the rows it inherited: they are its *base*, never written again by anybody; what it appends is its own. Whoever
    truncates below rows that others may still see, and then appends, moves to a buffer of its own first.

    Args:
        row_shape: shape of one row.
        dtype: dtype of the rows.
        capacity: rows to reserve at the first append.
        device: where the rows lie.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: torch.dtype, capacity: int = 256, device: torch.device | str = "cpu") -> None:
        self.row_shape, self.dtype = tuple(row_shape), dtype
        self._capacity = max(1, capacity)
        self._base = torch.empty((0, *self.row_shape), dtype=dtype, device=device)
        self._buffer = self._base
        self._own = 0
        self._seen = 0  # rows of _buffer that a fork may look at, whatever this object truncates

    def __len__(self) -> int:
        return len(self._base) + self._own

    def append(self, rows: Tensor) -> None:
        """Add ``rows`` ``[n, *row_shape]`` at the end; they are converted to this object's dtype and device."""
        stop = self._own + len(rows)
        if stop > len(self._buffer) or self._own < self._seen:
            self._move(stop)
        self._buffer[self._own : stop] = rows
        self._own = stop

    def truncate(self, n: int) -> None:
        """Forget every row from ``n`` on; nothing happens if there are no more than ``n``."""
        if n < len(self._base):
            self._base = self._base[:n]
        self._own = max(0, min(self._own, n - len(self._base)))

    def views(self) -> list[Tensor]:
        """All rows as one or two contiguous tensors ``[*, *row_shape]``, in order: inherited ones, own ones.

        They are views: valid until this object is truncated and appended to.
        """
        return [part[:count] for part, count in self.buffers()] or [self._buffer[:0]]

    def buffers(self) -> list[tuple[Tensor, int]]:
        """As :meth:`views`, each with what is reserved after its last row, and how many rows it has: it stays where it is until more has
        to be reserved."""
        return [(part, count) for part, count in ((self._base, len(self._base)), (self._buffer, self._own)) if count]

    def slice(self, start: int, stop: int) -> Tensor:
        """Rows ``[start, stop)``: a view where they lie together, else a copy."""
        split = len(self._base)
        low, high = self._base[start:stop], self._buffer[max(start - split, 0) : min(max(stop - split, 0), self._own)]
        if len(low) and len(high):
            return torch.cat([low, high])
        return low if len(low) else high

    def gather(self, index: Tensor, part: Tensor | None = None) -> Tensor:
        """Rows by number.

        Args:
            index: int64, any shape, row numbers in ``[0, len)``.
            part: int64 of a shape that broadcasts with ``index``: take only this place along the rows' first dimension (a row holds
                several heads, and each wants other rows).

        Returns:
            ``[*index.shape, *row_shape]``, or ``[*shape, *row_shape[1:]]`` with ``part``; always a copy.

        Raises:
            IndexError: if a number is out of range.
        """
        width = 1 if part is None else self.row_shape[0]
        shape = self.row_shape if part is None else self.row_shape[1:]
        flat = index if part is None else index * width + part
        low, high = (rows.reshape(-1, *shape) for rows in (self._base, self._buffer[: self._own]))
        picked = _pick(low, high, flat.reshape(-1))
        return picked.reshape(*flat.shape, *shape)

    def fork(self, n: int) -> GrowingRows:
        """A child that sees rows ``[0, n)``; both may append and truncate afterwards without disturbing the other.

        Rows this object itself inherited stay shared; if it has own ones too, the child copies those (a fork of a fork).
        """
        split = len(self._base)
        child = GrowingRows(self.row_shape, self.dtype, self._capacity, self._base.device)
        if split == 0:
            child._base = self._buffer[: min(n, self._own)]
            self._seen = max(self._seen, len(child._base))
            return child
        child._base = self._base[:n]
        if n > split and self._own:
            child.append(self._buffer[: min(n - split, self._own)])
        return child

    @property
    def nbytes(self) -> int:
        """Bytes reserved by this object; inherited rows are counted by the object that made them."""
        return len(self._buffer) * math.prod(self.row_shape) * self.dtype.itemsize

    def _move(self, needed: int) -> None:
        size = max(needed, self._capacity, len(self._buffer) if needed <= len(self._buffer) else 2 * len(self._buffer))
        buffer = torch.empty((size, *self.row_shape), dtype=self.dtype, device=self._base.device)
        buffer[: self._own] = self._buffer[: self._own]
        self._buffer, self._seen = buffer, 0


def _pick(low: Tensor, high: Tensor, index: Tensor) -> Tensor:
    if not len(high):
        return low.index_select(0, index)
    if not len(low):
        return high.index_select(0, index)
    inherited = index < len(low)
    picked = low.new_empty((len(index), *low.shape[1:]))
    picked[inherited] = low.index_select(0, index[inherited])
    picked[~inherited] = high.index_select(0, index[~inherited] - len(low))
    return picked
