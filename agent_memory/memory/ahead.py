"""Which Blocks of a Session will be wanted soon: those a layer takes over from the one before it, and those the last reply read.

Knows Block numbers and layers; nothing of Tiers, nor of how Blocks get there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .names import distinct

REMEMBERED = 64
"""Blocks of a layer that are remembered as read by the last replies."""

TRIED = 32
"""Blocks guessed before it counts how many of them were right."""

Ask = Callable[[int, np.ndarray], None]
"""Asks for Blocks, int64 ``[n]`` ascending, of a layer."""


class Ahead:
    """Asks for Blocks of one Session before they are read.

    A layer that makes no choice of its own reads what the last one chose: that is known. One that chooses may choose alike: that is a
    guess, and made for as long as at least half of what was guessed was read.

    Args:
        chooses: for each layer, whether it makes a choice of its own; none at all to ask for nothing ahead.
        block: tokens in a Block.
        ask: see :data:`Ask`.
    """

    def __init__(self, chooses: tuple[bool, ...], block: int, ask: Ask) -> None:
        self._chooses, self._block, self._ask = chooses, block, ask
        self._read: dict[int, dict[int, None]] = {}
        self._guessed: dict[int, np.ndarray] = {}
        self._guesses = self._right = 0

    def chosen(self, layer: int, tokens: Tensor) -> None:
        """A layer chose ``tokens``, int64 of any shape, padded with -1: ask for their Blocks at the layers after it."""
        takers, guess = self._after(layer)
        if not takers and guess is None:
            return
        blocks = distinct(tokens.cpu().numpy() // self._block)
        for taker in takers:
            self._ask(taker, blocks)
        if guess is not None:
            self._guessed[guess] = blocks
            self._ask(guess, blocks)

    def _after(self, layer: int) -> tuple[range, int | None]:
        """The layers that take over what this one chose, and the next one that chooses if a guess at it is worth making."""
        after = stop = layer + 1
        while stop < len(self._chooses) and not self._chooses[stop]:
            stop += 1
        worth = stop < len(self._chooses) and (self._guesses < TRIED or 2 * self._right >= self._guesses)
        return range(after, min(stop, len(self._chooses))), stop if worth else None

    def read(self, layer: int, blocks: np.ndarray, *, reply: bool) -> None:
        """A layer reads these distinct Blocks; ``reply`` says whether for a reply."""
        guessed = self._guessed.pop(layer, None)
        if guessed is not None:
            self._guesses += len(guessed)
            self._right += int(np.isin(guessed, blocks, assume_unique=True).sum())
        if reply:
            last = self._read.setdefault(layer, {})
            for block in blocks.tolist():
                last.pop(block, None)
                last[block] = None
            while len(last) > REMEMBERED:
                del last[next(iter(last))]

    def again(self) -> None:
        """Ask for what the last replies read: the next one often goes on about it."""
        for layer, blocks in self._read.items():
            self._ask(layer, np.array(sorted(blocks), np.int64))
