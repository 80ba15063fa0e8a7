"""What memory contributed to one reply, counted while it happens.

Knows Blocks and Tiers; turning Blocks into turns is the Session's affair.
"""

from __future__ import annotations

import numpy as np

from ..types import Certificate
from .selectors import Selection
from .shares import AttentionShares

WEAKER: dict[Certificate, int] = {"memory": 0, "survivors": 1, "no": 2}


class Trace:
    """Counts of one reply's selections.

    Attributes:
        selections: (layer, KV head or layer, group) choices made.
        attended: keys attended to, summed over queries and layers (a key is counted for every query of a group that reads it).
        damaged: Blocks that were wanted, or would have been candidates, and could not be trusted.
        shares: attention shares, if somebody sums them.
    """

    def __init__(self) -> None:
        self.selections = 0
        self.attended = 0
        self.damaged: set[int] = set()
        self.exact = True
        self.certified: Certificate = "memory"
        self.keys_scored = 0
        self.keys_rescored = 0
        self.shares: AttentionShares | None = None
        self._named = np.zeros(0, np.int64)  # by Block: choices that named it
        self._tiers = np.zeros(0, np.int8)  # by Block: slowest Tier it was read from, counted from 1; 0 if it was not read

    def choose(self, chosen: Selection, block: int) -> None:
        """Count one layer's choices."""
        blocks = chosen.tokens.div(block, rounding_mode="floor").flatten(0, 1).cpu().numpy()
        self.choose_blocks(blocks, chosen.exact, chosen.certified, chosen.keys_scored)
        self.keys_rescored += chosen.keys_rescored

    def choose_blocks(self, blocks: np.ndarray, exact: bool, certified: Certificate, keys_scored: int) -> None:
        """Count one layer's choices, int64 ``[choices, n]``, padded with -1; a Block may be named more than once."""
        self.selections += len(blocks)
        self.exact = self.exact and exact
        self.certified = max(self.certified, certified, key=lambda c: WEAKER[c])
        self.keys_scored += keys_scored
        width = int(blocks.max(initial=-1)) + 1
        marks = np.zeros((len(blocks), width + 1), bool)
        marks[np.arange(len(blocks))[:, None], blocks] = True  # what is padded marks the last column
        self._named = _reaching(self._named, width)
        self._named[:width] += marks[:, :width].sum(0)

    def read(self, blocks: np.ndarray, tiers: np.ndarray) -> None:
        """Note where Blocks were read from."""
        self._tiers = _reaching(self._tiers, int(blocks.max(initial=-1)) + 1)
        np.maximum.at(self._tiers, blocks, tiers.astype(np.int8) + 1)

    def lose(self, lost: np.ndarray) -> None:
        """Note Blocks (bool ``[blocks]``) that cannot be trusted."""
        if lost.any():
            self.damaged.update(np.flatnonzero(lost).tolist())
            self.exact = False

    @property
    def tiers(self) -> dict[int, int]:
        """Block -> slowest Tier it was read from (0 device, 1 host, 2 disk, 3 and 4 host in 8 and 4 bits)."""
        return {number: int(self._tiers[number]) - 1 for number in np.flatnonzero(self._tiers).tolist()}

    def blocks(self) -> set[int]:
        """Every Block that was chosen at least once, or read."""
        return {*np.flatnonzero(self._named).tolist(), *np.flatnonzero(self._tiers).tolist()}

    def named(self, block: int) -> int:
        """How many choices named a Block."""
        return int(self._named[block]) if block < len(self._named) else 0


def _reaching(counts: np.ndarray, length: int) -> np.ndarray:
    """Counts of at least so many Blocks."""
    if length <= len(counts):
        return counts
    grown = np.zeros(max(length, 2 * len(counts)), counts.dtype)
    grown[: len(counts)] = counts
    return grown
