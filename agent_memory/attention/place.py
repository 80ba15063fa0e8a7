"""Where groups of queries stand in the timeline: the same at every layer of a step.

Knows the absolute grid of groups and token indices; does not know keys, or what is chosen.
"""

from __future__ import annotations

import torch

from ..memory.session_kv import SessionKV
from .methods import Sizes
from .pieces import Piece
from .positions import Attended, PositionMap, with_kv_of
from .region import Region
from .selectors import Bounds


class Place:
    """Where the groups of a piece stand, one ``group`` apart; worked out once for all layers.

    Attributes:
        first: the first token.
        length: tokens of each group that exist.
        stop: the token after the last of them.
        count: groups.
        bounds: what they may choose from.
        asking: int64 ``[G, T]``, the tokens that ask.
        tokens: int64 ``[G, 1, n]``, what they attend to whatever they choose: sink, local and own tokens.
    """

    def __init__(self, piece: Piece, sizes: Sizes, kv: SessionKV) -> None:
        group = sizes.group
        self.first, self.stop = piece.start - piece.start % group, piece.stop
        self.count = max(1, (piece.stop - piece.start) // group)
        self.length = piece.stop - (self.count - 1) * group - self.first
        starts = self.first + torch.arange(self.count, device=kv.device) * group
        self.bounds = Bounds(sizes.sink, starts - sizes.local, kv.lost, kv.layout.block_tokens)
        near = self.bounds.stops[:, None] + torch.arange(sizes.local + self.length, device=kv.device)
        self.asking = near[:, near.shape[1] - (piece.stop - piece.start) // self.count :]
        self.tokens = torch.cat([torch.arange(sizes.sink, device=kv.device).expand(self.count, -1), near], 1)[:, None]
        self._regions: list[Region] | None = None

    def regions(self, positions: PositionMap, near: Attended) -> list[Region]:
        """What they attend to whatever they choose, where it stands, which depends on the tokens alone."""
        if self._regions is None:
            self._regions = positions.regions(near)
            return self._regions
        return with_kv_of(self._regions, near)
