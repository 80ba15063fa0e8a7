"""The last queries of each layer, which are heard when the group after them chooses.

Knows tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEARD = 12
"""Queries before a broken group that are kept, for what they say about it."""


class RecentQueries:
    """The last queries of each layer, ``[H, up to HEARD, d]``, and the token after them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[int, Tensor]] = {}

    def forget(self) -> None:
        """Know none any more."""
        self._layers.clear()

    def extend(self, layer: int, queries: Tensor, start: int) -> Tensor:
        """``queries [H, T, d]`` from token ``start`` on, headed by those just before them if they are known."""
        stop, past = self._layers.get(layer, (-1, queries[:, :0]))
        return torch.cat([past, queries], dim=1) if stop == start else queries

    def before(self, layer: int, start: int) -> Tensor | None:
        """The queries ``[H, n, d]`` just before token ``start``; None if they are not known."""
        stop, past = self._layers.get(layer, (-1, None))
        return past if stop == start else None

    def keep(self, layer: int, queries: Tensor, stop: int) -> None:
        """Remember the last of ``queries [H, T, d]``, which end before token ``stop``."""
        self._layers[layer] = (stop, queries[:, -HEARD:])
