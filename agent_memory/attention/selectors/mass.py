"""``recall``, the default rule: each KV head reads the tokens that hold most of its query heads' attention.

Knows 8-bit keys of a layer; reads no Block. What is scored is attention mass: the softmax weight of a key, at the distance at which it
stands when it is attended. Keys within ``reach`` of a query stand at their true distance, so that what is scored is what full attention
would give them; keys further away are scored as if all of them stood at ``reach``, as InfLLM does with everything outside its window (arXiv
2402.04617, section 3.2). What is not read within ``reach`` still takes part: each part of a Block (4 tokens with like keys) as the mean of
its values, with the mass of those of its tokens that are not read. That is the mean value of SparQ (arXiv 2312.04985, section 3), for many
small parts instead of one, as the estimation zone of RetroInfer (arXiv 2505.02922, section 4) does for clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from agent_memory_kernels import Operations, Span

from ...errors import ConfigError
from ...memory.layer_kv import Keeps, LayerKV
from ...memory.parts import PARTS
from ...types import BLOCK_TOKENS
from ..region import Attention
from .base import Ask, Selection, by_kv_head

EMPTY = float("-inf")

TINIEST = 1e-38
"""So much above 0 that it can be divided by."""

FEW = 8
"""Rows of a group at most that are multiplied as integers; a matter of each group, so that it chooses the same whoever asks beside it."""

WEIGHTS_HELD = 1 << 20
"""Weights held at a time."""


@dataclass(frozen=True, slots=True)
class MassConfig:
    """How ``recall`` chooses.

    Attributes:
        tokens: recalled tokens of each choice of a KV head; a multiple of 32.
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
    """Chooses tokens by :class:`MassConfig`, for each KV head its own."""

    def __init__(self, config: MassConfig, ops: Operations) -> None:
        self.config, self._ops = config, ops
        self.keeps = Keeps(distances=config.period, parts=config.estimate_unread)

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose for groups of queries."""
        return [self._select(ask, scaling, layer) for ask in asks]

    def _select(self, ask: Ask, scaling: float, layer: LayerKV) -> Selection:
        candidates = ask.bounds.candidates()
        most = self.config.tokens // BLOCK_TOKENS
        if int(candidates.sum(1).max()) <= most:
            blocks = self._ops.select(_marked(candidates[:, None]), most)
            return Selection(ask.bounds.tokens(blocks), not ask.bounds.lost.any(), "memory", 0, blocks=blocks)
        scan = _Scan(self.config, self._ops, ask, scaling, layer, candidates.shape[1])
        tokens, blocks = (torch.arange(n, device=candidates.device) for n in (scan.tokens, candidates.shape[1]))
        allowed = candidates.repeat_interleave(BLOCK_TOKENS, 1) & (tokens >= ask.bounds.first) & (tokens < ask.bounds.stops[:, None])
        estimated = blocks >= scan.first[:, None]
        found = [
            self._choose(scan, heads, groups, candidates[groups], allowed[groups], estimated[groups], layer)
            for heads, groups in scan.pieces
        ]
        chosen, attention = zip(*found, strict=True)
        scored = int(candidates.sum()) * BLOCK_TOKENS * scan.heads
        unread = None
        if self.config.estimate_unread:
            unread = Attention(*(_joined(parts, scan.pieces) for parts in zip(*attention, strict=True)))
        return Selection(_joined(chosen, scan.pieces), False, "no", scored, unread=unread)

    def _choose(
        self, scan: _Scan, heads: slice, groups: slice, candidates: Tensor, allowed: Tensor, estimated: Tensor, layer: LayerKV
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What some groups choose for some KV heads: tokens ``[s, g, tokens]``, and attention ``[s, g, m, dv]`` to the rest and its
        log-sum-exp ``[s, g, m]``, if that is wanted.

        Blocks ``candidates [g, n]`` and their tokens ``allowed [g, n * 32]`` may be chosen; parts of Blocks ``estimated [g, n]`` stand
        for what is not.
        """
        weights = scan.weights(heads, groups)
        _keep(weights, allowed)
        chosen = self._best(_shares(weights), candidates, allowed)
        if not self.config.estimate_unread:
            return chosen, ()
        if layer.parts is None:
            raise RuntimeError("this layer keeps no mean values")
        _drop(weights, chosen)
        masses = _of_parts(weights, layer.parts.members(heads, candidates.shape[1]))
        _keep(masses, estimated.repeat_interleave(PARTS, 1))
        return chosen, _attended(masses, layer.parts.means(heads, candidates.shape[1]), scan.near[groups, heads].transpose(0, 1))

    def _best(self, shares: Tensor, candidates: Tensor, allowed: Tensor) -> Tensor:
        """The chosen tokens, int64 ``[s, g, tokens]`` ascending and padded with -1, by their ``shares [s, g, n * 32]``."""
        by_block = shares.unflatten(2, (-1, BLOCK_TOKENS)).sum(-1).masked_fill(~candidates, EMPTY)
        if self.config.blocks < by_block.shape[2]:
            blocks = self._ops.select(by_block, self.config.blocks)
            allowed = allowed & _among(blocks, by_block.shape[2]).repeat_interleave(BLOCK_TOKENS, 2)
        return self._ops.select(shares.masked_fill(~allowed, EMPTY), self.config.tokens)


