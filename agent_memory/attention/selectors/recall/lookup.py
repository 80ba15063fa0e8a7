"""Chooses among the Blocks that clusters of like keys lead to, so that the cost does not grow with the memory.

Knows clusters and 8-bit keys of a layer. A query opens the clusters in which it can expect the largest product; the Blocks of its best keys
there are scanned whole, and so is everything that is in no cluster yet. The keys a query points at most lie in those clusters nearly
always, but not always.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent_memory_kernels.reference import BLOCKS_AT_ONCE

from ....memory.cluster_tables import RUN
from ....memory.clusters import STEP_TOKENS, LayerClusters
from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from ..base import Ask
from .scan import best_of_blocks
from .votes import Choice, Votes

CHOICE = 4
"""Keys taken for each Block that may be chosen, at least."""

ALONE = 16
"""Clusters opened for each KV head, at least, however few queries there are to open them."""

RECENT_BLOCKS = 2 * STEP_TOKENS // BLOCK_TOKENS
"""Blocks at the end that are scanned whole: all that are in no cluster yet, and so many that the product has one shape."""


class Lookup:
    """One layer's clusters and keys, for the queries of one forward.

    Args:
        votes: the rule.
        clusters: the layer's.
        summary: the layer's keys.
        scale: logit factor.
    """

    def __init__(self, votes: Votes, clusters: LayerClusters, summary: LayerSummary, scale: float) -> None:
        self._votes, self._clusters, self._summary, self._scale = votes, clusters, summary, scale

    def choose(self, rows: list[Tensor], asks: Sequence[Ask], candidates: list[Tensor]) -> list[Choice]:
        """Choose for asks: of each the rows ``[G, Hk, m, d]`` and bool ``[G, blocks]``."""
        rows = [part.float() for part in rows]
        flat = torch.cat([part.transpose(0, 1).flatten(1, 2) for part in rows], dim=1)
        count = max(allowed.shape[1] for allowed in candidates)
        first = max(0, min(self._clusters.blocks, count - RECENT_BLOCKS))
        late = self._maxima(flat, [self._summary.span_keys(head, first, count) for head in range(len(flat))])
        choices, at = [], 0
        for part, ask, allowed in zip(rows, asks, candidates, strict=True):
            m = part.shape[2]
            # For each ask by itself: what a group finds must not depend on who asks beside it.
            opened = self._nearest(part.transpose(0, 1).flatten(1, 2), max(self._votes.rule.probes, ALONE // m)).split(m, dim=1)
            groups = []
            for one, wanted, nearest in zip(part, allowed, opened, strict=True):
                groups.append(self._choose(one, nearest.flatten(1), late[:, at : at + m], first, ask.asking, wanted))
                at += m
            choices.append(Choice.joined(groups))
        return choices

    def _nearest(self, rows: Tensor, probes: int) -> Tensor:
        """The clusters in which each of ``rows [Hk, n, d]`` can expect the largest product, int64 ``[Hk, n, probes]``."""
        centres, reach = self._clusters.in_runs()
        expected = torch.baddbmm(rows.norm(dim=-1)[..., None] * reach[:, None], rows, centres.transpose(1, 2))
        return _top_few(expected.unflatten(-1, (-1, RUN)), min(probes, self._clusters.fewest))

    def _choose(self, rows: Tensor, opened: Tensor, late: Tensor, first: int, asking: int, wanted: Tensor) -> Choice:
        """Choose for one group.

        Args:
            rows: ``[Hk, m, d]``.
            opened: ``[Hk, *]``, the clusters that its rows opened.
            late: best products with the recent Blocks, ``[Hk, m, *]``.
            first: the first of those.
            asking: rows that ask.
            wanted: bool ``[blocks]``, the candidates.
        """
        count = len(wanted)
        border = min(self._clusters.blocks, count)
        found, scored = self._found(rows, opened, border)
        early = self._maxima(rows, self._padded(found))[..., : len(found)]
        blocks = torch.cat([found, torch.arange(border, count, device=found.device)])
        best = torch.cat([early, late[..., border - first : count - first]], dim=2)
        scored += len(best) * len(blocks) * BLOCK_TOKENS
        candidates = wanted[blocks]
        if not bool(candidates.any()):
            return Choice(blocks.new_full((1, 1, self._votes.rule.blocks), -1), False, False, scored)
        follows = torch.nn.functional.pad(blocks[1:] == blocks[:-1] + 1, (1, 0))
        places = self._votes.best(self._votes.cast(best[None], asking, candidates[None, None], follows))
        return Choice(blocks[places.clamp(min=0)].masked_fill(places < 0, -1), False, False, scored)

    def _found(self, rows: Tensor, opened: Tensor, border: int) -> tuple[Tensor, int]:
        """Blocks before ``border`` worth scanning, int64 ascending, and how many keys and centres were scored to know.

        Every query brings the Blocks of its best keys, and where queries hear each other the Block after each: a fact may begin in one
        and have its value in the next.
        """
        rule = self._votes.rule
        tokens, there = self._members(opened, border * BLOCK_TOKENS)
        scores = self._summary.products(rows, tokens).mul_(self._scale).masked_fill_(~there[:, None], float("-inf"))
        each = min(max(rule.found, CHOICE * rule.blocks // (len(rows) * rows.shape[1])), tokens.shape[1])
        best = scores.flatten(0, 1).topk(each, sorted=False)
        taken = tokens.repeat_interleave(rows.shape[1], 0).gather(1, best.indices)[best.values > float("-inf")]
        numbers = taken.div(BLOCK_TOKENS, rounding_mode="floor")
        numbers = (torch.cat([numbers, numbers + 1]) if rule.echoes else numbers).unique()
        return numbers[numbers < border], int(there.sum()) + sum(len(head) for head in self._clusters.heads)

    def _members(self, opened: Tensor, border: int) -> tuple[Tensor, Tensor]:
        """Tokens before ``border`` in clusters ``opened [Hk, *]``, int64 ``[Hk, n]``, and bool: False for what only fills up the row."""
        ordered = opened.sort(1).values
        again = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        members = self._clusters.members_of(ordered).masked_fill(again[..., None], -1).flatten(1)
        members = members.masked_fill_(members >= border, -1).sort(1, descending=True).values
        there = members >= 0
        width = int(there.sum(1).max())
        return members[:, :width].clamp(min=0).long(), there[:, :width]

    def _padded(self, blocks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and steps of each KV head's ``blocks``, filled up where they are so few that the product would have a shape of its own."""
        full = torch.nn.functional.pad(blocks, (0, max(0, BLOCKS_AT_ONCE - len(blocks))))
        return [self._summary.block_keys(head, full) for head in range(self._summary.kv_heads)]

    def _maxima(self, rows: Tensor, keys: list[tuple[Tensor, Tensor]]) -> Tensor:
        return best_of_blocks(self._votes, rows, [[pair] for pair in keys], self._summary, self._scale)


def _top_few(scores: Tensor, few: int) -> Tensor:
    """Places of the ``few`` largest of each row, int64 ``[.., few]``, of ``scores [.., runs, RUN]``: they lie in the runs with the largest
    maxima, so that only those are looked at twice."""
    runs = scores.amax(-1).topk(min(few, scores.shape[-2]), dim=-1, sorted=False).indices
    members = scores.gather(-2, runs[..., None].expand(*runs.shape, RUN))
    within = members.flatten(-2).topk(few, dim=-1, sorted=False).indices
    return runs.gather(-1, within.div(RUN, rounding_mode="floor")) * RUN + within % RUN
