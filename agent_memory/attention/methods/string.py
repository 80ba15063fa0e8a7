"""``string``: large distances are replaced by smaller, better trained ones, inside the trained window (arXiv 2410.18745)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..positions import BandedPositions
from ..selectors import WindowSelector
from .base import Given, Method, bounded


@dataclass(frozen=True)
class Shifted:
    """Distances from ``shift`` on are shifted down to ``window`` and up."""

    shift: int
    window: int

    def query(self, i: Tensor) -> Tensor:
        """Position of far queries."""
        return i - self.shift + self.window

    def key(self, j: Tensor) -> Tensor:
        """Position of far keys."""
        return j


@dataclass(frozen=True)
class String:
    """Shifted rotary positions. They do not bound distances: beyond ``window + shift - W`` tokens they leave the trained range.

    Attributes:
        shift: S, by default a third of the trained window.
        window: W, by default 128 for a window of 131,072 (a 1,024th), at least 8.
    """

    shift: int | None = None
    window: int | None = None

    def make(self, given: Given) -> Method:
        """Everything attended, distances from S on at ``i - j - S + W``."""
        shift = given.window // 3 if self.shift is None else self.shift
        near = max(8, given.window // 1024) if self.window is None else self.window
        bounded("string: shift", shift, 1, given.window - 1, f"below the trained window of {given.window} tokens")
        bounded("string: window", near, 0, shift, f"shift={shift}")
        return Method("string", None, WindowSelector(), BandedPositions(shift, Shifted(shift, near)))
