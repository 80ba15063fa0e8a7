"""What paged operations take and give: pools of pages, tables that say which page holds which Block, and the two protocols.

Knows tensors only. ``R`` rows (Sessions), ``S`` KV heads, ``m`` query rows that share a KV head (query head by query head, each with
its ``T`` queries), ``d`` head size, ``B`` tokens of a Block, ``P`` pages of a pool, ``N`` Blocks a row's table can hold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

FARTHEST = 2**31 - 1
"""Upper edge of a band that has none."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Which page holds each Block of each row.

    Attributes:
        table: int32 ``[R, N]``; a negative entry, or one at or beyond ``counts``, is no Block.
        counts: int32 ``[R]``, Blocks in use.
        tokens: int32 ``[R]``, tokens in use, where a row's last Block may be partly filled; None if all are full.
    """

    table: Tensor
    counts: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Codes:
    """8-bit keys and what they lost.

    Attributes:
        codes: int8 ``[P, S, B, d]`` in -127..127.
        scale: fp32 ``[P, S, B]``, step of each key's grid.
        residual: fp32 ``[P, S, B]``, at least ``|key - scale * codes|``; infinite where the key is not finite.
    """

    codes: Tensor
    scale: Tensor
    residual: Tensor


@dataclass(frozen=True, slots=True)
class Pool:
    """Unrotated keys and values of pages.

    Attributes:
        keys: ``[P, S, B, d]``.
        values: ``[P, S, B, dv]``.
        host_keys: ``[P', S, B, d]`` in pinned host memory, of the same strides; None if there is none.
        host_values: ``[P', S, B, dv]``, likewise.
    """

    keys: Tensor
    values: Tensor
    host_keys: Tensor | None = None
    host_values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding of one layer, in the rotate-half convention of transformers' Llama and Qwen.

    Attributes:
        cos: ``[positions, r]``, ``r`` even and at most ``d``; the first ``r`` dimensions are rotated. The second half of a line repeats
            the first, as transformers makes them; only the first is read. Positions beyond the table use its last line.
        sin: likewise.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Regions:
    """One to three sets of keys, disjoint for every query.

    Attributes:
        entries: int32 ``[R, S or 1, E, 4]``: slot, position of the Block's first token, first visible offset, end of the visible
            offsets. Slot -1 is nothing; ``-(page + 2)`` is a page of the host pool. Token ``o`` of a Block stands at position + o.
        ends: end of each Region's entries; a Region begins where the one before it ends.
        positions: int32 ``[regions, R, S or 1, T]`` of the queries.
        bands: for each Region ``(lo, hi)``: a key is visible iff ``lo <= query position - key position < hi``.
        factors: fp32 ``[regions, R, T]`` of the logits, before softcap; None is 1.
    """

    entries: Tensor
    ends: tuple[int, ...]
    positions: Tensor
    bands: tuple[tuple[int, int], ...]
    factors: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a layer does to logits.

    Attributes:
        scale: factor of every product.
        softcap: bound of the logits, ``cap * tanh(logit / cap)``; None has none.
        sinks: fp32 ``[S * query heads of a KV head]``, a logit of each query head that takes weight and gives nothing.
    """

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What stands around recalled Blocks, and how much room there is for it.

    Attributes:
        table: int32 ``[R, N]``, the slot of each Block's keys and values, in ``entries``' way.
        sinks: int32 ``[R]``, first tokens that are always attended.
        stops: int32 ``[R]``: recalled Blocks are seen up to here; local tokens begin here.
        lengths: int32 ``[R]``, tokens of the timeline, the queries' own with them.
        queries: ``T``, the last tokens, whose positions are wanted.
        sink_blocks: room for Blocks of sink tokens.
        local_blocks: room for Blocks of local tokens.
    """

    table: Tensor
    sinks: Tensor
    stops: Tensor
    lengths: Tensor
    queries: int
    sink_blocks: int
    local_blocks: int


@dataclass(frozen=True, slots=True)
class Placed:
    """Blocks in timeline order at packed positions, as one Region's entries.

    Attributes:
        entries: int32 ``[R, S or 1, sink_blocks + n + local_blocks, 4]``.
        positions: int32 ``[R, S or 1, T]`` of the queries.
        missed: int32 ``[R, S or 1]``, sink and local tokens there was no room for: 0 unless a capacity is too small.
    """

    entries: Tensor
    positions: Tensor
    missed: Tensor

    def region(self) -> Regions:
        """As the only Region, causal."""
        return Regions(self.entries, (self.entries.shape[2],), self.positions[None], ((0, FARTHEST),))


@dataclass(slots=True)
class Workspace:
    """What outlives one call: counters that kernels leave at zero, and how many launches there were. One for each stream.

    Run a step once before capturing it in a graph, so that the counters exist.

    Attributes:
        launches: launches of each kernel so far.
    """

    launches: Counter[str] = field(default_factory=Counter)
    _zeros: dict[torch.device, list[Tensor]] = field(default_factory=dict)

    def zeros(self, device: torch.device, n: int) -> Tensor:
        """At least ``n`` int32 zeros; a kernel that changes them puts them back."""
        held = self._zeros.setdefault(device, [])
        if not held or held[-1].numel() < n:
            held.append(torch.zeros(max(n, 1024), dtype=torch.int32, device=device))  # graphs may still use the ones before
        return held[-1]


class PagedOperations(Protocol):
    """Primitive operations on pages; ``reference.paged`` defines each of them."""

    def score(self, queries: Tensor, keys: Tensor, pages: Pages, *, each: bool = False, workspace: Workspace | None = None) -> Tensor:
        """The best product of each Block's keys."""
        ...

    def score_int8(self, queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of what ``score`` gives."""
        ...

    def score_codes(self, queries: Tensor, codes: Codes, pages: Pages, *, workspace: Workspace | None = None) -> Tensor:
        """The best product each query row has with any key of each Block, from 8-bit keys."""
        ...

    def rescore(
        self, queries: Tensor, keys: Tensor, pages: Pages, listed: Tensor, *, by_token: bool = False, workspace: Workspace | None = None
    ) -> Tensor:
        """As ``score``, of listed Blocks only."""
        ...

    def select(
        self,
        scores: Tensor,
        count: int,
        *,
        starts: Tensor | None = None,
        lengths: Tensor | None = None,
        names: Tensor | None = None,
        size: int = 1,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """The best ``count`` of each row."""
        ...

    def certify(
        self,
        lower: Tensor,
        upper: Tensor,
        count: int,
        capacity: int,
        *,
        starts: Tensor | None = None,
        lengths: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Everything that can be among the best ``count``, and how many that are."""
        ...

    def tally(self, named: Tensor, width: int, *, workspace: Workspace | None = None) -> Tensor:
        """How often each index is named."""
        ...

    def place(self, blocks: Tensor, timeline: Timeline, size: int, *, workspace: Workspace | None = None) -> Placed:
        """Chosen Blocks between sink and local tokens, at packed positions."""
        ...

    def select_and_place(
        self, scores: Tensor, count: int, timeline: Timeline, size: int, *, names: Tensor | None = None, workspace: Workspace | None = None
    ) -> tuple[Tensor, Placed]:
        """``select`` among the Blocks between sink and local tokens, and ``place``, in one launch."""
        ...

    def attend(
        self,
        queries: Tensor,
        pool: Pool,
        regions: Regions,
        rotation: Rotation | None,
        rule: LogitRule,
        *,
        workspace: Workspace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention over entries, and its log-sum-exp."""
        ...

    def summarize(self, keys: Tensor, pages: Tensor, means: Tensor, codes: Codes | None, *, workspace: Workspace | None = None) -> None:
        """Write the summaries of new pages."""
        ...


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], workspace: Workspace | None, **options: Any) -> None:
    """Run a Triton kernel and count it. The one place where kernels start."""
    if workspace is not None:
        workspace.launches[kernel.__name__] += 1
    kernel[grid](*arguments, **options)