class _Scan:
    """Weights of the keys of a layer for groups of queries, some KV heads and groups at a time, so that they stay in a CPU's cache.

    Attributes:
        ask: whose queries they are.
        near: fp32 ``[G, Hk, m]``: log-sum-exp of what is attended anyway, which weights are relative to.
        first: int64 ``[G]``: the first Block that is scored at its true distance; those before lie beyond ``reach``, seen from the last
            query of the group.
        heads: KV heads.
        tokens: keys of each.
        pieces: KV heads and groups that are looked at together: all of them, or one head and some groups.
    """

    def __init__(self, config: MassConfig, ops: Operations, ask: Ask, scaling: float, layer: LayerKV, count: int) -> None:
        if ask.near is None or layer.summary is None or layer.rotated_keys is None:
            raise RuntimeError("this layer keeps no keys to choose by, or the ask does not know what is attended anyway")
        self.ask, self.near, self._ops, self._scaling = ask, ask.near(), ops, scaling
        self._summary, self._rotated, self._count, self.tokens = layer.summary, layer.rotated_keys, count, count * BLOCK_TOKENS
        groups, self.heads, rows = self.near.shape
        self.first = (ask.positions[:, -1] - config.reach + BLOCK_TOKENS).clamp(min=0).div(BLOCK_TOKENS, rounding_mode="floor")
        together = max(1, WEIGHTS_HELD // (self.tokens * rows))
        each = self.heads if self.heads * groups <= together else 1
        self.pieces = [
            (slice(head, head + each), slice(at, min(at + together, groups)))
            for head in range(0, self.heads, each)
            for at in range(0, groups, together)
        ]
        queries = ask.queries[:, :, -ask.asking :]
        least = min(int(self.first.min()), count)
        self._true = [
            (start, stop, by_kv_head(ask.rotated(queries, (ask.positions - origin).clamp(min=0)), self.heads))
            for start, stop, origin in _periods(least, count, layer.rotated_keys.period)
        ]
        self._far = None
        if int(self.first.max()) > 0:
            self._far = by_kv_head(ask.rotated(queries, torch.full_like(ask.positions, config.reach)), self.heads)

    def weights(self, heads: slice, groups: slice) -> Tensor:
        """fp32 ``[s, n * 32, g, m]``: ``exp(logit - near)`` of each key."""
        first, reference = self.first[groups], self.near[groups, heads].transpose(0, 1)
        least, most = min(int(first.min()), self._count), min(int(first.max()), self._count)
        out = reference.new_empty((reference.shape[0], self.tokens, *reference.shape[1:]))
        self._write([*self._beyond(heads, groups, 0, least), *self._within(heads, groups, least)], reference, out)
        if most > least:  # near to some of the groups, and far from others
            far = torch.empty_like(out[:, least * BLOCK_TOKENS : most * BLOCK_TOKENS])
            self._write(self._beyond(heads, groups, least, most), reference, far)
            blocks = torch.arange(least, most, device=first.device).repeat_interleave(BLOCK_TOKENS)
            mixed = out[:, least * BLOCK_TOKENS : most * BLOCK_TOKENS]
            torch.where((blocks[:, None] < first)[..., None], far, mixed, out=mixed)
        return out

    def _within(self, heads: slice, groups: slice, start: int) -> list[Span]:
        """Blocks from ``start`` on, at their true distance."""
        return [
            self._span(rows[groups, heads], [self._rotated.span(head, max(at, start), stop) for head in _range(heads)])
            for at, stop, rows in self._true
            if stop > start
        ]

    def _beyond(self, heads: slice, groups: slice, start: int, stop: int) -> list[Span]:
        """Blocks ``[start, stop)``, as if all of them stood at ``reach``."""
        if self._far is None or stop <= start:
            return []
        rows = self._far[groups, heads]
        common = torch.einsum("gsmd,sd->sgm", rows.float(), self._summary.centre[heads]) * self._scaling
        return [self._span(rows, [self._summary.span_keys(head, start, stop) for head in _range(heads)], common.flatten(1))]

    def _span(self, rows: Tensor, keys: list[tuple[Tensor, Tensor]], offset: Tensor | None = None) -> Span:
        return Span(rows.transpose(0, 1).flatten(1, 2), keys, offset)

    def _write(self, spans: list[Span], reference: Tensor, out: Tensor) -> None:
        flat, few = reference.flatten(1), reference.shape[2] <= FEW
        self._ops.key_weights(spans, self._scaling, flat, out.flatten(2), self.ask.softcap, integers=few)


def _range(heads: slice) -> range:
    return range(heads.start, heads.stop)


def _joined(parts: Sequence[Tensor], pieces: Sequence[tuple[slice, slice]]) -> Tensor:
    """Parts ``[s, g, ...]`` of all pieces, KV head by KV head, to ``[G, Hk, ...]``."""
    by_head: dict[int, list[Tensor]] = {}
    for part, (heads, _) in zip(parts, pieces, strict=True):
        by_head.setdefault(heads.start, []).append(part)
    return torch.cat([torch.cat(some, dim=1) for some in by_head.values()]).transpose(0, 1)


def _keep(weights: Tensor, allowed: Tensor) -> None:
    """Set ``weights [s, n, g, m]`` to 0 where not ``allowed [g, n]``, without touching those that all groups may have."""
    some = (~allowed).any(0).nonzero()[:, 0]
    if len(some):
        weights[:, some] = weights[:, some] * allowed.T[some][..., None]


def _drop(weights: Tensor, chosen: Tensor) -> None:
    """Set ``weights [s, n, g, m]`` of the ``chosen [s, g, c]`` tokens to 0."""
    heads, keys, groups, queries = weights.shape
    head, group = (torch.arange(n, device=chosen.device) for n in (heads, groups))
    rows = (chosen + keys * head[:, None, None]) * groups + group[:, None]
    weights.view(-1, queries).index_fill_(0, rows[chosen >= 0], 0.0)


def _shares(weights: Tensor) -> Tensor:
    """Shares of all attention, what is attended anyway included, that keys of ``weights [s, n, g, m]`` hold: the mean over the queries and
    query heads of a KV head, fp32 ``[s, g, n]``. A query that looks at its neighbours has little to say."""
    each = 1 / ((1 + weights.sum(1)) * weights.shape[3])
    shares: Tensor = torch.matmul(weights.transpose(1, 2), each[..., None])[..., 0]
    return shares


def _of_parts(weights: Tensor, members: Tensor) -> Tensor:
    """Masses ``[s, parts, g, m]`` of parts with ``members [s, parts, 4]`` by ``weights [s, n, g, m]``."""
    heads, keys, *rest = weights.shape
    numbers = members + keys * torch.arange(heads, device=members.device)[:, None, None]
    return embedding_bag(numbers.flatten(0, 1), weights.view(heads * keys, -1), mode="sum").view(heads, -1, *rest)


def _attended(masses: Tensor, values: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Attention ``[s, g, m, dv]`` to ``values [s, n, dv]`` by ``masses [s, n, g, m]`` relative to ``near [s, g, m]``, and its
    log-sum-exp."""
    total = masses.sum(1)
    out = (masses.flatten(2).transpose(1, 2) @ values).unflatten(1, total.shape[1:]) / total.clamp(min=TINIEST)[..., None]
    return out, total.log() + near


def _among(chosen: Tensor, count: int) -> Tensor:
    """Bool ``[..., count]``: which numbers are among ``chosen [..., c]``, padded with -1."""
    marks = torch.zeros((*chosen.shape[:-1], count + 1), dtype=torch.bool, device=chosen.device)
    return marks.scatter_(-1, chosen.masked_fill(chosen < 0, count), True)[..., :count]


def _marked(candidates: Tensor) -> Tensor:
    """fp32 scores that are the same for all candidates, and -inf for the others."""
    return candidates.float().masked_fill(~candidates, EMPTY)


def _periods(start: int, stop: int, period: int) -> list[tuple[int, int, int]]:
    """Blocks ``[start, stop)`` cut where positions begin anew: ``(start, stop, first position)`` of each piece."""
    step = period // BLOCK_TOKENS
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return [(a, b, a // step * period) for a, b in zip(edges, edges[1:], strict=False) if b > a]
