"""``recall``, the default rule: each KV head reads the parts of Blocks that hold most of its query heads' attention.

Knows 8-bit keys of a layer; reads no Block. What is scored is attention mass: the sum of the softmax weights of keys, at the distances at
which they stand when they are attended. Keys within ``reach`` of a query stand at their true distance, so that what is scored is what full
attention would give them; keys further away are scored as if all of them stood at ``reach``, as InfLLM does with everything outside its
window (arXiv 2402.04617, section 3.2). What is not read within ``reach`` still takes part: each part of a Block as the mean of its values,
weighted by its mass. That is the mean value of SparQ (arXiv 2312.04985, section 3), for many small parts instead of one, as the estimation
zone of RetroInfer (arXiv 2505.02922, section 4) does for clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ...errors import ConfigError
from ...memory.layer_kv import Keeps, LayerKV
from ...memory.rotated_keys import RotatedKeys
from ...memory.summary import LayerSummary
from ...memory.value_means import PART_TOKENS, PARTS
from ...types import BLOCK_TOKENS
from ..region import Attention
from .base import Ask, Selection, by_kv_head

EMPTY = float("-inf")

TINIEST = 1e-38
"""So much above 0 that it can be divided by."""


@dataclass(frozen=True, slots=True)
class MassConfig:
    """How ``recall`` chooses.

    Attributes:
        tokens: recalled tokens of each choice of a KV head, in parts of 4; a multiple of 32.
        blocks: Blocks they are taken from at most, those with the largest mass: so many have to be brought from a slower Tier.
        reach: distance in tokens up to which keys are scored at their true distance.
        estimate_unread: attend to the mean values of parts within ``reach`` that are not read, too.
    """

    tokens: int
    blocks: int
    reach: int
    estimate_unread: bool = True

    @property
    def period(self) -> int:
        """Rotated keys count their positions from multiples of this: a power of two of at least ``reach`` tokens."""
        return 1 << max(self.reach - 1, BLOCK_TOKENS).bit_length()

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be."""
        if self.blocks * BLOCK_TOKENS < self.tokens:
            raise ConfigError(
                f"recall: blocks={self.blocks} cannot be used; it must be at least {self.tokens // BLOCK_TOKENS}, which hold the "
                f"{self.tokens} recalled tokens of the attended set"
            )


