"""The host Tier: copies of Blocks that had to leave the device, in ordinary memory.

Knows slots and their bytes, like the device Tier; never holds the only copy of anything.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .device import SlotPool


class HostTier(SlotPool):
    """Slots in host memory, page-locked where ``device``, to which Blocks go back, is a GPU."""

    def spill(self, layer: int, uids: np.ndarray, kv: Tensor) -> int:
        """Take copies of as many of these distinct Blocks ``kv`` ``[n, *shape]`` as there is room for; returns how many were copied.

        Those it holds already are not copied again (Blocks never change), only remembered as used now.
        """
        found = self.table.find(layer, uids)
        self.table.touch(found[found >= 0])
        missing = np.flatnonzero(found < 0)
        self.make_room(len(missing))
        taken = missing[: self.table.free]
        if len(taken):
            self.put(layer, uids[taken], kv[torch.from_numpy(taken).to(kv.device)], only_copy=False)
        return len(taken)

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
