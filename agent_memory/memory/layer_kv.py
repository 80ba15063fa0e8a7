"""What one layer of one Session keeps where attention can reach it, beside Blocks in the Tiers.

Knows shapes and tensors; how they are filled is the Session's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..types import KVLayout
from .clusters import ClusterPlan, LayerClusters
from .growing import GrowingRows
from .parts import LayerParts
from .representatives import LayerRepresentatives, RepresentativePlan
from .rotated_keys import RotatedKeys
from .summary import LayerSummary
from .window import LayerWindow


class ReadKeys(Protocol):
    """Reads true keys out of the Tiers."""

    def __call__(self, blocks: Tensor, head: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys ``[n, Hk, 32, d]`` of Blocks int64 ``[n]``, or ``[n, 1, 32, d]`` of one KV head, and bool ``[n]``: whether each is sound."""
        ...


@dataclass(frozen=True, slots=True)
class Keeps:
    """What a Selector needs of every layer that chooses, beside summaries.

    Attributes:
        every_key: all keys, held in memory.
        representatives: representatives of blocks.
        clusters: clusters of like keys.
        distances: keys rotated to their positions, counted from multiples of so many tokens.
        parts: mean values of parts of each Block, tokens with like keys.
    """

    every_key: bool = False
    representatives: RepresentativePlan | None = None
    clusters: ClusterPlan | None = None
    distances: int | None = None
    parts: bool = False


@dataclass(frozen=True, slots=True)
class KVPlan:
    """What a Session keeps beside its Blocks.

    Attributes:
        sink: first tokens that are always attended, a multiple of the Block size.
        keep: newest tokens held contiguously; None keeps all.
        least: of them, how many attention may look back at; the others are there to be truncated without reading Blocks.
        recalling: for each layer, whether it recalls (and so needs summaries).
        keeps: what the method's Selector needs.
        query_heads: of each layer, where there are representatives.
        rotate: ``rotate(layer, x [Hk, n, d], positions [n])``, the model's rotation, where rotated keys are kept.
    """

    sink: int
    keep: int | None
    recalling: tuple[bool, ...]
    keeps: Keeps = Keeps()
    least: int | None = None
    query_heads: tuple[int, ...] = ()
    rotate: Callable[[int, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was read for chosen tokens: which of them are ``valid``, bool ``[G, S, n]``, and the Tier of each distinct Block."""

    valid: Tensor
    blocks: np.ndarray
    tiers: np.ndarray


class LayerKV:
    """One layer's part of a Session.

    Args:
        layout: shapes of a Block.
        layer: dense layer index.
        plan: what is kept.
        dtype: of keys and values.
        device: where they are.
        read_keys: reads true keys.
    """

    def __init__(self, layout: KVLayout, layer: int, plan: KVPlan, dtype: torch.dtype, device: torch.device, read_keys: ReadKeys) -> None:
        heads, dim = layout.kv_heads[layer], layout.head_dim[layer]
        self.window = LayerWindow(heads, dim, plan.keep, plan.least, dtype=dtype, device=device)
        self.sink = torch.zeros((2, heads, plan.sink, dim), dtype=dtype, device=device)
        self.read_keys = read_keys
        keeps, recalls = plan.keeps, plan.recalling[layer]
        self.summary = LayerSummary(heads, dim, device=device) if recalls else None
        self.clusters = None
        if recalls and keeps.clusters is not None:
            self.clusters = LayerClusters(heads, dim, keeps.clusters, device)
        self.every_key = GrowingRows((heads, layout.block_tokens, dim), dtype, device=device) if recalls and keeps.every_key else None
        self.rotated_keys = None
        if recalls and keeps.distances is not None and plan.rotate is not None:
            self.rotated_keys = RotatedKeys(heads, dim, keeps.distances, partial(plan.rotate, layer), device)
        self.parts = LayerParts(heads, dim, dtype, device) if recalls and keeps.parts else None
        self.representatives = (
            LayerRepresentatives(keeps.representatives, plan.query_heads[layer], dim, device)
            if recalls and keeps.representatives is not None
            else None
        )
        self.sealed = 0

    def truncate(self, length: int, blocks: int) -> None:
        """Forget what is kept of tokens from ``length`` on, ``blocks`` whole Blocks being left."""
        self.sealed = min(self.sealed, blocks)
        if self.clusters is not None and self.summary is not None:
            self.clusters.truncate(length, self.summary.scanned_keys)
        if self.summary is not None:
            self.summary.truncate(self.sealed)
        for rows in (self.every_key, self.rotated_keys, self.parts):
            if rows is not None:
                rows.truncate(self.sealed)
        if self.representatives is not None:
            self.representatives.truncate(length)

    def fork_into(self, twin: LayerKV, length: int) -> None:
        """Give ``twin`` what is kept of tokens before ``length``; both may go on."""
        twin.window, twin.sink, twin.sealed = self.window.copy(), self.sink.clone(), self.sealed
        twin.summary = None if self.summary is None else self.summary.fork(self.sealed)
        twin.clusters = None if self.clusters is None else self.clusters.fork()
        twin.every_key = None if self.every_key is None else self.every_key.fork(self.sealed)
        twin.rotated_keys = None if self.rotated_keys is None else self.rotated_keys.fork(self.sealed)
        twin.parts = None if self.parts is None else self.parts.fork(self.sealed)
        twin.representatives = None if self.representatives is None else self.representatives.fork(length)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the Tiers."""
        kept = (
            self.window,
            self.summary,
            self.clusters,
            self.every_key,
            self.rotated_keys,
            self.parts,
            self.representatives,
        )
        return self.sink.nbytes + sum(part.nbytes for part in kept if part is not None)