class MassSelector:
    """Chooses parts of Blocks by :class:`MassConfig`, for each KV head its own."""

    def __init__(self, config: MassConfig, ops: Operations) -> None:
        self.config, self._ops = config, ops
        self.keeps = Keeps(distances=config.period, value_means=config.estimate_unread)

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose for groups of queries."""
        return [self._select(ask, scaling, layer) for ask in asks]

    def _select(self, ask: Ask, scaling: float, layer: LayerKV) -> Selection:
        candidates = ask.bounds.candidates()
        most = self.config.tokens // BLOCK_TOKENS
        if int(candidates.sum(1).max()) <= most:
            blocks = self._ops.select(_marked(candidates[:, None]), most)
            return Selection(ask.bounds.tokens(blocks), not ask.bounds.lost.any(), "memory", 0, blocks=blocks)
        if ask.near is None:
            raise RuntimeError("this ask does not know what is attended anyway")
        near = ask.near()
        masses, first = self._masses(ask, near, scaling, layer, candidates.shape[1])
        starts = torch.arange(masses.shape[1], device=masses.device) * PART_TOKENS
        stops = ask.bounds.stops[:, None]
        allowed = candidates.repeat_interleave(PARTS, 1) & (starts < stops)
        _keep(masses, allowed)
        shares = _shares(masses)
        chosen = self._best(shares, candidates, allowed)
        scored = int(candidates.sum()) * BLOCK_TOKENS * shares.shape[1]
        unread = None
        if self.config.estimate_unread:
            _drop(masses, chosen)
            _keep(masses, (starts >= first[:, None] * BLOCK_TOKENS) & (starts + PART_TOKENS <= stops))
            unread = _means(masses, near, layer)
        return Selection(_tokens(ask, chosen), False, "no", scored, unread=unread)

    def _best(self, shares: Tensor, candidates: Tensor, allowed: Tensor) -> Tensor:
        """Numbers of the chosen parts, int64 ``[G, Hk, c]`` ascending and padded with -1, by their ``shares [G, Hk, n * PARTS]``."""
        by_block = shares.unflatten(2, (-1, PARTS)).sum(-1).masked_fill(~candidates[:, None], EMPTY)
        blocks = self._ops.select(by_block, self.config.blocks)
        within = _among(blocks, by_block.shape[2]).repeat_interleave(PARTS, 2) & allowed[:, None]
        return self._ops.select(shares.masked_fill(~within, EMPTY), self.config.tokens // PART_TOKENS)

    def _masses(self, ask: Ask, near: Tensor, scaling: float, layer: LayerKV, count: int) -> tuple[Tensor, Tensor]:
        """Masses fp32 ``[Hk, parts, G, m]`` of the parts of Blocks ``[0, count)``, relative to what is attended anyway, whose log-sum-exp
        is ``near [G, Hk, m]``; and int64 ``[G]``: the first Block that is scored at its true distance."""
        summary, rotated = layer.summary, layer.rotated_keys
        if summary is None or rotated is None:
            raise RuntimeError("this layer keeps no keys to choose by")
        queries, reference = ask.queries[:, :, -ask.asking :], near.transpose(0, 1).flatten(1)
        # Blocks before ``first`` lie beyond ``reach``, seen from the last query of the group.
        first = (ask.positions[:, -1] - self.config.reach + BLOCK_TOKENS).clamp(min=0).div(BLOCK_TOKENS, rounding_mode="floor")
        least, most = min(int(first.min()), count), min(int(first.max()), count)
        made = [self._true(ask, queries, reference, scaling, rotated, *piece) for piece in _periods(least, count, rotated.period)]
        if most:
            far = self._far(ask, queries, reference, scaling, summary, most)
            if made and most > least:
                between = slice(least * PARTS, most * PARTS)
                blocks = torch.arange(least, most, device=first.device).repeat_interleave(PARTS)
                rows = (blocks[:, None] >= first).repeat_interleave(near.shape[2], 1)
                true = made[0] if len(made) == 1 else torch.cat(made, dim=1)
                far[:, between] = torch.where(rows, true[:, : len(rows)], far[:, between])
                made = [true[:, len(rows) :]]
            made = [far, *made]
        masses = made[0] if len(made) == 1 else torch.cat(made, dim=1)
        return masses.unflatten(2, (len(first), -1)), first

    def _true(
        self, ask: Ask, queries: Tensor, reference: Tensor, scaling: float, rotated: RotatedKeys, start: int, stop: int, origin: int
    ) -> Tensor:
        """Masses ``[Hk, parts, G * m]`` of Blocks ``[start, stop)`` at their true distance, positions counted from ``origin``."""
        rows = _rows(ask.rotated(queries, (ask.positions - origin).clamp(min=0)), len(rotated.heads))
        keys = [rotated.span(head, start, stop) for head in rotated.heads]
        return self._ops.block_masses(rows, keys, PART_TOKENS, scaling, reference, ask.softcap)

    def _far(self, ask: Ask, queries: Tensor, reference: Tensor, scaling: float, summary: LayerSummary, stop: int) -> Tensor:
        """Masses ``[Hk, parts, G * m]`` of Blocks ``[0, stop)``, all of whose keys stand at ``reach``."""
        rows = _rows(ask.rotated(queries, torch.full_like(ask.positions, self.config.reach)), summary.kv_heads)
        keys = [summary.span_keys(head, 0, stop) for head in range(summary.kv_heads)]
        common = (rows.float() @ summary.centre[..., None])[..., 0] * scaling
        return self._ops.block_masses(rows, keys, PART_TOKENS, scaling, reference, ask.softcap, common)


def _tokens(ask: Ask, parts: Tensor) -> Tensor:
    """Token indices ``[G, Hk, c * PART_TOKENS]`` of parts ``[G, Hk, c]``; -1 where padded or outside what may be chosen."""
    tokens = (parts[..., None] * PART_TOKENS + torch.arange(PART_TOKENS, device=parts.device)).flatten(2)
    outside = (tokens < ask.bounds.first) | (tokens >= ask.bounds.stops[:, None, None])
    return tokens.masked_fill_(outside, -1)


def _keep(masses: Tensor, allowed: Tensor) -> None:
    """Set ``masses [Hk, parts, G, m]`` to 0 where not ``allowed [G, parts]``, without touching parts that all groups may have."""
    some = (~allowed).any(0).nonzero()[:, 0]
    if len(some):
        masses[:, some] = masses[:, some] * allowed.T[some][None, :, :, None]


def _drop(masses: Tensor, chosen: Tensor) -> None:
    """Set ``masses [Hk, parts, G, m]`` of the ``chosen [G, Hk, c]`` parts to 0."""
    heads, parts, groups, _ = masses.shape
    head, group = (torch.arange(n, device=chosen.device) for n in (heads, groups))
    rows = (head[:, None] * parts + chosen) * groups + group[:, None, None]
    masses.view(-1, masses.shape[3]).index_fill_(0, rows[chosen >= 0], 0.0)


def _shares(masses: Tensor) -> Tensor:
    """Shares of all attention, what is attended anyway included, that parts of ``masses [Hk, parts, G, m]`` hold: the mean over the
    queries and query heads of each KV head, fp32 ``[G, Hk, parts]``. A query that looks at its neighbours has little to say."""
    weights = 1 / ((1 + masses.sum(1)) * masses.shape[3])
    return torch.stack([torch.bmm(m.transpose(0, 1), w[..., None])[..., 0] for m, w in zip(masses, weights, strict=True)], dim=1)


def _means(masses: Tensor, near: Tensor, layer: LayerKV) -> Attention:
    """Attention to the mean values of parts, by ``masses [Hk, parts, G, m]`` relative to ``near [G, Hk, m]``."""
    if layer.value_means is None:
        raise RuntimeError("this layer keeps no mean values")
    heads, parts, groups, count = masses.shape
    values = layer.value_means.slice(0, parts // PARTS).flatten(0, 1).float().transpose(0, 1)
    total = masses.sum(1)
    out = masses.flatten(2).transpose(1, 2) @ values / total.view(heads, -1, 1).clamp(min=TINIEST)
    return Attention(out.view(heads, groups, count, -1).transpose(0, 1), total.transpose(0, 1).log() + near)


def _among(chosen: Tensor, count: int) -> Tensor:
    """Bool ``[G, Hk, count]``: which numbers are among ``chosen [G, Hk, c]``, padded with -1."""
    marks = torch.zeros((*chosen.shape[:2], count + 1), dtype=torch.bool, device=chosen.device)
    return marks.scatter_(2, chosen.masked_fill(chosen < 0, count), True)[..., :count]


def _marked(candidates: Tensor) -> Tensor:
    """fp32 scores that are the same for all candidates, and -inf for the others."""
    return candidates.float().masked_fill(~candidates, EMPTY)


def _rows(queries: Tensor, kv_heads: int) -> Tensor:
    """``[G, H, T, d]`` to ``[Hk, G * m, d]``."""
    rows: Tensor = by_kv_head(queries, kv_heads).transpose(0, 1).flatten(1, 2)
    return rows


def _periods(start: int, stop: int, period: int) -> list[tuple[int, int, int]]:
    """Blocks ``[start, stop)`` cut where positions begin anew: ``(start, stop, first position)`` of each piece."""
    step = period // BLOCK_TOKENS
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return [(a, b, a // step * period) for a, b in zip(edges, edges[1:], strict=False) if b > a]
