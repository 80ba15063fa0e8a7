"""``recall``, our own selection: whole Blocks, by their best keys.

Knows summaries and clusters only; reads no Block. A query's scores are normalised over everything it scored before the group takes the
maximum, so that one query with a sharp match is not outvoted by many vague ones. Mean keys as a prefilter are there for models whose
keys in a Block are alike; where every key stands for itself (copying heads) the mean of 32 keys says nothing (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ....memory.clusters import ClusterPlan
from ....memory.layer_kv import Keeps, LayerKV
from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from ..base import Ask, Bounds, Selection, by_kv_head, pooled
from .certified import Certified
from .lookup import Lookup
from .means import ByEveryKey, ByMeans
from .rule import RecallRule
from .scan import scan
from .votes import Choice, Votes

__all__ = ["RecallRule", "RecallSelector"]


class RecallSelector:
    """Chooses whole Blocks by :class:`RecallRule`."""

    def __init__(self, rule: RecallRule, ops: Operations) -> None:
        self.rule, self._votes = rule, Votes(rule, ops)
        clusters = ClusterPlan(rule.clusters_from) if rule.scan == "clusters" else None
        self.keeps = Keeps(every_key=rule.scan == "exact", clusters=clusters)

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose Blocks for groups of queries."""
        summary = _summary(layer)
        rows = [self._rows(ask, summary.kv_heads) for ask in asks]
        candidates = [ask.bounds.candidates for ask in asks]
        choices = [self._votes.all(allowed) for allowed in candidates]
        open_ = [at for at, choice in enumerate(choices) if choice is None]
        if open_:
            made = self._choose([rows[at] for at in open_], [asks[at] for at in open_], [candidates[at] for at in open_], scaling, layer)
            for at, choice in zip(open_, made, strict=True):
                choices[at] = choice
        return [_selection(ask.bounds, choice) for ask, choice in zip(asks, choices, strict=True) if choice is not None]

    def _choose(self, rows: list[Tensor], asks: list[Ask], candidates: list[Tensor], scale: float, layer: LayerKV) -> list[Choice]:
        """Choose for asks that have more candidates than may be chosen."""
        summary = _summary(layer)
        if self.rule.scan in ("means", "exact"):
            way = ByMeans(self._votes, summary, scale) if self.rule.scan == "means" else ByEveryKey(self._votes, layer, scale)
            return [way.choose(part, allowed) for part, allowed in zip(rows, candidates, strict=True)]
        if self.rule.scan == "certified":
            proof = Certified(self._votes, summary, layer.read_keys, scale)
            return [proof.choose(part, ask.asking, allowed) for part, ask, allowed in zip(rows, asks, candidates, strict=True)]
        if layer.clusters is not None and layer.clusters.blocks:
            return Lookup(self._votes, layer.clusters, summary, scale).choose(rows, asks, candidates)
        return scan(self._votes, rows, asks, candidates, scale, summary)

    def _rows(self, ask: Ask, kv_heads: int) -> Tensor:
        """``[G, Hk, m, d]``: the queries that share a KV head, pooled or one by one; those asked before only where they are heard."""
        queries = ask.queries if self.rule.echoes else ask.queries[:, :, -ask.asking :]
        if self.rule.angle is not None:
            queries = ask.rotated(queries, torch.full(queries.shape[2:3], self.rule.angle, device=queries.device))
        return pooled(queries, kv_heads) if self.rule.pool else by_kv_head(queries, kv_heads)


def _selection(bounds: Bounds, choice: Choice) -> Selection:
    return Selection(
        bounds.tokens(choice.blocks),
        exact=choice.proven and choice.whole and not bounds.lost.any(),
        certified="no" if not choice.proven else "memory" if choice.whole else "survivors",
        keys_scored=choice.scored,
        keys_rescored=choice.rescored * BLOCK_TOKENS,
        blocks=choice.blocks,
    )


def _summary(layer: LayerKV) -> LayerSummary:
    if layer.summary is None:
        raise RuntimeError("this layer keeps no summaries")
    return layer.summary
