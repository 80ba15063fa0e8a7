"""``self_extend``: true distances to the neighbours, grouped positions beyond them (arXiv 2401.01325)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...errors import ConfigError
from ..positions import BandedPositions
from ..selectors import WindowSelector
from .base import Given, Method, bounded

WINDOWS = 16
"""Trained windows a derived group reaches."""


@dataclass(frozen=True)
class Grouped:
    """Beyond ``neighbours`` tokens, ``group`` tokens share a position; floors everywhere, in prefill as in decoding."""

    neighbours: int
    group: int

    def query(self, i: Tensor) -> Tensor:
        """Position of far queries: shifted, so that the two parts meet."""
        return i // self.group + (self.neighbours - self.neighbours // self.group)

    def key(self, j: Tensor) -> Tensor:
        """Position of far keys."""
        return j // self.group


@dataclass(frozen=True)
class SelfExtend:
    """Grouped positions.

    Attributes:
        neighbours: W, by default a quarter of the trained window (1,024 of 4,096 in the paper).
        group: G, which must divide W; by default the smallest divisor with ``W + (N - W) / G`` at most two thirds of the trained
            window, for ``N`` = ``reach`` tokens. Beyond ``(window - W) * G + W`` tokens positions leave the trained range.
        reach: N, by default 16 windows.
        log_n: scale logits as in ReRoPE; the paper does so only for very long passkeys.
    """

    neighbours: int | None = None
    group: int | None = None
    reach: int | None = None
    log_n: bool = False

    def make(self, given: Given) -> Method:
        """Everything attended, far tokens at grouped positions."""
        neighbours = given.window // 4 if self.neighbours is None else self.neighbours
        bounded("self_extend: neighbours", neighbours, 1, given.window - 1, f"below the trained window of {given.window} tokens")
        group = self._smallest(neighbours, given.window) if self.group is None else self.group
        bounded("self_extend: group", group, 1, neighbours, f"neighbours={neighbours}")
        if neighbours % group:
            raise ConfigError(f"self_extend: group={group} does not divide neighbours={neighbours}; the two parts would not meet")
        far = Grouped(neighbours, group)
        return Method("self_extend", None, WindowSelector(), BandedPositions(neighbours, far, given.window if self.log_n else None))

    def _smallest(self, neighbours: int, window: int) -> int:
        reach = WINDOWS * window if self.reach is None else self.reach
        divisors = [size for size in range(1, neighbours + 1) if neighbours % size == 0]
        fitting = [size for size in divisors if neighbours + (reach - neighbours) / size <= window * 2 / 3]
        return fitting[0] if fitting else neighbours
