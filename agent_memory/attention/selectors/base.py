"""The protocol of a Selector, and what it is given and gives back.

Knows token indices, Blocks and summaries; does not know positions, values or Tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import SelectionError
from ...memory.layer_kv import Keeps, LayerKV
from ...types import Certificate
from ..region import Attention


@dataclass(frozen=True)
class Bounds:
    """Which tokens a Selector may choose from; the same ones for all layers of a step.

    Attributes:
        first: tokens before it are the sink, attended anyway.
        stops: int64 ``[G]``; a group's choice ends where its local tokens begin.
        lost: bool ``[blocks]``; Blocks that cannot be trusted.
        block: tokens in a Block.
        notes: what a Selector works out of the bounds and of where the queries stand, kept for the next layers.
    """

    first: int
    stops: Tensor
    lost: np.ndarray
    block: int
    notes: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def candidates(self) -> Tensor:
        """Bool ``[G, blocks]``: Blocks with a token in ``[first, stop)`` that were not lost when this was first asked for.

        What one layer of a step finds damaged is masked when the next one reads it.
        """
        count = -(-int(self.stops.max()) // self.block)
        start = torch.arange(count, device=self.stops.device) * self.block
        lost = torch.from_numpy(self.lost[:count]).to(self.stops.device)
        return (start[None] < self.stops[:, None]) & (start[None] + self.block > self.first) & ~lost[None]

    def tokens(self, blocks: Tensor) -> Tensor:
        """Token indices ``[G, S, b * block]`` of Blocks ``[G, S, b]``; -1 where padded or outside ``[first, stop)``."""
        offsets = torch.arange(self.block, device=blocks.device)
        tokens = (blocks[..., None] * self.block + offsets).flatten(2)
        outside = (tokens < self.first) | (tokens >= self.stops[:, None, None])
        return tokens.masked_fill(outside, -1)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a Selector chose for one layer.

    Attributes:
        tokens: int64 ``[G, S, n]`` ascending, padded with -1; ``S`` is 1 (shared by all KV heads) or the number of KV heads.
        exact: whether it is what the same rule gives over every stored key in fp32.
        certified: over what the top Blocks were proven.
        keys_scored: key vectors that were scored, over all groups and heads.
        keys_rescored: tokens whose true keys were read to prove the choice, over all groups.
        blocks: int64 ``[G, S, b]`` ascending, padded with -1, if ``tokens`` are those of whole Blocks: they are read faster.
        unread: attention to what stands for the tokens that were not chosen, if anything does.
    """

    tokens: Tensor
    exact: bool
    certified: Certificate
    keys_scored: int
    keys_rescored: int = 0
    blocks: Tensor | None = None
    unread: Attention | None = None

    def check(self, bounds: Bounds) -> None:
        """Raise ``SelectionError`` for tokens that are not ascending, or lie outside what was to choose from."""
        tokens = self.tokens
        chosen = tokens >= 0
        before = torch.nn.functional.pad(tokens[..., :-1], (1, 0), value=-1).cummax(-1).values if tokens.shape[-1] else tokens
        wrong = chosen & ((tokens <= before) | (tokens < bounds.first) | (tokens >= bounds.stops[:, None, None]))
        if bool(wrong.any()):
            group, head, at = wrong.nonzero()[0].tolist()
            token, stop = int(tokens[group, head, at]), int(bounds.stops[group])
            last = int(before[group, head, at])
            raise SelectionError(
                f"a selector chose token {token} after token {last}; choices must ascend, without duplicates"
                if token <= last
                else f"a selector chose token {token}, which is outside [{bounds.first}, {stop}): the sink before it and the local tokens "
                f"after it are attended anyway, and later ones are the future"
            )


@dataclass(frozen=True, slots=True)
class Ask:
    """Groups of queries that want a choice each.

    Attributes:
        queries: ``[G, H, T, d]``, not rotated.
        asking: the last so many queries of each group choose; the ones before them are what was asked just before.
        bounds: what they may choose from.
        shared: so many of the first queries are the last ones of the ask before it, and need not be scored twice.
        rotate: the layer's rotation of ``[G, H, T, d]`` to positions ``[T]`` or ``[G, T]``.
        positions: int64 ``[G, asking]``, the token index of each query that chooses; empty where no rule needs them.
        softcap: bound of the layer's logits, or None.
        brought: int64 ``[b]``, Blocks that are chosen by whoever asks, padded with -1; None for none.
        look: takes fp32 ``[blocks]``, how sharply queries of the last group look at each Block (:mod:`..evidence`); None where nobody
            wants it.
        looking: the last so many that ask.
        near: gives fp32 ``[G, Hk, m]``, the log-sum-exp of what the asking queries attend to anyway: sink, local and own tokens.
    """

    queries: Tensor
    asking: int
    bounds: Bounds
    shared: int = 0
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None
    positions: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int64))
    softcap: float | None = None
    near: Callable[[], Tensor] | None = None
    brought: Tensor | None = None
    look: Callable[[Tensor], None] | None = None
    looking: int = 0

    def rotated(self, queries: Tensor, positions: Tensor) -> Tensor:
        """Some of the queries ``[G, H, T, d]``, rotated to positions ``[T]`` or ``[G, T]``."""
        if self.rotate is None:
            raise RuntimeError("this ask cannot be rotated")
        return self.rotate(queries, positions)


class Selector(Protocol):
    """Chooses tokens of memory for groups of queries. The smallest one returns ``tokens`` of shape ``[G, 1, 0]``.

    Attributes:
        keeps: what of every layer has to be kept for it.
    """

    @property
    def keeps(self) -> Keeps: ...

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose for each of ``asks``; together, so that keys are read once for all of them."""
        ...


def by_kv_head(queries: Tensor, kv_heads: int) -> Tensor:
    """``[G, H, T, d]`` to ``[G, Hk, (H / Hk) * T, d]``: the rows that share a KV head; pairing is ``h // g``."""
    groups, heads, count, dim = queries.shape
    return queries.reshape(groups, kv_heads, heads // kv_heads * count, dim)


def pooled(queries: Tensor, kv_heads: int) -> Tensor:
    """``[G, H, T, d]`` to ``[G, Hk, T, d]``: the mean of the query heads that share a KV head."""
    rows: Tensor = by_kv_head(queries, kv_heads).unflatten(2, (-1, queries.shape[2]))
    return rows.mean(2)
