"""``recall``, the default rule: each KV head reads the tokens that hold most of its query heads' attention.

Knows 8-bit keys of a layer; reads no Block. What is scored is attention mass: the softmax weight of a key, at the distance at which it
stands when it is attended. Keys within ``reach`` of a query stand at their true distance, so that what is scored is what full attention
would give them; keys further away are scored as if all of them stood at its end, as InfLLM does with everything outside its window (arXiv
2402.04617, section 3.2). What is not read within ``reach`` still takes part: each part of a Block (4 tokens with like keys) as the mean of
its values, with the mass of those of its tokens that are not read. That is the mean value of SparQ (arXiv 2312.04985, section 3), for many
small parts instead of one, as the estimation zone of RetroInfer (arXiv 2505.02922, section 4) does for clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from agent_memory_kernels import Operations

from ....memory.clusters import STEP_TOKENS, ClusterPlan, LayerClusters
from ....memory.layer_kv import Keeps, LayerKV
from ....memory.parts import PARTS
from ....types import BLOCK_TOKENS
from ...region import Attention
from ..base import Ask, Bounds, Selection
from .config import MassConfig
from .lookup import Found, look_up
from .scan import Scan, Scanned

EMPTY = float("-inf")

T = TypeVar("T")

TINIEST = 1e-38
"""So much above 0 that it can be divided by."""


@dataclass(frozen=True, slots=True)
class _Field:
    """What there is to choose from, for some groups.

    Attributes:
        blocks: bool ``[g, n]``: Blocks with tokens that may be chosen.
        tokens: bool ``[g, n' * 32]``: tokens that may be, of the Blocks that are scanned.
        hidden: int64: of those, the ones that some group may not choose.
        parts: bool ``[g, n'' * 8]``: parts of the last Blocks whose means may stand for what is not chosen.
        unestimated: int64: of those, the ones that some group may not have.
        early: the token from which on every group may choose all of those before the Blocks that are scanned; None if there is no such.
        scanned: scores that the scan of one KV head makes, over all groups.
    """

    blocks: Tensor
    tokens: Tensor
    hidden: Tensor
    parts: Tensor
    unestimated: Tensor
    scanned: int
    early: int | None

    def of(self, groups: slice) -> _Field:
        """Of some of the groups."""
        return replace(self, blocks=self.blocks[groups], tokens=self.tokens[groups], parts=self.parts[groups])


@dataclass(frozen=True, slots=True)
class _Brought:
    """What every KV head chooses, whatever it weighs.

    Attributes:
        blocks: int64 ``[g, b]``, padded with -1.
        tokens: int64 ``[g, b * 32]``: theirs, padded with -1.
    """

    blocks: Tensor
    tokens: Tensor

    def of(self, groups: slice) -> _Brought:
        """Of some of the groups."""
        return _Brought(self.blocks[groups], self.tokens[groups])


class MassSelector:
    """Chooses tokens by :class:`MassConfig`, for each KV head its own."""

    def __init__(self, config: MassConfig, ops: Operations) -> None:
        self.config, self._ops = config, ops
        clusters = ClusterPlan(STEP_TOKENS, config.behind, config.cluster_tokens, holds_keys=True) if config.probes else None
        self.keeps = Keeps(distances=config.period, parts=config.estimate_unread, clusters=clusters)

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose for groups of queries."""
        return [self._select(ask, scaling, layer) for ask in asks]

    def _select(self, ask: Ask, scaling: float, layer: LayerKV) -> Selection:
        bounds, most = ask.bounds, self.config.tokens // BLOCK_TOKENS
        if _noted(bounds, "candidates", lambda: int(bounds.candidates.sum(1).max())) <= most:
            blocks = self._ops.select(_marked(bounds.candidates[:, None]), most)
            return Selection(bounds.tokens(blocks), not bounds.lost.any(), "memory", 0, blocks=blocks)
        first = _noted(bounds, (self.config, "first"), lambda: self.config.first(ask.positions[:, -1]))
        nearest, farthest = _noted(bounds, (self.config, "edges"), lambda: (int(first.min()), int(first.max())))
        clusters = self._clusters(layer, nearest, ask.asking)
        start = 0 if clusters is None else clusters.blocks
        wanted = ask.brought
        brought = None if wanted is None else _noted(bounds, "brought", lambda: _within_bounds(wanted, bounds))
        field = _noted(bounds, (self.config, start), lambda: _field(bounds, first, nearest, start))
        scan = Scan(self.config, self._ops, ask, scaling, layer, Scanned(start, field.blocks.shape[1], first, nearest, farthest))
        found = [
            self._choose(scan, heads, groups, field.of(groups), layer, clusters, brought and brought.of(groups))
            for heads, groups in scan.pieces
        ]
        chosen, attention, looked = zip(*found, strict=True)
        scored = field.scanned * scan.heads + sum(looked)
        unread = None
        if self.config.estimate_unread:
            unread = Attention(*(_joined(parts, scan.pieces) for parts in zip(*attention, strict=True)))
        return Selection(_joined(chosen, scan.pieces), False, "no", scored, unread=unread)

    def _clusters(self, layer: LayerKV, first: int, tokens: int) -> LayerClusters | None:
        """The layer's, if there are enough of them for so many tokens to look keys up, and none of their keys stands at its true distance;
        while the timeline fits the trained window, all do."""
        clusters = layer.clusters
        if clusters is None or not self.config.probes or clusters.blocks > first:
            return None
        return clusters if clusters.blocks * BLOCK_TOKENS >= self.config.fewest(tokens) else None

    def _choose(
        self,
        scan: Scan,
        heads: slice,
        groups: slice,
        field: _Field,
        layer: LayerKV,
        clusters: LayerClusters | None,
        brought: _Brought | None,
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """What some groups choose for some KV heads: tokens ``[s, g, tokens]``; attention ``[s, g, m, dv]`` to the rest and its
        log-sum-exp ``[s, g, m]``, if that is wanted; and how many keys were scored in clusters."""
        weights = scan.weights(heads, groups)
        _keep(weights, field.tokens, field.hidden)
        found = None
        if clusters is not None:
            count = self.config.looked_into(clusters.most)
            found = look_up(scan, clusters, heads, groups, field.blocks, field.early, count)
        each = _each(weights, None if found is None else found.total)
        if scan.ask.look is not None and groups.stop == len(scan.near):
            scan.ask.look(_sharpness(weights, found, each[:, -1], scan.ask, scan.start, field.blocks.shape[1]))
        chosen = self._best(weights, found, each, field, scan.start, brought)
        scored = 0 if found is None else found.scored
        if not self.config.estimate_unread:
            return chosen, (), scored
        if layer.parts is None:
            raise RuntimeError("this layer keeps no mean values")
        _drop(weights, chosen - scan.start * BLOCK_TOKENS)
        count = field.parts.shape[1] // PARTS
        blocks = scan.count - count, scan.count
        masses = _of_parts(weights[:, weights.shape[1] - count * BLOCK_TOKENS :], layer.parts.members(heads, *blocks))
        _keep(masses, field.parts, field.unestimated)
        near = scan.near[groups, heads].transpose(0, 1)
        return chosen, _attended(masses, layer.parts.means(heads, *blocks), near), scored

    def _best(self, weights: Tensor, found: Found | None, each: Tensor, field: _Field, start: int, brought: _Brought | None) -> Tensor:
        """The chosen tokens, int64 ``[s, g, tokens]`` ascending and padded with -1, by ``weights [s, n * 32, g, m]`` of those from Block
        ``start`` on, and of those that were found; what is ``brought`` whatever it weighs."""
        shares = _shares(weights, each)
        by_block = shares.unflatten(2, (-1, BLOCK_TOKENS)).sum(-1)
        early = shares[..., :0]
        if found is not None:
            early = (found.weights @ each[..., None])[..., 0]
            before = shares.new_zeros((*shares.shape[:2], field.blocks.shape[1] + 1)).scatter_add_(2, found.blocks, early)
            by_block = torch.cat([before[..., :start], by_block], 2)
        count = self.config.tokens - (0 if brought is None else brought.tokens.shape[1])
        left_out = self._left_out(by_block, field, brought)
        late = shares.masked_fill(~field.tokens, EMPTY).add_(left_out[..., start:-1].repeat_interleave(BLOCK_TOKENS, 2))
        if found is None:
            places = self._ops.select(late, count)
            chosen = torch.where(places < 0, places, places + start * BLOCK_TOKENS)
            if brought is None:
                return chosen  # ascending as they are
        else:
            early_ones = early.shape[2]
            early += left_out.expand(*early.shape[:2], -1).gather(2, found.blocks)
            places = self._ops.select(torch.cat([early, late], 2), count)
            theirs = found.tokens.gather(2, places.clamp(min=0, max=early_ones - 1)).long()
            chosen = torch.where(places < early_ones, theirs, places + (start * BLOCK_TOKENS - early_ones)).masked_fill_(places < 0, -1)
        if brought is not None:
            chosen = torch.cat([chosen, brought.tokens.expand(len(chosen), -1, -1)], 2)
        return _ascending(chosen)

    def _left_out(self, by_block: Tensor, field: _Field, brought: _Brought | None) -> Tensor:
        """fp32 ``[s, g, blocks + 1]``: 0 for the Blocks that tokens are taken from, -inf for the others and behind the last. What is
        ``brought`` is not taken twice."""
        count = by_block.shape[2]
        if brought is None:
            return self._taken(by_block, field, self.config.blocks)
        blocks = brought.blocks.masked_fill(brought.blocks < 0, count).expand(len(by_block), -1, -1)
        padded = torch.nn.functional.pad(by_block, (0, 1)).scatter_(2, blocks, EMPTY)
        return self._taken(padded[..., :count], field, self.config.blocks - blocks.shape[2]).scatter_(2, blocks, EMPTY)

    def _taken(self, by_block: Tensor, field: _Field, most: int) -> Tensor:
        """:meth:`_left_out` for ``most`` Blocks, by the mass of each."""
        count = by_block.shape[2]
        if most >= count:
            return torch.nn.functional.pad(by_block.new_zeros(by_block.shape), (0, 1), value=EMPTY)
        blocks = self._ops.select(by_block.masked_fill(~field.blocks, EMPTY), most)
        left_out = by_block.new_full((*by_block.shape[:2], count + 1), EMPTY)
        left_out.scatter_(2, blocks.masked_fill(blocks < 0, count), 0.0)
        left_out[..., count] = EMPTY
        return left_out


def _ascending(tokens: Tensor) -> Tensor:
    """Tokens ``[..., n]`` in order, what is below 0 as -1 and last."""
    none = torch.iinfo(tokens.dtype).max
    ordered = tokens.masked_fill(tokens < 0, none).sort(-1).values
    return ordered.masked_fill_(ordered == none, -1)


def _within_bounds(blocks: Tensor, bounds: Bounds) -> _Brought:
    """Those of ``blocks [b]`` that groups may choose."""
    candidates = torch.nn.functional.pad(bounds.candidates, (0, 1))
    inside = blocks.clamp(min=-1, max=bounds.candidates.shape[1])
    theirs = inside.expand(len(candidates), -1).masked_fill(~candidates[:, inside], -1)
    return _Brought(theirs, bounds.tokens(theirs[:, None])[:, 0])


def _sharpness(weights: Tensor, found: Found | None, each: Tensor, ask: Ask, start: int, blocks: int) -> Tensor:
    """How sharply the queries of the last group look at each Block, fp32 ``[blocks]``: at keys of ``weights [s, n * 32, g, m]``, those
    from Block ``start`` on, and of those that were found. ``each [s, m]`` as :func:`_each` gives it."""
    units = (each * each.shape[1]).unflatten(1, (-1, ask.asking))[..., ask.asking - ask.looking :]
    late = _variation(weights[:, :, -1], units).sum(0).view(-1, BLOCK_TOKENS).sum(1)
    sharpness = torch.nn.functional.pad(late, (start, 0))
    if found is not None:
        early = _variation(found.weights[:, -1], units)
        sharpness = torch.nn.functional.pad(sharpness, (0, 1)).scatter_add_(0, found.blocks[:, -1].flatten(), early.flatten())[:blocks]
    return sharpness


def _variation(weights: Tensor, units: Tensor) -> Tensor:
    """Of each key, how the shares of attention that queries give it vary, squares summed over queries and query heads, fp32 ``[s, n]``:
    ``weights [s, n, m]`` in units of ``[s, h, t]``, of the last ``t`` queries of each of ``h`` heads."""
    shares = weights.unflatten(2, (units.shape[1], -1))[..., -units.shape[2] :] * units[:, None]
    varied: Tensor = (shares - shares.mean(3, keepdim=True)).square_().sum((2, 3))
    return varied


def _joined(parts: Sequence[Tensor], pieces: Sequence[tuple[slice, slice]]) -> Tensor:
    """Parts ``[s, g, ...]`` of all pieces, KV head by KV head, to ``[G, Hk, ...]``."""
    by_head: dict[int, list[Tensor]] = {}
    for part, (heads, _) in zip(parts, pieces, strict=True):
        by_head.setdefault(heads.start, []).append(part)
    return torch.cat([torch.cat(some, dim=1) for some in by_head.values()]).transpose(0, 1)


def _noted(bounds: Bounds, key: Hashable, make: Callable[[], T]) -> T:
    """What was worked out for an earlier layer of the step, or is now."""
    if key not in bounds.notes:
        bounds.notes[key] = make()
    found: T = bounds.notes[key]
    return found


def _field(bounds: Bounds, first: Tensor, nearest: int, start: int) -> _Field:
    """What there is to choose from, where Blocks from ``start`` on are scanned, those from ``first`` on at their true distance."""
    candidates = bounds.candidates
    count = candidates.shape[1]
    tokens = torch.arange(start * BLOCK_TOKENS, count * BLOCK_TOKENS, device=candidates.device)
    allowed = candidates[:, start:].repeat_interleave(BLOCK_TOKENS, 1)
    allowed = allowed & (tokens >= bounds.first) & (tokens < bounds.stops[:, None])
    least = max(start, min(nearest, count - 1))
    estimated = candidates[:, least:] & (torch.arange(least, count, device=candidates.device) >= first[:, None])
    parts = estimated.repeat_interleave(PARTS, 1)
    hidden, unestimated = ((~some).any(0).nonzero()[:, 0] for some in (allowed, parts))
    least = bounds.first // BLOCK_TOKENS
    early = bounds.first if bool(candidates[:, least:start].all()) else None
    return _Field(candidates, allowed, hidden, parts, unestimated, int(candidates[:, start:].sum()) * BLOCK_TOKENS, early)


def _keep(weights: Tensor, allowed: Tensor, some: Tensor) -> None:
    """Set ``weights [s, n, g, m]`` to 0 where not ``allowed [g, n]``, without touching others than ``some`` of the ``n``."""
    if len(some):
        weights[:, some] = weights[:, some] * allowed.T[some][..., None]


def _drop(weights: Tensor, chosen: Tensor) -> None:
    """Set ``weights [s, n, g, m]`` of the ``chosen [s, g, c]`` to 0; what is below 0 is not among them."""
    heads, keys, groups, queries = weights.shape
    head, group = (torch.arange(n, device=chosen.device) for n in (heads, groups))
    rows = (chosen + keys * head[:, None, None]) * groups + group[:, None]
    weights.view(-1, queries).index_fill_(0, rows[chosen >= 0], 0.0)


def _each(weights: Tensor, others: Tensor | None) -> Tensor:
    """fp32 ``[s, g, m]``: what a unit of weight of each query and query head counts, its mean share of all attention, what is attended
    anyway included: of ``weights [s, n, g, m]``, and of ``others [s, g, m]``. A query that looks at its neighbours has little to say."""
    total = 1 + weights.sum(1)
    return 1 / ((total if others is None else total + others) * weights.shape[3])


def _shares(weights: Tensor, each: Tensor) -> Tensor:
    """Shares of all attention that keys of ``weights [s, n, g, m]`` hold, fp32 ``[s, g, n]``."""
    shares: Tensor = torch.matmul(weights.transpose(1, 2), each[..., None])[..., 0]
    return shares


def _of_parts(weights: Tensor, members: Tensor) -> Tensor:
    """Masses ``[s, parts, g, m]`` of parts with ``members [s, parts, 4]`` by ``weights [s, n, g, m]``."""
    heads, keys, *rest = weights.shape
    numbers = members + keys * torch.arange(heads, device=members.device)[:, None, None]
    return embedding_bag(numbers.flatten(0, 1), weights.reshape(heads * keys, -1), mode="sum").view(heads, -1, *rest)


def _attended(masses: Tensor, values: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Attention ``[s, g, m, dv]`` to ``values [s, n, dv]`` by ``masses [s, n, g, m]`` relative to ``near [s, g, m]``, and its
    log-sum-exp."""
    total = masses.sum(1)
    out = (masses.flatten(2).transpose(1, 2) @ values).unflatten(1, total.shape[1:]) / total.clamp(min=TINIEST)[..., None]
    return out, total.log() + near


def _marked(candidates: Tensor) -> Tensor:
    """fp32 scores that are the same for all candidates, and -inf for the others."""
    return candidates.float().masked_fill(~candidates, EMPTY)
