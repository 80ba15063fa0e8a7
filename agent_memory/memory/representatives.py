"""What InfLLM keeps of every block of tokens: for each query head, the mean key of the tokens that got most attention nearby.

Knows keys, attention mass and when a block has left the local window; nothing of queries, selection or files (methods.md 2.2, 10.2).
The mass of a token is complete only when it has left the window, so a block's representative is made then, once. What is not complete
cannot be cut short: after a truncation below ``counted`` the mass must be counted again from ``restart()`` on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import BLOCK_TOKENS
from .growing import GrowingRows
from .window import LayerWindow


@dataclass(frozen=True, slots=True)
class RepresentativePlan:
    """InfLLM's blocks.

    Attributes:
        first: tokens before the first block, which are always attended (``n_init``); whole Blocks.
        block: tokens in a block (``block_size``); whole Blocks.
        count: tokens that represent a block for each head (``repr_topk``).
        local: a block is made when its last token is that far away (``n_local``).
    """

    first: int
    block: int
    count: int
    local: int

    def made(self, at: int) -> int:
        """Blocks that have left the window of a query at token ``at``."""
        return max(0, (at - self.local - self.first) // self.block)

    def end(self, blocks: int) -> int:
        """First token after the first ``blocks`` blocks."""
        return self.first + blocks * self.block


class LayerRepresentatives:
    """Representatives of one layer's blocks, and the attention mass of tokens that are in no block yet.

    Args:
        plan: sizes.
        heads: query heads.
        head_dim: dimension of keys.
        device: where they lie.
    """

    def __init__(self, plan: RepresentativePlan, heads: int, head_dim: int, device: torch.device | str = "cpu") -> None:
        self.plan, self.heads, self.head_dim, self.device = plan, heads, head_dim, device
        self.counted = 0
        self.complete = True
        self._rows = GrowingRows((heads, head_dim), torch.float32, device=device)
        self._mass = torch.zeros((heads, 0), device=device)
        self._start = 0

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, blocks: int) -> Tensor:
        """fp32 ``[blocks, H, d]``: the first ``blocks`` representatives; NaN where one is unknown."""
        return self._rows.slice(0, blocks)

    def add(self, mass: Tensor, first: int, counted: int) -> None:
        """Add attention mass fp32 ``[H, n]`` of tokens from ``first`` on; all queries before token ``counted`` have been counted then."""
        self.counted = counted
        skip, stop = max(0, self._start - first), first + mass.shape[1]
        if stop <= self._start:
            return
        missing = stop - self._start - self._mass.shape[1]
        if missing > 0:
            self._mass = torch.cat([self._mass, self._mass.new_zeros(self.heads, missing)], dim=1)
        self._mass[:, first + skip - self._start : stop - self._start] += mass[:, skip:]

    def cut(self, window: LayerWindow) -> None:
        """Make the blocks that have left the window of the tokens counted so far."""
        plan = self.plan
        while len(self) < plan.made(self.counted):
            start, stop = plan.end(len(self)), plan.end(len(self) + 1)
            mass = self._mass[:, start - self._start : stop - self._start]
            best = mass.sort(dim=1, descending=True, stable=True).indices[:, : plan.count]
            keys = window.view(start, stop)[0].float()
            keys = keys.repeat_interleave(self.heads // keys.shape[0], dim=0)
            picked = torch.gather(keys, 1, best[..., None].expand(-1, -1, self.head_dim))
            self._rows.append(picked.mean(1)[None])
        self._forget(plan.end(len(self)))

    def _forget(self, before: int) -> None:
        """Drop the mass of tokens that are in a block already."""
        gone = before - self._start
        if gone >= 4 * self.plan.block:
            self._mass, self._start = self._mass[:, gone:].clone(), before

    def truncate(self, length: int) -> None:
        """Forget tokens from ``length`` on."""
        if length >= self.counted:
            return
        self._rows.truncate(self.plan.made(length))
        self.complete = False

    def restart(self) -> int:
        """Where counting must begin again for the mass to be complete: the first token that is in no block."""
        return self.plan.end(len(self)) if len(self) else 0

    def begin(self, like: LayerRepresentatives, at: int) -> None:
        """Have the blocks of another one, and count anew from token ``at`` on."""
        self._rows = like._rows.fork(len(like))
        self._mass, self._start, self.counted, self.complete = self._mass[:, :0], at, at, True

    def take(self, other: LayerRepresentatives) -> None:
        """Take up what another one has counted."""
        self._rows, self._mass, self._start = other._rows, other._mass, other._start
        self.counted, self.complete = other.counted, other.complete

    def fork(self, length: int) -> LayerRepresentatives:
        """A child that knows tokens before ``length``."""
        child = LayerRepresentatives(self.plan, self.heads, self.head_dim, self.device)
        child._rows, child._mass = self._rows.fork(len(self)), self._mass.clone()
        child._start, child.counted, child.complete = self._start, self.counted, self.complete
        child.truncate(length)
        return child

    def state(self, first: int, last: int) -> dict[str, Tensor]:
        """Rows ``[Blocks, H, d]`` to keep with Blocks ``[first, last)``: of the block each of them is in, NaN where that is unknown."""
        numbers = (torch.arange(first, last) * BLOCK_TOKENS - self.plan.first).div(self.plan.block, rounding_mode="floor")
        known = (numbers >= 0) & (numbers < len(self))
        rows = torch.full((last - first, self.heads, self.head_dim), float("nan"), device=self.device)
        if bool(known.any()):
            rows[known] = self._rows.gather(numbers[known].to(rows.device))
        return {"representative": rows}

    def load(self, first: int, rows: Tensor | None, count: int) -> None:
        """Take up the rows ``state`` gave for ``count`` Blocks from ``first`` on, which follow those that are there.

        Blocks written by another method have none (None): theirs are unknown, and they are never chosen.
        """
        while (end := self.plan.end(len(self) + 1)) <= (first + count) * BLOCK_TOKENS:
            unknown = torch.full((1, self.heads, self.head_dim), float("nan"))
            self._rows.append(unknown if rows is None else rows[end // BLOCK_TOKENS - 1 - first][None])
        self.complete = False

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._rows.nbytes + self._mass.numel() * self._mass.element_size()
