"""The queries a decoded token is heard together with, in a ring that stays where it is.

Knows positions and rows; nothing of scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEVER = -(2**30)


class Heard:
    """The last ``room`` queries of each layer that chooses.

    A step that is made again for the same token finds what it found before: only rows of earlier tokens are known.

    Args:
        room: how many queries are heard at most, the asking one with them.
        device: where they are.
    """

    def __init__(self, room: int, device: torch.device) -> None:
        self.room = room
        self._positions = torch.full((room,), _NEVER, dtype=torch.int64, device=device)
        self._rows: dict[int, Tensor] = {}
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self.known = torch.zeros(room + 1, dtype=torch.bool, device=device)

    def reserve(self, layer: int, like: Tensor) -> None:
        """Have a ring for a layer whose queries are ``like [Hk, m, d]``."""
        if layer not in self._rows:
            self._rows[layer] = like.new_zeros((like.shape[0], self.room, like.shape[2]))

    def forget(self) -> None:
        """Know no query."""
        self._positions.fill_(_NEVER)

    def begin(self, position: Tensor) -> None:
        """A token at ``position`` int64 ``[1]`` asks."""
        self.known[:-1] = (self._positions > position - self.room) & (self._positions < position)
        self.known[-1] = True
        self._place.copy_(position % self.room)
        self._positions.index_copy_(0, self._place, position)

    def extend(self, layer: int, row: Tensor) -> Tensor:
        """``row [Hk, 1, d]`` of the asking query, after those in the ring: ``[Hk, room + 1, d]``; ``known`` says which count."""
        ring = self._rows[layer]
        rows = torch.cat([ring, row], dim=1)
        ring.index_copy_(1, self._place, row)
        return rows

    def recall(self, layer: int, rows: Tensor, stop: int) -> None:
        """Take up the queries ``rows [Hk, n, d]`` of the tokens before ``stop``."""
        self.reserve(layer, rows)
        count = min(rows.shape[1], self.room)
        positions = torch.arange(stop - count, stop, device=rows.device)
        self._positions[positions % self.room] = positions
        self._rows[layer][:, positions % self.room] = rows[:, rows.shape[1] - count :]
