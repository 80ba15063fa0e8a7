"""The host Tier: copies of Blocks that had to leave the device, in ordinary memory, as they are or in fewer bytes.

Knows slots and their bytes, like the device Tier; never holds the only copy of anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .device import SlotPool
from .packing import Packing


class HostTier(SlotPool):
    """Slots in host memory, page-locked where ``device``, to which Blocks go back, is a GPU.

    Args:
        shape: one Block, ``(2, kv_heads, block_tokens, head_dim)``.
        dtype: of keys and values.
        slots: Blocks it can hold.
        packing: how copies are kept in fewer bytes, approximately; None keeps them as they are.
        options: as of :class:`SlotPool`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, slots: int, *, packing: Packing | None = None, **options: Any) -> None:
        self.packing = packing
        self._block_shape, self._block_dtype, self._back_to = shape, dtype, torch.device(options.get("device", "cpu"))
        if packing is None:
            super().__init__(shape, dtype, slots, **options)
        else:
            super().__init__((packing.row_bytes(shape),), torch.uint8, slots, **options)

    def spill(self, layer: int, uids: np.ndarray, kv: Tensor, sound: np.ndarray | None = None, most: int | None = None) -> int:
        """Take copies of as many of these distinct Blocks as there is room for.

        Those it holds already are not copied again (Blocks never change), only remembered as used now.

        Args:
            layer: whose Blocks.
            uids: int64 ``[n]``.
            kv: ``[n, *shape]``.
            sound: bool ``[n]``, False where ``kv`` is itself approximate: that is never copied, or errors would add up.
            most: slots it may use altogether; None is all.

        Returns:
            How many were copied.
        """
        found = self.table.find(layer, uids)
        self.table.touch(found[found >= 0])
        missing = np.flatnonzero(found < 0 if sound is None else (found < 0) & sound)
        if self.packing is not None and len(missing):
            missing = missing[self.packing.fits(kv[torch.from_numpy(missing).to(kv.device)]).cpu().numpy()]
        kept_free = 0 if most is None else max(0, self.table.slots - most)
        self.make_room(min(len(missing) + kept_free, self.table.slots))
        taken = missing[: max(0, self.table.free - kept_free)]
        if len(taken):
            self.put(layer, uids[taken], kv[torch.from_numpy(taken).to(kv.device)], only_copy=False)
        return len(taken)

    def _encode(self, kv: Tensor) -> Tensor:
        return kv if self.packing is None else self.packing.pack(kv)

    def _decode(self, stored: Tensor) -> Tensor:
        if self.packing is None:
            return stored
        return self.packing.unpack(stored.to(self._back_to), self._block_shape, self._block_dtype)

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
