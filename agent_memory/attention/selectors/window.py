"""Choose nothing: sink and local tokens only, which is StreamingLLM (arXiv 2309.17453) with rolled positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ...memory.layer_kv import LayerKV
from .base import Bounds, Selection


class WindowSelector:
    """Recalls nothing."""

    needs_every_key = False

    def select(self, queries: Tensor, asking: int, scaling: float, bounds: Bounds, layer: LayerKV) -> Selection:
        """An empty selection."""
        empty = torch.empty((queries.shape[0], 1, 0), dtype=torch.int64, device=queries.device)
        return Selection(empty, exact=True, certified="memory", keys_scored=0)
