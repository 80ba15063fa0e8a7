"""How far a measurement is, in parts of known sizes.

Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Told the work that is done, all there is, and what is being done."""

Note = Callable[[str], None]
"""Told what is known so far, in one line for people, whenever a document is done."""


class Work:
    """Adds up work, of any unit.

    Args:
        tell: told of it.
        total: all there is.
    """

    def __init__(self, tell: Progress | None = None, total: int = 0) -> None:
        self._tell, self._total, self._done, self._size, self._what = tell, total, 0, 0, ""

    def begin(self, size: int, what: str) -> None:
        """A part of so much work."""
        self._size, self._what = size, what
        self.reached(0)

    def reached(self, work: float) -> None:
        """So much of the part is done."""
        if self._tell is not None:
            self._tell(min(self._total, self._done + min(self._size, round(work))), self._total, self._what)

    def at(self, share: float) -> None:
        """So much of the part is done, from 0 to 1."""
        self.reached(share * self._size)

    def end(self) -> None:
        """The part is done, whether it took as much as was thought or not."""
        self.reached(self._size)
        self._done, self._size = self._done + self._size, 0
