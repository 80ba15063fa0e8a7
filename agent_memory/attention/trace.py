"""What memory contributed to one reply, counted while it happens.

Knows Blocks and Tiers; turning Blocks into turns is the Session's affair.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..memory.names import distinct
from ..types import Certificate
from .selectors import Selection
from .shares import AttentionShares

WEAKER: dict[Certificate, int] = {"memory": 0, "survivors": 1, "no": 2}


class Trace:
    """Counts of one reply's selections.

    Attributes:
        selections: (layer, KV head or layer, group) choices made.
        attended: keys attended to, summed over queries and layers (a key is counted for every query of a group that reads it).
        tiers: Block -> slowest Tier it was read from (0 device, 1 host, 2 disk).
        damaged: Blocks that were wanted, or would have been candidates, and could not be trusted.
        shares: attention shares, if somebody sums them.
    """

    def __init__(self) -> None:
        self.selections = 0
        self.attended = 0
        self.tiers: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.exact = True
        self.certified: Certificate = "memory"
        self.keys_scored = 0
        self.keys_rescored = 0
        self.shares: AttentionShares | None = None
        self._choices: list[np.ndarray] = []

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
        self._choices.append(blocks)

    def read(self, blocks: np.ndarray, tiers: np.ndarray) -> None:
        """Note where Blocks were read from."""
        for number, tier in zip(blocks.tolist(), tiers.tolist(), strict=True):
            self.tiers[number] = max(self.tiers.get(number, 0), tier)

    def lose(self, lost: np.ndarray) -> None:
        """Note Blocks (bool ``[blocks]``) that cannot be trusted."""
        if lost.any():
            self.damaged.update(np.flatnonzero(lost).tolist())
            self.exact = False

    def blocks(self) -> set[int]:
        """Every Block that was chosen at least once, or read."""
        return {number for choice in self._choices for number in distinct(choice).tolist()} | set(self.tiers)

    def choices(self) -> Iterator[list[int]]:
        """The Blocks of each choice."""
        for rows in self._choices:
            for row in rows:
                yield distinct(row).tolist()
