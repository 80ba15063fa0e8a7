"""Which Blocks the queries of a message look at sharply, over all layers: what the message is about.

Knows Blocks by number; nothing of keys, or of who reads this. A query that looks for something looks at few keys: those of the same name,
or of what followed it. So what counts of a key is how the shares of attention vary that the queries of a head give it, their squared
differences from their mean: a head that looks everywhere adds next to nothing, one that always looks at the same keys, whatever it is
asked (as at the sink), adds nothing, and one that looks at a key once adds almost 1. All heads of all layers are added up: few of
them find things (retrieval heads, arXiv 2404.15574), in some layers only, and what they find is to be told to the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR_WEIGHT = 0.5
"""What a look at a Block at its true distance counts: what is near is looked at more sharply than the same further away."""


class Evidence:
    """How sharply queries look at each Block, summed over layers and heads.

    Args:
        since: the first token whose query counts.
    """

    def __init__(self, since: int) -> None:
        self.since = since
        self._sums: Tensor | None = None

    def add(self, sharpness: Tensor) -> None:
        """Add how sharply queries of one layer look at each Block, fp32 ``[blocks]``."""
        if self._sums is not None:
            longest = max(len(self._sums), len(sharpness))
            sharpness = _padded(self._sums, longest) + _padded(sharpness, longest)
        self._sums = sharpness

    def strongest(self, count: int, far: int) -> Tensor | None:
        """The Blocks that are looked at most sharply, each with the one after it: what a query looks for stands after what it recognises,
        which may be where a Block ends.

        Args:
            count: how many.
            far: the first Block that was looked at at its true distance.

        Returns:
            int64 ``[2 * count]`` or fewer, without duplicates, padded with -1; None where nothing is looked at.
        """
        sums = self._sums
        if sums is None or not count:
            return None
        values, blocks = torch.cat([sums[:far], sums[far:] * NEAR_WEIGHT]).topk(min(count, len(sums)))
        blocks = blocks.masked_fill(values <= 0, -2)
        both = torch.cat([blocks, blocks + 1]).clamp(min=-1).sort().values
        return both.masked_fill(both == torch.nn.functional.pad(both[:-1], (1, 0), value=-1), -1)


def _padded(sums: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(sums, (0, count - len(sums)))
