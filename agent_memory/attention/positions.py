"""Which positions chosen keys and their queries get, as Regions.

Knows token indices and ranks; does not know why the keys were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    keys: Tensor
    values: Tensor
    tokens: Tensor
    queries: Tensor


class PositionMap(Protocol):
    """Turns attended keys into Regions."""

    def regions(self, attended: Attended) -> list[Region]:
        """One to three disjoint Regions."""
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


class TruePositions:
    """Keys stand where they are in the timeline, counted from the first one attended: plain rotary attention."""

    def regions(self, attended: Attended) -> list[Region]:
        """One causal Region at true distances."""
        tokens = attended.tokens
        present = tokens >= 0
        visible = present[:, :, None, :] & (tokens[:, :, None, :] <= attended.queries[:, None, :, None])
        base = tokens.masked_fill(~present, torch.iinfo(tokens.dtype).max).amin()
        positions = (tokens - base).clamp(min=0)
        positions = positions[:, 0] if positions.shape[1] == 1 else positions
        return [Region(attended.keys, attended.values, attended.queries - base, positions, visible)]
