"""Chooses by the best key of each Block, every key being read once for all queries of a forward together.

Knows the 8-bit keys of a layer; does not know which Blocks are worth scanning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from ..base import Ask
from .votes import Choice, Votes


def scan(
    votes: Votes, rows: list[Tensor], asks: Sequence[Ask], candidates: list[Tensor], scale: float, summary: LayerSummary
) -> list[Choice]:
    """Choose for asks with more candidates than may be chosen.

    Args:
        votes: the rule.
        rows: of each ask ``[G, Hk, m, d]``.
        asks: one after the other; a query that two of them share is scored once.
        candidates: of each ask bool ``[G, blocks]``.
        scale: logit factor.
        summary: the layer's keys.
    """
    count = max(allowed.shape[1] for allowed in candidates)
    known = [ask.shared if at and votes.rule.echoes else 0 for at, ask in enumerate(asks)]
    new = [part[:, :, skip:].transpose(0, 1).flatten(1, 2) for part, skip in zip(rows, known, strict=True)]
    flat = torch.cat(new, dim=1)
    scans = best_of_blocks(votes, flat, [summary.scanned(head, count) for head in range(flat.shape[0])], summary, scale)
    before, choices = flat.new_empty(0), []
    for part, ask, allowed, skip, best in zip(rows, asks, candidates, known, scans.split([x.shape[1] for x in new], dim=1), strict=True):
        before = torch.cat([before[:, -skip:], best], dim=1) if skip else best
        choices.append(_choose(votes, before, part, ask.asking, allowed))
    return choices


def best_of_blocks(votes: Votes, rows: Tensor, keys: list[list[tuple[Tensor, Tensor]]], summary: LayerSummary, scale: float) -> Tensor:
    """Best product fp32 ``[Hk, n, blocks]`` of ``rows [Hk, n, d]`` with each Block; see ``Operations.block_maxima``.

    Scanned keys lack what all have in common, which counts only where queries are compared with each other.
    """
    best = votes.ops.block_maxima(rows, keys, scale)
    return best if votes.rule.vote == "softmax" else best.add_(common(rows, summary, scale))


def common(rows: Tensor, summary: LayerSummary, scale: float) -> Tensor:
    """Products fp32 ``[Hk, n, 1]`` of ``rows [Hk, n, d]`` with what is subtracted of every key before a scan."""
    return (rows.float() @ summary.centre[..., None]).mul_(scale)


def _choose(votes: Votes, best: Tensor, rows: Tensor, asking: int, candidates: Tensor) -> Choice:
    """Choose by the best products ``[Hk, G * m, at least n]`` of the groups' queries; each is normalised over the Blocks."""
    groups, heads, m, _ = rows.shape
    count = candidates.shape[1]
    by_group = best[..., :count].unflatten(1, (groups, m)).transpose(0, 1)
    cast = [votes.cast(by_group[g : g + 1].contiguous(), asking, candidates[g : g + 1, None]) for g in range(groups)]
    return Choice(votes.best(torch.cat(cast)), False, True, groups * heads * count * BLOCK_TOKENS)
