"""The device Tier: preallocated slots for Blocks of one shape, where attention reads them.

Knows slots and their bytes; nothing of other Tiers, of Sessions, or of what may be evicted for whom.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from .slots import SlotTable

_ALL_ONES = 255
"""A byte that unpacks to NaN."""


class SlotPool:
    """Slots for Blocks of one shape, least recently used out first.

    Args:
        shape: one Block, ``(2, kv_heads, block_tokens, head_dim)``.
        dtype: of keys and values.
        slots: Blocks it can hold; all are reserved now.
        layers: layers that share the slots.
        unread: those of them whose Blocks leave first.
        device: where they lie.
        poison: fill free slots with NaN, so that a test sees it when one is read.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        slots: int,
        *,
        layers: int = 1,
        unread: Collection[int] = (),
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        self.table = SlotTable(slots, layers, unread)
        self.block_bytes = math.prod(shape) * dtype.itemsize
        self.poison = poison
        self.data = self._reserve((slots, *shape), dtype, torch.device(device))
        self._erase(np.arange(slots))

    def put(self, layer: int, uids: np.ndarray, kv: Tensor, *, only_copy: bool, origin: int = 0) -> np.ndarray:
        """Take a copy of Blocks ``kv`` ``[n, *shape]`` into free slots (see ``make_room``); returns their slots, int64 ``[n]``."""
        slots = self.table.next_free(len(uids))
        # Bytes first: if the copy fails, no entry points at a slot that holds something else.
        self.data.index_copy_(0, self.index(slots), self._encode(kv).to(self.data.device))
        self.table.claim(layer, uids, slots, only_copy=only_copy, origin=origin)
        return slots

    def read(self, slots: np.ndarray) -> Tensor:
        """A copy of the Blocks in ``slots``: ``[n, *shape]``."""
        return self._decode(self.data.index_select(0, self.index(slots)))

    def make_room(self, n: int) -> int:
        """Drop the coldest Blocks that may go until ``n`` slots are free, or none are left to drop; returns how many went."""
        return self.drop(self.table.victims(n))

    def drop(self, slots: np.ndarray) -> int:
        """Forget what held ``slots`` hold; returns how many they were."""
        self._erase(self.table.drop(slots))
        return len(slots)

    def forget(self, uids: np.ndarray) -> None:
        """Forget these Blocks at all layers; those being read stay readable until their readers leave."""
        self._erase(self.table.forget(uids))

    def unpin(self, slots: np.ndarray) -> None:
        """One reader less of each slot."""
        self._erase(self.table.unpin(slots))

    def index(self, slots: np.ndarray) -> Tensor:
        """``slots`` as an int64 tensor where the pool lies."""
        return torch.from_numpy(slots).to(self.data.device)

    @property
    def used_bytes(self) -> int:
        """Bytes of slots that are not free."""
        return (self.table.slots - self.table.free) * self.block_bytes

    @property
    def budget_bytes(self) -> int:
        """Bytes of all slots."""
        return self.table.slots * self.block_bytes

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        self.table.check()
        if self.poison and not self._is_blank(self.data[self.index(self.table.free_slots())]):
            raise AssertionError("somebody wrote into a free slot")

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def _encode(self, kv: Tensor) -> Tensor:
        return kv

    def _decode(self, stored: Tensor) -> Tensor:
        return stored

    def _erase(self, slots: np.ndarray) -> None:
        if self.poison and len(slots):
            self.data.index_fill_(0, self.index(slots), math.nan if self.data.is_floating_point() else _ALL_ONES)

    def _is_blank(self, data: Tensor) -> bool:
        return bool((data.isnan() if data.is_floating_point() else data == _ALL_ONES).all())
