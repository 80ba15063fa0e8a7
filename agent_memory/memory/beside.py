"""What Sessions hold in memory beside their Blocks, counted against the host budget.

Knows bytes; nothing of what they are.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet


class Beside(Protocol):
    """Summaries and windows of one Session."""

    @property
    def nbytes(self) -> int:
        """Bytes of them now."""


class HostBudget:
    """The host budget, shared by Blocks in the host Tier and what is held beside Blocks. The latter takes its bytes first.

    Args:
        limit: bytes of both.
        reserved: bytes of the host Tier's slots.
    """

    def __init__(self, limit: int, reserved: int) -> None:
        self._limit, self._reserved = limit, reserved
        self._held: WeakSet[Beside] = WeakSet()

    def count(self, beside: Beside) -> None:
        """Count it, until ``discount`` or its end."""
        self._held.add(beside)

    def discount(self, beside: Beside) -> None:
        """Count it no more."""
        self._held.discard(beside)

    @property
    def beside(self) -> int:
        """Bytes held beside Blocks."""
        return sum(held.nbytes for held in self._held)

    @property
    def share(self) -> float:
        """The part of the host's slots that may be used, from 0 to 1."""
        return min(1.0, max(0, self._limit - self.beside) / max(1, self._reserved))

    def over(self, used: int) -> int:
        """Bytes by which what is counted, and ``used`` bytes of Blocks on the host, exceed the limit."""
        return max(0, used + self.beside - self._limit)
