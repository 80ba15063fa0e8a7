"""Which positions chosen keys and their queries get, as Regions.

Knows token indices and ranks; does not know why the keys were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .region import Region


@dataclass(frozen=True, slots=True)
class Attended:
    """The keys of a batch of query groups, in timeline order.

    Attributes:
        keys: ``[G, Hk, n, d]``, not rotated.
        values: ``[G, Hk, n, dv]``.
        tokens: int64 ``[G, S, n]`` token index of each key, -1 where there is none; ``S`` is 1 or ``Hk``.
        queries: int64 ``[G, T]`` token index of each query; the last keys are the queries' own.
        sink: how many of the first keys are the sink's.
        recalled: how many of those after them were chosen from memory; all others are local.
        before: attended keys that stand before these and are not among them.
        brought: bool ``[G, S, n]``: keys that are brought near; None for none.
    """

    keys: Tensor
    values: Tensor
    tokens: Tensor
    queries: Tensor
    sink: int = 0
    recalled: int = 0
    before: int = 0
    brought: Tensor | None = None


class PositionMap(Protocol):
    """Turns attended keys into Regions."""

    def regions(self, attended: Attended) -> list[Region]:
        """One to three disjoint Regions that hold every key at or before a query once."""
        ...


class PackedPositions:
    """Keys stand at their rank in the attended set, so positions never leave the trained window (ReAttention, StreamingLLM)."""

    def regions(self, attended: Attended) -> list[Region]:
        """One causal Region; key position = rank, query position = rank of the query's own key."""
        tokens = attended.tokens
        present = tokens >= 0
        visible = present[:, :, None, :] & (tokens[:, :, None, :] <= attended.queries[:, None, :, None])
        if bool(present.all()):
            n, count = tokens.shape[-1], attended.queries.shape[-1]
            ranks = torch.arange(n, device=tokens.device)
            return [Region(attended.keys, attended.values, ranks[n - count :], ranks, visible)]
        rank = (present.cumsum(-1) - 1).clamp(min=0)
        count = attended.queries.shape[-1]
        if rank.shape[1] == 1:
            return [Region(attended.keys, attended.values, rank[:, 0, -count:], rank[:, 0], visible)]
        return _split_heads(attended, rank, visible, count)


def _split_heads(attended: Attended, rank: Tensor, visible: Tensor, count: int) -> list[Region]:
    """KV heads that chose different numbers of tokens: align ranks at the queries, so that all heads share query positions.

    Only differences of positions matter to rotation, so shifting a head's ranks by a constant changes nothing.
    """
    shift = rank[..., -1:].amax(dim=1, keepdim=True) - rank[..., -1:]
    aligned = rank + shift
    return [Region(attended.keys, attended.values, aligned[:, 0, -count:], aligned, visible)]


@dataclass(frozen=True)
class WindowPositions:
    """Keys stand at their true distance where there is room for it, and at the far end of that room where they are further away.

    There is room for a timeline that fits the trained window, and for ``reach`` tokens of one that does not. A key's position is the larger
    of its rank in the attended set and its place in a room that ends with the last query. Both ascend with the tokens, so no two keys share
    a position, and the order is kept. Recalled keys that are ``clipped`` have no rank: all further away stand at one distance, as
    in ReRoPE (github.com/bojone/rerope). Up to ``window`` tokens this is plain rotary attention. Sink tokens come first, local ones last:
    both stand where they do without any that are recalled.

    Attributes:
        window: the trained one, in tokens.
        reach: positions that are used beyond it, at least as many as are attended, those left out that are clipped; None is the window.
        clipped: whether recalled keys further away share a distance.
        near: distance of keys that are brought near, where they are further away; only of those that are clipped.
    """

    window: int
    reach: int | None = None
    clipped: bool = False
    near: int | None = None

    def regions(self, attended: Attended) -> list[Region]:
        """One causal Region."""
        tokens, queries = attended.tokens, attended.queries
        present = tokens >= 0
        last = queries[:, -1:]
        first = (last - (self.reach or self.window) + 1).clamp(min=0).masked_fill(last < self.window, 0)
        positions = tokens.clamp(min=0)
        if bool(first.any()):
            room = (tokens - first[:, None]).clamp(min=0)
            clipped = self.clipped and attended.recalled == tokens.shape[-1]
            if clipped and attended.brought is not None and self.near is not None:
                room = torch.where(attended.brought, room.clamp(min=(self.reach or self.window) - self.near), room)
            positions = room if clipped else torch.maximum(attended.before + present.cumsum(-1) - 1, room)
        visible = None
        if not (bool(present.all()) and bool((tokens[..., -1] <= queries[:, :1]).all())):
            # A recalled token comes before every query: one row says which are there.
            before = bool((tokens.amax(-1) < queries[:, :1]).all())
            visible = present[:, :, None] if before else present[:, :, None] & (tokens[:, :, None] <= queries[:, None, :, None])
        return [Region(attended.keys, attended.values, queries - first, positions[:, 0] if positions.shape[1] == 1 else positions, visible)]


