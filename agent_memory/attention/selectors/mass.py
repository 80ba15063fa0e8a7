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
from ..region import Estimate
from .base import Ask, Selection, by_kv_head

EMPTY = float("-inf")


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
        starts = torch.arange(candidates.shape[1] * PARTS, device=candidates.device) * PART_TOKENS
        parts = candidates.repeat_interleave(PARTS, 1) & (starts < ask.bounds.stops[:, None])
        masses, near = self._masses(ask, scaling, layer, parts)
        shares = self._shares(ask, masses)
        chosen = self._best(shares, candidates, parts)
        scored = int(candidates.sum()) * BLOCK_TOKENS * shares.shape[1]
        unread = None
        if self.config.estimate_unread:
            whole = starts + PART_TOKENS <= ask.bounds.stops[:, None]
            unread = _unread(masses, chosen, near.repeat_interleave(PARTS, 1) & whole, layer)
        return Selection(_tokens(ask, chosen), False, "no", scored, unread=unread)

    @staticmethod
    def _shares(ask: Ask, masses: Tensor) -> Tensor:
        """Shares of all attention, what is attended anyway included, that parts of ``masses [G, Hk, m, parts]`` hold: the mean over the
        queries and query heads of each KV head, fp32 ``[G, Hk, parts]``. A query that looks at its neighbours has little to say."""
        if ask.near is None:
            raise RuntimeError("this ask does not know what is attended anyway")
        total = torch.logaddexp(torch.logsumexp(masses, dim=-1), ask.near())
        return torch.exp(masses - total[..., None]).mean(2)

    def _best(self, shares: Tensor, candidates: Tensor, parts: Tensor) -> Tensor:
        """Numbers of the chosen parts, int64 ``[G, Hk, c]`` ascending and padded with -1, by their ``shares [G, Hk, n * PARTS]``."""
        by_block = shares.unflatten(2, (-1, PARTS)).sum(-1).masked_fill(~candidates[:, None], EMPTY)
        blocks = self._ops.select(by_block, self.config.blocks)
        allowed = _among(blocks, by_block.shape[2]).repeat_interleave(PARTS, 2) & parts[:, None]
        return self._ops.select(shares.masked_fill(~allowed, EMPTY), self.config.tokens // PART_TOKENS)

    def _masses(self, ask: Ask, scaling: float, layer: LayerKV, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Log masses fp32 ``[G, Hk, m, parts]`` of what may be chosen, bool ``parts [G, parts]``, and -inf elsewhere; and bool ``[G, n]``:
        Blocks that are scored at their true distance."""
        summary, rotated = layer.summary, layer.rotated_keys
        if summary is None or rotated is None:
            raise RuntimeError("this layer keeps no keys to choose by")
        queries, count = ask.queries[:, :, -ask.asking :], parts.shape[1] // PARTS
        groups = queries.shape[0]
        # Blocks before ``first`` lie beyond ``reach``, seen from the last query of the group.
        first = (ask.positions[:, -1] - self.config.reach + BLOCK_TOKENS).clamp(min=0).div(BLOCK_TOKENS, rounding_mode="floor")
        least, most = min(int(first.min()), count), min(int(first.max()), count)
        near = torch.arange(count, device=parts.device)[None] >= first[:, None]
        made = [self._near(ask, queries, scaling, rotated, *piece) for piece in _periods(least, count, rotated.period)]
        masses = _by_group(torch.cat(made, dim=2), groups) if made else None
        if most:
            far = _by_group(self._far(ask, queries, scaling, summary, most), groups)
            if masses is None:
                masses = far
            else:
                masses = torch.nn.functional.pad(masses, (least * PARTS, 0))
                here = near[:, :most].repeat_interleave(PARTS, 1)[:, None, None]
                masses[..., : most * PARTS] = torch.where(here, masses[..., : most * PARTS], far)
        if masses is None:
            raise RuntimeError("there is nothing to choose from")
        return masses.masked_fill_(~parts[:, None, None], EMPTY), near

    def _near(self, ask: Ask, queries: Tensor, scaling: float, rotated: RotatedKeys, start: int, stop: int, origin: int) -> Tensor:
        """Log masses ``[Hk, G * m, parts]`` of Blocks ``[start, stop)``, whose positions are counted from ``origin``."""
        rows = _rows(ask.rotated(queries, (ask.positions - origin).clamp(min=0)), len(rotated.heads))
        keys = [rotated.span(head, start, stop) for head in rotated.heads]
        return self._ops.block_masses(rows, keys, PART_TOKENS, scaling, ask.softcap)

    def _far(self, ask: Ask, queries: Tensor, scaling: float, summary: LayerSummary, stop: int) -> Tensor:
        """Log masses ``[Hk, G * m, parts]`` of Blocks ``[0, stop)``, all of whose keys stand at ``reach``."""
        rows = _rows(ask.rotated(queries, torch.full_like(ask.positions, self.config.reach)), summary.kv_heads)
        keys = [summary.span_keys(head, 0, stop) for head in range(summary.kv_heads)]
        common = (rows.float() @ summary.centre[..., None]).mul_(scaling)
        return self._ops.block_masses(rows, keys, PART_TOKENS, scaling, ask.softcap, common)


def _tokens(ask: Ask, parts: Tensor) -> Tensor:
    """Token indices ``[G, Hk, c * PART_TOKENS]`` of parts ``[G, Hk, c]``; -1 where padded or outside what may be chosen."""
    tokens = (parts[..., None] * PART_TOKENS + torch.arange(PART_TOKENS, device=parts.device)).flatten(2)
    outside = (tokens < ask.bounds.first) | (tokens >= ask.bounds.stops[:, None, None])
    return tokens.masked_fill_(outside, -1)


def _unread(masses: Tensor, chosen: Tensor, allowed: Tensor, layer: LayerKV) -> Estimate:
    """What is left of ``masses [G, Hk, m, parts]``, which are overwritten, without the ``chosen [G, Hk, c]`` parts."""
    if layer.value_means is None:
        raise RuntimeError("this layer keeps no mean values")
    count = masses.shape[3]
    masses.masked_fill_((_among(chosen, count) | ~allowed[:, None])[:, :, None], EMPTY)
    return Estimate(masses, layer.value_means.slice(0, count // PARTS).flatten(0, 1))


def _among(chosen: Tensor, count: int) -> Tensor:
    """Bool ``[G, Hk, count]``: which numbers are among ``chosen [G, Hk, c]``, padded with -1."""
    marks = torch.zeros((*chosen.shape[:2], count + 1), dtype=torch.bool, device=chosen.device)
    return marks.scatter_(2, chosen.masked_fill(chosen < 0, count), True)[..., :count]


def _marked(candidates: Tensor) -> Tensor:
    """fp32 scores that are the same for all candidates, and -inf for the others."""
    return candidates.float().masked_fill(~candidates, EMPTY)


def _by_group(masses: Tensor, groups: int) -> Tensor:
    """``[Hk, G * m, parts]`` to ``[G, Hk, m, parts]``."""
    split: Tensor = masses.unflatten(1, (groups, -1))
    return split.transpose(0, 1)


def _rows(queries: Tensor, kv_heads: int) -> Tensor:
    """``[G, H, T, d]`` to ``[Hk, G * m, d]``."""
    rows: Tensor = by_kv_head(queries, kv_heads).transpose(0, 1).flatten(1, 2)
    return rows


def _periods(start: int, stop: int, period: int) -> list[tuple[int, int, int]]:
    """Blocks ``[start, stop)`` cut where positions begin anew: ``(start, stop, first position)`` of each piece."""
    step = period // BLOCK_TOKENS
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return [(a, b, a // step * period) for a, b in zip(edges, edges[1:], strict=False) if b > a]
