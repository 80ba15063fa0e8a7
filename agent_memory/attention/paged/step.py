"""Attention of one decoded token at every layer: what ``MemoryStep`` does for it, in kernels that read Blocks where they lie.

Knows page tables, the rule and the position, all on the device; nothing of models, Tiers or tokens. The first tokens of a Session, which
attend to everything, stand at true positions; beyond, Blocks are chosen from 8-bit keys and stand at packed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import (
    FARTHEST,
    Codes,
    LogitRule,
    Operations,
    PagedOperations,
    Pages,
    Pool,
    Regions,
    Rotation,
    Timeline,
    Workspace,
)

from ...memory.pages import ABSENT, PageTables
from ...memory.session_kv import SessionKV
from ...types import BLOCK_TOKENS
from ..methods import Method, Sizes
from ..region import LayerRule
from ..selectors import RecallSelector
from ..selectors.base import by_kv_head, pooled
from ..selectors.recall.votes import Votes
from .heard import Heard


@dataclass(frozen=True, slots=True)
class _Part:
    """Codes of consecutive Blocks, and which of them there are."""

    codes: Codes
    pages: Pages


class PagedStep:
    """Attends at every layer for the token at ``position``.

    All that outlives a step is kept in tensors that stay where they are, so that a step can be captured in a CUDA graph and replayed.

    Args:
        kv: the Session's keys and values.
        method: one that :func:`.fits.why_not` has nothing against.
        ops: operations on pages.
        torch_ops: operations for votes.
        rotations: of each layer, with as many positions as a token can attend to; None where nothing is rotated.

    Attributes:
        position: int64 ``[1]``, the token's index.
        dense: whether it attends to everything, at true positions.
        chosen: int32 ``[choosers, 1, S, blocks]``: Blocks each layer that chooses chose, padded with -1.
    """

    def __init__(
        self,
        kv: SessionKV,
        method: Method,
        ops: PagedOperations,
        torch_ops: Operations,
        rotations: list[Rotation | None],
        tables: PageTables,
    ) -> None:
        if not isinstance(method.selector, RecallSelector) or method.sizes is None:
            raise TypeError(f"method {method.name!r} cannot attend on pages")
        self._kv, self._method, self._ops, self._rotations, self.tables = kv, method, ops, rotations, tables
        self._rule, self._sizes = method.selector.rule, method.sizes
        self._votes = Votes(self._rule, torch_ops)
        self.workspace, self.dense = Workspace(), False
        self.position = torch.zeros(1, dtype=torch.int64, device=kv.device)
        self.heard = Heard(self._rule.heard, kv.device)
        self.choosers = [layer for layer, part in enumerate(kv.layers) if part.summary is not None and method.chooses(layer)]
        for layer in self.choosers:
            self.heard.reserve(layer, kv.layers[layer].sink[0])
        scope = kv.layout.kv_heads[0] if self._rule.scope == "kv_head" else 1
        self.chosen = torch.full((len(self.choosers), 1, scope, self._rule.blocks), ABSENT, dtype=torch.int32, device=kv.device)
        self._parts: dict[int, list[_Part]] = {}
        self._now: Tensor | None = None
        self._candidates = torch.zeros((1, 1, 0), dtype=torch.bool, device=kv.device)

    @property
    def echoes(self) -> bool:
        """Whether queries are heard with those before them."""
        return self._rule.echoes

    def summaries(self) -> tuple[tuple[int, int], ...]:
        """Look where the layers' 8-bit keys lie now; what is captured holds for as long as this gives the same."""
        made: list[tuple[int, int]] = []
        for layer in self.choosers:
            summary = self._kv.layers[layer].summary
            if summary is None:
                raise RuntimeError("this layer keeps no summaries")
            sketches, parts = summary.sketches(), self._parts.get(layer, [])
            if [part.codes.codes.data_ptr() for part in parts] != [sketch[0].data_ptr() for sketch in sketches]:
                self._parts[layer] = parts = [_part(Codes(*sketch[:3])) for sketch in sketches]
            for part, sketch in zip(parts, sketches, strict=True):
                part.pages.counts.fill_(sketch[3])
            made.extend((part.codes.codes.data_ptr(), len(part.codes.codes)) for part in parts)
        return tuple(made)

    def begin(self) -> None:
        """What all layers share."""
        sizes, size = self._sizes, BLOCK_TOKENS
        self._now, position = None, self.position
        first = position - position % sizes.group
        stop = (first - sizes.local).clamp(min=sizes.sink)
        self._length, self._stop = (position + 1).to(torch.int32), stop.to(torch.int32)
        self._sink = torch.full_like(self._length, sizes.sink)
        starts = torch.arange(self.tables.width, device=position.device) * size
        self._candidates = ((starts < stop) & (starts + size > sizes.sink) & ~self.tables.lost)[None, None]
        if not self.dense and self._rule.echoes:
            self.heard.begin(position)

    def attend(self, rule: LayerRule, q: Tensor, k: Tensor, v: Tensor, sliding: int | None = None) -> Tensor:
        """As :meth:`..step.MemoryStep.attend`, of one token: ``q [H, 1, d]``, ``k`` and ``v [Hk, 1, d]`` to ``[1, H, dv]``."""
        pool, host = self._kv.cache.pools(rule.index)
        self._write(rule.index, pool, k, v)
        if self.dense:
            regions = self._everything(rule.index)
        elif rule.index in self.choosers:
            regions = self._choose(rule, q)
        else:
            regions = self._ops.place(self._taken(), self._timeline(rule.index), BLOCK_TOKENS, workspace=self.workspace).region()
        kept = Pool(pool[:, 0], pool[:, 1], *(() if host is None else (host[:, 0], host[:, 1])))
        logits = LogitRule(rule.scaling, rule.softcap, None if rule.sinks is None else rule.sinks.float())
        rows = by_kv_head(q[None], k.shape[0])
        out, _ = self._ops.attend(rows, kept, regions, self._rotations[rule.index], logits, workspace=self.workspace)
        return out.reshape(1, q.shape[0], -1)

    def _write(self, layer: int, pool: Tensor, k: Tensor, v: Tensor) -> None:
        rows = self.tables.rows[layer] + self.position % BLOCK_TOKENS
        pool.view(-1, pool.shape[-1]).index_copy_(0, rows, torch.cat([k[:, 0], v[:, 0]]))

    def _choose(self, rule: LayerRule, q: Tensor) -> Regions:
        """Blocks by the votes of the queries, as ``recall`` with ``scan=keys`` chooses them."""
        rows, known = (pooled if self._rule.pool else by_kv_head)(q[None], self._kv.layout.kv_heads[rule.index]), None
        if self._rule.echoes:
            rows, known = self.heard.extend(rule.index, rows[0])[None], self.heard.known
        parts = [self._ops.score_codes(rows, part.codes, part.pages, workspace=self.workspace) for part in self._parts[rule.index]]
        scores = torch.cat(parts, -1)[..., : self.tables.width] * rule.scaling
        candidates = self._candidates[..., : scores.shape[-1]]
        votes = self._votes.cast(scores, 1, candidates, known=known)
        # As many as may be chosen: all of them, whatever their votes.
        few = candidates.sum(-1, keepdim=True) <= self._rule.blocks
        votes = torch.where(few, torch.zeros_like(votes).masked_fill(~candidates, float("-inf")), votes)
        count, timeline = self._rule.blocks, self._timeline(rule.index)
        chosen, placed = self._ops.select_and_place(votes.contiguous(), count, timeline, BLOCK_TOKENS, workspace=self.workspace)
        self._now = self.chosen[self.choosers.index(rule.index)]
        self._now.copy_(chosen)
        return placed.region()

    def _taken(self) -> Tensor:
        """What the last layer that chose has chosen."""
        return self._now if self._now is not None else self.chosen.new_full((1, 1, 1), ABSENT)

    def _timeline(self, layer: int) -> Timeline:
        sizes = self._sizes
        sink_blocks, local_blocks = -(-sizes.sink // BLOCK_TOKENS), (sizes.local + sizes.group) // BLOCK_TOKENS + 2
        return Timeline(self.tables.table[layer], self._sink, self._stop, self._length, 1, sink_blocks, local_blocks)

    def _everything(self, layer: int) -> Regions:
        """All Blocks at true positions."""
        count = min(self.tables.width, (self._method.attended or 0) // BLOCK_TOKENS + 2)
        first = torch.arange(count, device=self._length.device, dtype=torch.int32) * BLOCK_TOKENS
        end = (self._length - first).clamp(0, BLOCK_TOKENS)
        slots = self.tables.table[layer, 0, :count].masked_fill(end == 0, ABSENT)
        entries = torch.stack([slots, first, torch.zeros_like(first), end], -1)[None, None]
        return Regions(entries, (count,), (self._length - 1).view(1, 1, 1, 1), ((0, FARTHEST),))


def _part(codes: Codes) -> _Part:
    table = torch.arange(len(codes.codes), dtype=torch.int32, device=codes.codes.device)[None]
    return _Part(codes, Pages(table, torch.zeros(1, dtype=torch.int32, device=table.device)))


def positions_attended(method: Method) -> int:
    """How many positions a decoded token's keys can stand at."""
    sizes: Sizes | None = method.sizes
    if sizes is None or method.attended is None:
        raise TypeError(f"method {method.name!r} attends to everything")
    return max(method.attended, sizes.sink + sizes.recalled + sizes.local + sizes.group) + 1 + BLOCK_TOKENS