def with_kv_of(regions: list[Region], attended: Attended) -> list[Region]:
    """Regions of the same tokens with another layer's keys and values: where a key stands depends on tokens alone."""
    spans = [slice(region.first, region.first + region.keys.shape[2]) for region in regions]
    return [
        replace(region, keys=attended.keys[:, :, span], values=attended.values[:, :, span])
        for region, span in zip(regions, spans, strict=True)
    ]


@dataclass(frozen=True)
class TruePositions:
    """Keys stand where they are in the timeline: plain rotary attention, to the last ``width`` tokens if given."""

    width: int | None = None

    def regions(self, attended: Attended) -> list[Region]:
        """One causal Region at true distances."""
        i = attended.queries
        low = torch.zeros_like(i) if self.width is None else (i - self.width + 1).clamp(min=0)
        return _there([band(attended, low, i, i, _same)])


class FarMap(Protocol):
    """Positions beyond the edge of a :class:`BandedPositions`, integer or real; only their difference matters."""

    def query(self, i: Tensor) -> Tensor:
        """phi of queries at tokens ``i``."""
        ...

    def key(self, j: Tensor) -> Tensor:
        """psi of keys at tokens ``j``."""
        ...


@dataclass(frozen=True)
class BandedPositions:
    """True distances below ``edge``, a map of its own from ``edge`` on (methods.md 7.1).

    Attributes:
        edge: first distance that is far.
        far: positions from there on.
        log_n: scale the logits of query i by ``max(1, ln(i + 1) / ln(log_n))``; None leaves them.
        rebase: count positions of a Region from its first key; False keeps the model's own rounding, for short histories.
    """

    edge: int
    far: FarMap
    log_n: int | None = None
    rebase: bool = True

    def regions(self, attended: Attended) -> list[Region]:
        """The near Region and, where a query has such keys, the far one."""
        i = attended.queries
        tau = None if self.log_n is None else ((i + 1).float().log() / math.log(self.log_n)).clamp(min=1.0)
        edge = i - self.edge
        near = band(attended, (edge + 1).clamp(min=0), i, i, _same, tau, self.rebase)
        far = band(attended, torch.zeros_like(i), edge, self.far.query(i), self.far.key, tau, self.rebase)
        return _there([near, far])


@dataclass(frozen=True)
class _TrueFar:
    """True positions far away too."""

    def query(self, i: Tensor) -> Tensor:
        return i

    def key(self, j: Tensor) -> Tensor:
        return j


def true_but_split(edge: int) -> BandedPositions:
    """True positions in two Regions, so that attention to keys nearer than ``edge`` can be told apart."""
    return BandedPositions(edge, _TrueFar(), rebase=False)


def band(
    attended: Attended,
    low: Tensor,
    high: Tensor,
    phi: Tensor,
    psi: Callable[[Tensor], Tensor],
    tau: Tensor | None = None,
    rebase: bool = True,
) -> Region | None:
    """Keys whose tokens lie in ``[low, high]`` of each query, as a Region over the columns where any of them is.

    Args:
        attended: all keys.
        low, high: int64 ``[G, T]``, inclusive; ``low`` is 0 or more, ``high`` may be below it.
        phi: ``[G, T]`` query positions.
        psi: key positions of tokens.
        tau: ``[G, T]`` logit factors.
        rebase: count positions from the Region's first key: fp32 angles are wrong by 0.04 rad at a million.

    Returns:
        None where no query sees a key.
    """
    within = ((attended.tokens >= low.amin()) & (attended.tokens <= high.amax())).flatten(0, 1).any(0).nonzero()
    if not len(within):
        return None
    first, stop = int(within[0]), int(within[-1]) + 1
    tokens = attended.tokens[..., first:stop]
    spread = tokens[:, :, None, :]
    visible = (spread >= low[:, None, :, None]) & (spread <= high[:, None, :, None])
    positions = psi(tokens.clamp(min=0))
    base = psi(tokens[tokens >= low.amin()]).amin() if rebase else 0
    positions = (positions - base).clamp(min=0)
    return Region(
        attended.keys[:, :, first:stop],
        attended.values[:, :, first:stop],
        (phi - base).clamp(min=0),
        positions[:, 0] if positions.shape[1] == 1 else positions,
        None if bool(visible.all()) else visible,
        tau,
        first,
    )


def _same(tokens: Tensor) -> Tensor:
    return tokens


def _there(regions: list[Region | None]) -> list[Region]:
    return [region for region in regions if region is not None]
