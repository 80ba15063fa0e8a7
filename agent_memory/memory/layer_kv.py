"""What one layer of one Session keeps where attention can reach it, beside Blocks in the Tiers.

Knows shapes and tensors; how they are filled is the Session's affair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..types import KVLayout
from .growing import GrowingRows
from .representatives import LayerRepresentatives, RepresentativePlan
from .summary import LayerSummary
from .window import LayerWindow


@dataclass(frozen=True, slots=True)
class KVPlan:
    """What a Session keeps beside its Blocks.

    Attributes:
        sink: first tokens that are always attended, a multiple of the Block size.
        keep: newest tokens held contiguously; None keeps all.
        least: of them, how many attention may look back at; the others are there to be truncated without reading Blocks.
        recalling: for each layer, whether it recalls (and so needs summaries).
        every_key: also hold every key in memory, for methods that score all of them.
        representatives: also keep representatives of blocks, for methods that score those.
        query_heads: of each layer, where there are representatives.
    """

    sink: int
    keep: int | None
    recalling: tuple[bool, ...]
    every_key: bool = False
    least: int | None = None
    representatives: RepresentativePlan | None = None
    query_heads: tuple[int, ...] = ()

    def holds_keys(self, layer: int) -> bool:
        """Whether a layer holds every key in memory."""
        return self.every_key and self.recalling[layer]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Keys and values ``[G, Hk, n, d]`` of chosen tokens; ``valid`` bool ``[G, S, n]``; Tier of each distinct Block read."""

    keys: Tensor
    values: Tensor
    valid: Tensor
    blocks: np.ndarray
    tiers: np.ndarray


class LayerKV:
    """One layer's part of a Session."""

    def __init__(self, layout: KVLayout, layer: int, plan: KVPlan, dtype: torch.dtype, device: torch.device) -> None:
        heads, dim = layout.kv_heads[layer], layout.head_dim[layer]
        self.window = LayerWindow(heads, dim, plan.keep, plan.least, dtype=dtype, device=device)
        self.sink = torch.zeros((2, heads, plan.sink, dim), dtype=dtype, device=device)
        self.summary = LayerSummary(heads, dim, device=device) if plan.recalling[layer] else None
        self.every_key = (
            GrowingRows((heads, layout.block_tokens, dim), dtype, device=device) if plan.every_key and plan.recalling[layer] else None
        )
        self.representatives = (
            LayerRepresentatives(plan.representatives, plan.query_heads[layer], dim, device)
            if plan.representatives is not None and plan.recalling[layer]
            else None
        )
        self.sealed = 0
