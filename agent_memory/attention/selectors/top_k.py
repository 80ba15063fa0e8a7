"""ReAttention (first version: LongCache, arXiv 2407.15176): every query names its top-k keys, the layer keeps the most named.

Follows methods.md 10.1, the paper's intended semantics: exact top-k, GQA pairing ``h // g``, votes counted over heads and queries,
one set a layer shared by all heads, ties to the higher count and then the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ...memory.layer_kv import Keeps, LayerKV
from .base import Ask, Bounds, Selection, by_kv_head

SCORES_AT_ONCE = 1 << 21
"""Scores held at a time (8 MiB of fp32): a CPU goes over them several times, and memory is four times as slow as its cache."""


class TopKSelector:
    """ReAttention's selection.

    Args:
        k: keys each (query head, query) names.
        clip: named keys kept in a layer; -1 keeps all.
        span: tokens fetched around a kept key, from ``c - span // 2`` to ``c + (span + 1) // 2 - 1``.
        ops: kernel implementation.
    """

    keeps = Keeps(every_key=True)

    def __init__(self, k: int, clip: int, span: int, ops: Operations) -> None:
        self.k, self.clip, self.span, self._ops = k, clip, span, ops

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """See the module; ``scaling`` is not used: scores are raw products."""
        return [self._select(ask.queries[:, :, -ask.asking :], ask.bounds, layer) for ask in asks]

    def _select(self, queries: Tensor, bounds: Bounds, layer: LayerKV) -> Selection:
        keys = self._keys(bounds, layer)
        rows = by_kv_head(queries, keys.shape[0])
        groups = rows.shape[0]
        stops = bounds.stops - bounds.first
        width = keys.shape[1]
        counts = torch.zeros((groups, width), dtype=torch.int32, device=queries.device)
        step = max(1, SCORES_AT_ONCE // max(1, rows.shape[1] * rows.shape[2] * width))
        for at in range(0, groups, step):
            counts[at : at + step] = self._count(rows[at : at + step], keys, stops[at : at + step], bounds, width)
        chosen = self._most_named(counts)
        tokens = self._spans(chosen, stops, width)
        scored = int(stops.clamp(min=0).sum()) * keys.shape[0]
        return Selection(_compact(tokens, bounds.first), exact=not bounds.lost.any(), certified="memory", keys_scored=scored)

    def _keys(self, bounds: Bounds, layer: LayerKV) -> Tensor:
        """Every key of the middle: ``[Hk, M, d]`` from ``bounds.first`` to the last stop (whole Blocks, and the window's rest)."""
        if layer.every_key is None:
            raise RuntimeError("this layer keeps no key store")
        last = int(bounds.stops.max())
        blocks = torch.cat(layer.every_key.views()).transpose(0, 1).flatten(1, 2)
        if blocks.shape[1] < last:
            blocks = torch.cat([blocks, layer.window.view(blocks.shape[1], last)[0]], dim=1)
        return blocks[:, bounds.first : last]

    def _count(self, rows: Tensor, keys: Tensor, stops: Tensor, bounds: Bounds, width: int) -> Tensor:
        scores = self._ops.score(rows, keys, 1.0)
        index = torch.arange(width, device=rows.device)
        visible = index[None] < stops[:, None]
        lost = torch.from_numpy(bounds.lost).to(rows.device)
        if bounds.lost.any():
            visible = visible & ~lost[(index + bounds.first) // bounds.block][None]
        scores.masked_fill_(~visible[:, None, None, :], float("-inf"))
        named = self._ops.select(scores, min(self.k, width))
        flat = named.flatten(1)
        counts = torch.zeros((rows.shape[0], width + 1), dtype=torch.int32, device=rows.device)
        counts.scatter_add_(1, flat.masked_fill(flat < 0, width), torch.ones_like(flat, dtype=torch.int32))
        return counts[:, :width]

    def _most_named(self, counts: Tensor) -> Tensor:
        """Bool ``[G, M]``: kept keys."""
        if self.clip < 0:
            return counts > 0
        votes = counts.float().masked_fill(counts == 0, float("-inf"))
        kept = self._ops.select(votes, self.clip)
        mask = torch.zeros((counts.shape[0], counts.shape[1] + 1), dtype=torch.bool, device=counts.device)
        mask.scatter_(1, kept.masked_fill(kept < 0, counts.shape[1]), True)
        return mask[:, :-1]

    def _spans(self, kept: Tensor, stops: Tensor, width: int) -> Tensor:
        """Bool ``[G, M]``: tokens within a span of a kept key. Counts starts minus ends, so overlapping spans merge."""
        edge = torch.zeros((kept.shape[0], width + 1), dtype=torch.int32, device=kept.device)
        group, at = kept.nonzero(as_tuple=True)
        ones = torch.ones_like(at, dtype=torch.int32)
        edge.index_put_((group, (at - self.span // 2).clamp(min=0)), ones, accumulate=True)
        edge.index_put_((group, (at + (self.span + 1) // 2).clamp(max=width)), -ones, accumulate=True)
        inside = edge.cumsum(1)[:, :width] > 0
        return inside & (torch.arange(width, device=kept.device)[None] < stops[:, None])


def _compact(mask: Tensor, first: int) -> Tensor:
    """Bool ``[G, M]`` to token indices ``[G, 1, n]`` ascending, padded with -1."""
    groups, at = mask.nonzero(as_tuple=True)
    counts = mask.sum(1)
    most = int(counts.max()) if len(counts) else 0
    rank = torch.arange(len(at), device=mask.device) - (counts.cumsum(0) - counts)[groups]
    tokens = torch.full((mask.shape[0], most), -1, dtype=torch.int64, device=mask.device)
    tokens[groups, rank] = at + first
    return tokens[:, None]
