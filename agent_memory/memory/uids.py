"""Names of Blocks in memory: small integers with reference counts, used again once nobody holds them.

Knows who is alive; nothing of where the bytes are.
"""

from __future__ import annotations

import numpy as np


class Uids:
    """Names handed out with one reference each; a name is free again when its last reference is given back.

    Names stay dense (the lowest never-used number comes after all freed ones), so tables indexed by them stay small.
    """

    def __init__(self) -> None:
        self._references = np.zeros(256, np.int32)
        self._used = 0  # names ever handed out
        self._free: list[int] = []

    @property
    def alive(self) -> int:
        """Names with at least one reference."""
        return self._used - len(self._free)

    def allocate(self, n: int) -> np.ndarray:
        """``n`` names, int64, each with one reference."""
        again = [self._free.pop() for _ in range(min(n, len(self._free)))]
        fresh = np.arange(self._used, self._used + n - len(again), dtype=np.int64)
        self._used += len(fresh)
        if self._used > len(self._references):
            grown = np.zeros(max(self._used, 2 * len(self._references)), np.int32)
            grown[: len(self._references)] = self._references
            self._references = grown
        uids = np.concatenate([np.asarray(again, np.int64), fresh])
        self._references[uids] = 1
        return uids

    def retain(self, uids: np.ndarray) -> None:
        """Add one reference for each occurrence in ``uids``."""
        self.expect_alive(uids)
        low, counts = _counted(uids)
        self._references[low : low + len(counts)] += counts

    def going(self, uids: np.ndarray) -> np.ndarray:
        """The distinct names that nobody would hold any more after ``release(uids)``."""
        self.expect_alive(uids)
        low, counts = _counted(uids)
        left = self._references[low : low + len(counts)] - counts
        if (left < 0).any():
            raise AssertionError(f"Blocks released more often than retained: {(low + np.flatnonzero(left < 0))[:8].tolist()}")
        gone: np.ndarray = low + np.flatnonzero((left == 0) & (counts > 0))
        return gone

    def release(self, uids: np.ndarray) -> None:
        """Take one reference for each occurrence in ``uids``; names nobody holds any more may be handed out again."""
        gone = self.going(uids)
        low, counts = _counted(uids)
        self._references[low : low + len(counts)] -= counts
        self._free.extend(reversed(gone.tolist()))

    def expect_alive(self, uids: np.ndarray) -> None:
        """Raises AssertionError (a mistake of ours, never of a user) if a name is not in use."""
        if len(uids) and (uids.min() < 0 or uids.max() >= self._used or not self._references[uids].all()):
            raise AssertionError("a Block was used that is not in use: never allocated, or released already")

    def check(self) -> None:
        """Raises AssertionError if counts and free names disagree."""
        if len(set(self._free)) != len(self._free) or self._references[self._free].any():
            raise AssertionError("a free Block name is listed twice or still has references")
        if np.count_nonzero(self._references) != self.alive:
            raise AssertionError("names alive and names with references differ")


def _counted(uids: np.ndarray) -> tuple[int, np.ndarray]:
    """The lowest of ``uids``, and how often it and each number after it occur: int32."""
    low = int(uids.min()) if len(uids) else 0
    return low, np.bincount(uids - low).astype(np.int32)
