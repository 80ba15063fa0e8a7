"""The Blocks of one Session by number: what the cache calls each, and whether it is lost.

Knows numbers; nothing of bytes, layers or tokens.
"""

from __future__ import annotations

import numpy as np


class BlockNames:
    """Names and states of Blocks ``0`` to ``n - 1``, in arrays that double when they are full: one more costs the same at any length."""

    def __init__(self) -> None:
        self._uids = np.empty(256, np.int64)
        self._lost = np.zeros(256, bool)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def uids(self) -> np.ndarray:
        """int64 ``[n]``, a view: the cache's name of each."""
        return self._uids[: self._count]

    @property
    def lost(self) -> np.ndarray:
        """bool ``[n]``, a view: True where the Block is damaged."""
        return self._lost[: self._count]

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self._uids.nbytes + self._lost.nbytes

    def append(self, uids: np.ndarray) -> None:
        """Add Blocks, none of them lost."""
        stop = self._count + len(uids)
        if stop > len(self._uids):
            size = max(stop, 2 * len(self._uids))
            self._uids, self._lost = _grown(self._uids, self._count, size), _grown(self._lost, self._count, size)
        self._uids[self._count : stop], self._lost[self._count : stop] = uids, False
        self._count = stop

    def truncate(self, count: int) -> None:
        """Forget Blocks from ``count`` on."""
        self._count = min(self._count, count)

    def copy(self) -> BlockNames:
        """A twin of its own."""
        twin = BlockNames()
        twin._uids, twin._lost, twin._count = self.uids.copy(), self.lost.copy(), self._count
        return twin


def _grown(array: np.ndarray, count: int, size: int) -> np.ndarray:
    grown = np.empty(size, array.dtype)
    grown[:count] = array[:count]
    return grown


def distinct(blocks: np.ndarray) -> np.ndarray:
    """The Block numbers in an array of any shape that are not padding (negative), int64 ascending."""
    return np.flatnonzero(np.bincount(blocks[blocks >= 0]))  # numbers are small, so that this is faster than sorting
