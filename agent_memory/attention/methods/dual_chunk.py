"""``dca``: Dual Chunk Attention (ChunkLlama, arXiv 2402.17463): true distances inside a chunk and across its border, one cap beyond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..positions import Attended, band
from ..region import Region
from ..selectors import WindowSelector
from .base import Given, Method, bounded


@dataclass(frozen=True)
class DualChunkPositions:
    """Keys stand at ``j mod chunk``; queries at ``i mod chunk`` for their own chunk, at ``min(i mod chunk + chunk, cap)`` for the one
    before it, and at ``cap`` for all others (methods.md 3.1).

    Attributes:
        chunk: s.
        cap: largest position.
        yarn: scale the logits of query i by ``max(1, 0.1 * ln((i + 1) / yarn) + 1)``; None leaves them.
    """

    chunk: int
    cap: int
    yarn: int | None = None

    def regions(self, attended: Attended) -> list[Region]:
        """Own chunk, previous chunk, older ones."""
        i = attended.queries
        start, own = i - i % self.chunk, i % self.chunk
        before = (start - self.chunk).clamp(min=0)
        bands = [
            (start, i, own),
            (before, start - 1, (own + self.chunk).clamp(max=self.cap)),
            (torch.zeros_like(i), before - 1, torch.full_like(i, self.cap)),
        ]
        tau = None if self.yarn is None else (0.1 * ((i + 1).float() / self.yarn).log() + 1).clamp(min=1.0)
        found = [band(attended, low, high, phi, self._key, tau) for low, high, phi in bands]
        return [region for region in found if region is not None]

    def _key(self, j: Tensor) -> Tensor:
        return j % self.chunk


@dataclass(frozen=True)
class DualChunk:
    """Dual Chunk Attention, without a logit scale as the paper's results were made.

    Attributes:
        chunk: s, by default three quarters of the trained window.
        cap: largest position, by default the last of the trained window.
        yarn: scale the logits of far queries, on the query alone as vLLM does (ChunkLlama's code scales keys too, and so remembers what
            came before; methods.md 3.5).
        code: derive both as ChunkLlama's code does: s an eighth of the window less, the cap three quarters of it.
    """

    chunk: int | None = None
    cap: int | None = None
    yarn: bool = False
    code: bool = False

    def make(self, given: Given) -> Method:
        """Everything attended at distances of at most ``cap``."""
        length = given.window
        chunk, cap = (length * 3 // 4 - length // 8, length * 3 // 4) if self.code else (length * 3 // 4, length - 1)
        chunk = chunk if self.chunk is None else self.chunk
        cap = cap if self.cap is None else self.cap
        bounded("dca: cap", cap, 1, length - 1, f"below the trained window of {length} tokens")
        bounded("dca: chunk", chunk, 1, cap, f"cap={cap}")
        return Method("dca", None, WindowSelector(), DualChunkPositions(chunk, cap, length if self.yarn else None))


DCA, DCA_CODE = DualChunk(), DualChunk(code=True)
"""The parameters of the paper, and those of its code."""
