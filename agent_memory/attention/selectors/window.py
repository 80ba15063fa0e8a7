"""Choose nothing: sink and local tokens only, which is StreamingLLM (arXiv 2309.17453) with rolled positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...memory.layer_kv import Keeps, LayerKV
from .base import Ask, Selection


class WindowSelector:
    """Recalls nothing."""

    keeps = Keeps()

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Empty selections."""
        return [
            Selection(
                torch.empty((ask.queries.shape[0], 1, 0), dtype=torch.int64, device=ask.queries.device),
                exact=True,
                certified="memory",
                keys_scored=0,
            )
            for ask in asks
        ]
