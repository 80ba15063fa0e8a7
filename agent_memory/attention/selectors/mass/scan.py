"""Weights of the keys of a layer for groups of queries, from 8-bit keys.

Knows at which distance each key is scored; does not know what is chosen by its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import Operations, Span

from ....memory.layer_kv import LayerKV
from ....types import BLOCK_TOKENS
from ..base import Ask, by_kv_head
from .config import MassConfig

FEW = 8
"""Rows of a group at most that are multiplied as integers; a matter of each group, so that it chooses the same whoever asks beside it."""

WEIGHTS_HELD = 1 << 20
"""Weights held at a time."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """Which keys a scan looks at, and where.

    Attributes:
        start, stop: Blocks ``[start, stop)``.
        first: int64 ``[G]``: the first Block that is scored at its true distance, seen from the last query of each group.
        nearest, farthest: the least and the largest of them.
    """

    start: int
    stop: int
    first: Tensor
    nearest: int
    farthest: int


class Scan:
    """Weights of every key from Block ``start`` on, some KV heads and groups at a time, so that they stay in a CPU's cache.

    Attributes:
        ask: whose queries they are.
        near: fp32 ``[G, Hk, m]``: log-sum-exp of what is attended anyway, which weights are relative to.
        first: see :class:`Scanned`.
        start, count: Blocks ``[start, count)`` are scanned.
        heads: KV heads.
        pieces: KV heads and groups that are looked at together: all of them, or one head and some groups.
    """

    def __init__(self, config: MassConfig, ops: Operations, ask: Ask, scaling: float, layer: LayerKV, scanned: Scanned) -> None:
        if ask.near is None or layer.summary is None or layer.rotated_keys is None:
            raise RuntimeError("this layer keeps no keys to choose by, or the ask does not know what is attended anyway")
        self.ask, self.near, self.first, self._ops, self.scaling = ask, ask.near(), scanned.first, ops, scaling
        self._summary, self._rotated, self.start, self.count = layer.summary, layer.rotated_keys, scanned.start, scanned.stop
        groups, self.heads, rows = self.near.shape
        self.few = rows <= FEW
        together = max(1, WEIGHTS_HELD // ((self.count - self.start) * BLOCK_TOKENS * rows))
        each = self.heads if self.heads * groups <= together else 1
        self.pieces = [
            (slice(head, head + each), slice(at, min(at + together, groups)))
            for head in range(0, self.heads, each)
            for at in range(0, groups, together)
        ]
        queries = ask.queries[:, :, -ask.asking :]
        least = max(self.start, min(scanned.nearest, self.count))
        self._true = [
            (start, stop, by_kv_head(ask.rotated(queries, (ask.positions - origin).clamp(min=0)), self.heads))
            for start, stop, origin in _periods(least, self.count, layer.rotated_keys.period)
        ]
        self._far = None
        if scanned.farthest > 0:
            self._far = by_kv_head(ask.rotated(queries, torch.full_like(ask.positions, config.reach - 1)), self.heads)

    def weights(self, heads: slice, groups: slice) -> Tensor:
        """fp32 ``[s, n * 32, g, m]``: ``exp(logit - near)`` of each key of Blocks ``[start, count)``."""
        first, reference = self.first[groups], self.near[groups, heads].transpose(0, 1)
        least, most = (max(self.start, min(int(edge), self.count)) for edge in (first.min(), first.max()))
        out = reference.new_empty((reference.shape[0], (self.count - self.start) * BLOCK_TOKENS, *reference.shape[1:]))
        self.write([*self._beyond(heads, groups, self.start, least), *self._within(heads, groups, least)], reference, out)
        if most > least:  # near to some of the groups, and far from others
            mixed = out[:, (least - self.start) * BLOCK_TOKENS : (most - self.start) * BLOCK_TOKENS]
            far = torch.empty_like(mixed)
            self.write(self._beyond(heads, groups, least, most), reference, far)
            blocks = torch.arange(least, most, device=first.device).repeat_interleave(BLOCK_TOKENS)
            torch.where((blocks[:, None] < first)[..., None], far, mixed, out=mixed)
        return out

    def far(self, heads: slice, groups: slice) -> tuple[Tensor, Tensor]:
        """Queries ``[s, g, m, d]`` as they meet keys beyond ``reach``, and fp32 ``[s, g, m]``, what each adds to the logits of keys whose
        centre was subtracted."""
        if self._far is None:
            raise RuntimeError("no key is beyond reach")
        rows = self._far[groups, heads].transpose(0, 1)
        return rows, torch.einsum("sgmd,sd->sgm", rows.float(), self._summary.centre[heads]) * self.scaling

    def write(self, spans: list[Span], reference: Tensor, out: Tensor) -> None:
        """Write weights ``out [S, n, ...]`` relative to ``reference [S, ...]``."""
        flat = reference.flatten(1)
        self._ops.key_weights(spans, self.scaling, flat, out.flatten(2), self.ask.softcap, integers=self.few)

    def _within(self, heads: slice, groups: slice, start: int) -> list[Span]:
        """Blocks from ``start`` on, at their true distance."""
        return [
            Span(
                rows[groups, heads].transpose(0, 1).flatten(1, 2),
                [self._rotated.span(head, max(at, start), stop) for head in range(heads.start, heads.stop)],
            )
            for at, stop, rows in self._true
            if stop > start
        ]

    def _beyond(self, heads: slice, groups: slice, start: int, stop: int) -> list[Span]:
        """Blocks ``[start, stop)``, as if all of them stood at the end of ``reach``."""
        if stop <= start:
            return []
        rows, common = self.far(heads, groups)
        keys = [self._summary.span_keys(head, start, stop) for head in range(heads.start, heads.stop)]
        return [Span(rows.flatten(1, 2), keys, common.flatten(1))]


def _periods(start: int, stop: int, period: int) -> list[tuple[int, int, int]]:
    """Blocks ``[start, stop)`` cut where positions begin anew: ``(start, stop, first position)`` of each piece."""
    step = period // BLOCK_TOKENS
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return [(a, b, a // step * period) for a, b in zip(edges, edges[1:], strict=False) if b > a]
