"""Chooses by a scan of every key in 8 bits, and proves that no other Blocks would have been chosen in fp32.

Knows 8-bit keys, how far each can be from the true one, and how to read a Block's true keys. Scores are intervals; votes of intervals are
intervals (every step of a vote is monotone in every score). Where intervals of the chosen and the others overlap, the Blocks between them
are scored again with their true keys, until nothing is open.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agent_memory_kernels import Operations
from agent_memory_kernels.reference import LEAST_SHARE

from ....memory.layer_kv import ReadKeys
from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from .scan import common
from .votes import Choice, Votes

AT_ONCE = 64
"""Blocks scored again at a time at least, where only what votes are normalised by is in doubt."""

_EMPTY = float("-inf")


class Certified:
    """One layer's keys, for the queries of one forward.

    Args:
        votes: the rule.
        summary: the layer's 8-bit keys.
        read: reads true keys.
        scale: logit factor.
    """

    def __init__(self, votes: Votes, summary: LayerSummary, read: ReadKeys, scale: float) -> None:
        self._votes, self._summary, self._read, self._scale = votes, summary, read, scale

    def choose(self, rows: Tensor, asking: int, candidates: Tensor) -> Choice:
        """Choose for groups ``[G, Hk, m, d]`` among bool ``[G, n]``."""
        return Choice.joined([self._choose(part, asking, allowed) for part, allowed in zip(rows, candidates, strict=True)])

    def _choose(self, rows: Tensor, asking: int, candidates: Tensor) -> Choice:
        count = len(candidates)
        scores, errors = score_bounds(self._votes.ops, rows, self._summary, count, self._scale)
        scored = len(rows) * count * BLOCK_TOKENS
        # Not scored with true keys yet: where heads choose together a Block is scored for all of them.
        open_ = candidates.expand(len(rows) if self._votes.rule.scope == "kv_head" else 1, -1).clone()
        if self._votes.rule.vote == "max":
            return self._choose_raw(rows, scores - errors, scores.add_(errors), candidates, open_, scored)
        errors.masked_fill_(~open_[:, None], 0.0)
        rescored = 0
        while True:
            chosen = self._votes.best(self._votes.cast(scores[None].clone(), asking, candidates[None, None]))
            again = self._unproven(scores, errors, asking, candidates, chosen, open_)
            if again is None:
                break
            for heads, part, best in self._true_scores(rows, again):
                scores[heads, :, part] = best
            scored, rescored = scored + self._keys_of(again), rescored + int(again.sum())
            open_ &= ~again
            errors.masked_fill_(~open_[:, None], 0.0)
        return Choice(chosen, True, True, scored, rescored)

    def _choose_raw(self, rows: Tensor, low: Tensor, high: Tensor, candidates: Tensor, open_: Tensor, scored: int) -> Choice:
        """Choose where the vote for a Block is its best score, which no other Block has a part in: only Blocks at the border count.

        Args:
            rows: ``[Hk, m, d]``.
            low, high: bounds of scores fp32 ``[Hk, m, n]``.
            candidates, open_: bool ``[n]``, and ``[1 or Hk, n]``: not scored with true keys.
            scored: keys scored until now.
        """
        votes, rescored, likely = self._votes, 0, True
        low, high = (bound.amax(1).masked_fill_(~candidates, _EMPTY) for bound in (low, high))
        while True:
            again = _at_border(votes.shared(low[None])[0], votes.shared(high[None])[0], votes.rule.blocks, likely) & open_
            if not likely and not bool(again.any()):
                # All the best are known now, or so far above the border that no other reaches them.
                return Choice(votes.best(votes.shared(low[None])), True, True, scored, rescored)
            for heads, part, best in self._true_scores(rows, again):
                low[heads, part] = high[heads, part] = best.amax(1)
            scored, rescored = scored + self._keys_of(again), rescored + int(again.sum())
            open_ &= ~again
            likely = False

    def _unproven(self, scores: Tensor, errors: Tensor, asking: int, candidates: Tensor, chosen: Tensor, open_: Tensor) -> Tensor | None:
        """Bool ``[1 or Hk, n]``: Blocks to score with true keys before ``chosen [1, S, b]`` is proven; None if it is."""
        if not bool(open_.any()):
            return None
        doubtful = self._doubtful(scores, errors, asking, candidates, chosen)
        if doubtful is None:
            return None
        if bool((open_ == candidates).all()):
            # The chosen first: once their scores are known, fewer others can be better.
            doubtful &= _taken(chosen[0], len(candidates))
        again = doubtful & open_
        return again if bool(again.any()) else _loudest(scores, errors, candidates, open_)

    def _true_scores(self, rows: Tensor, again: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """KV heads, Blocks int64 ``[n]`` and their best scores fp32 ``[h, m, n]`` by true keys, for all the Blocks ``again``."""
        together = len(again) == 1
        for number, row in enumerate(again):
            heads = slice(None) if together else slice(number, number + 1)
            asked = rows[heads].float()
            for part in row.nonzero()[:, 0].split(512) if bool(row.any()) else ():
                keys, sound = self._read(part, None if together else number)
                products = asked @ keys.float().transpose(0, 1).flatten(1, 2).transpose(1, 2)
                best = products.unflatten(2, (len(part), BLOCK_TOKENS)).amax(-1).mul_(self._scale)
                yield heads, part, best.masked_fill_(~sound, _EMPTY)

    def _keys_of(self, again: Tensor) -> int:
        """Keys that were scored for the Blocks ``again``."""
        return int(again.sum()) * BLOCK_TOKENS * (self._summary.kv_heads if len(again) == 1 else 1)

    def _doubtful(self, scores: Tensor, errors: Tensor, asking: int, candidates: Tensor, chosen: Tensor) -> Tensor | None:
        """Bool ``[S, n]``: Blocks of which it is open whether they belong to ``chosen [1, S, b]``; None if all is proven."""
        low, high = vote_bounds(self._votes, scores - errors, scores + errors, asking, candidates)
        blocks, least, most = chosen[0], low[0], high[0]
        taken = _taken(blocks, len(candidates))
        worst = least.masked_fill(~taken, float("inf")).amin(1, keepdim=True)
        best = most.masked_fill(taken, _EMPTY).amax(1, keepdim=True)
        full = (blocks >= 0).all(1, keepdim=True)
        # With fewer than may be chosen, all others were left out for their distance: that too has to be certain.
        proven = torch.where(full, worst > best, (worst > _EMPTY) & (best == _EMPTY))
        if bool(proven.all()):
            return None
        surely = least.topk(min(blocks.shape[1], least.shape[1])).values[:, -1:]  # the last of the chosen has at least this vote
        return torch.where(full, most >= surely, most > _EMPTY) & ~proven


def score_bounds(ops: Operations, rows: Tensor, summary: LayerSummary, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """Best scores of ``rows [Hk, m, d]`` with the first ``count`` Blocks from 8-bit keys, and bounds of how far each is from the score by
    true keys, in fp32 and in any order of summation: fp32 ``[Hk, m, count]`` twice."""
    scores, errors = ops.block_bounds(rows, [summary.bounded(head, count) for head in range(len(rows))], scale)
    # What all keys have in common is added in fp32: its product, and the sum, round as far as it is long, however short the keys are.
    rounding = (2 * rows.shape[-1] + 16) * 2.0**-24 * scale
    lengths = rows.float().norm(dim=-1, keepdim=True) * summary.centre.norm(dim=-1)[:, None, None]
    return scores.add_(common(rows, summary, scale)), errors.add_(lengths.mul_(rounding))


def vote_bounds(votes: Votes, low: Tensor, high: Tensor, asking: int, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest vote fp32 ``[1, 1 or S, n]`` that scores between ``low`` and ``high [S, m, n]`` can give.

    Args:
        votes: the rule.
        low, high: bounds of scores.
        asking: rows that ask.
        candidates: bool ``[n]``.
    """
    rule = votes.rule
    low, high = (bound[None].masked_fill(~candidates, _EMPTY) for bound in (low, high))
    if rule.vote == "softmax":
        low, high = low - high.logsumexp(-1, keepdim=True), (high - low.logsumexp(-1, keepdim=True)).clamp(max=0.0)
    if not rule.echoes:
        return votes.shared(low.amax(2)), votes.shared(high.amax(2))
    least, most = (votes.shared(_echoed(votes, bound, asking)) for bound in (low, high))
    kept = least >= most.amax(-1, keepdim=True) - rule.margin
    dropped = most < least.amax(-1, keepdim=True) - rule.margin
    return least.masked_fill(~kept, _EMPTY).amax(2), most.masked_fill(dropped, _EMPTY).amax(2)


def _at_border(least: Tensor, most: Tensor, count: int, likely: bool) -> Tensor:
    """Bool ``[S, n]``: all Blocks of which it is open whether they are among the best ``count``; where each vote is its Block's own.

    Args:
        least, most: bounds of votes fp32 ``[S, n]``.
        count: how many are chosen.
        likely: only those that reach where the border seems to be; once their votes are known, few others are open.
    """
    blocks = least.shape[1]
    last = least.topk(min(count, blocks)).values[:, -1:]  # the last of the best has at least this vote,
    following = most.topk(min(count + 1, blocks)).values[:, -1:]  # and the first of the others this at most
    doubtful = (most >= last) & (least <= following)
    if not likely:
        return doubtful
    border = (last + following) / 2
    return doubtful & (least <= border) & (most >= border)


def _echoed(votes: Votes, shares: Tensor, asking: int) -> Tensor:
    """``Operations.echo`` of log shares that are known already."""
    rule = votes.rule
    floor = shares.exp().add_(LEAST_SHARE).log_()
    floor[..., 1:] = torch.maximum(floor[..., 1:], floor[..., :-1].clone())
    rows = torch.arange(shares.shape[2], device=shares.device)
    heard = (rows <= rows[-asking:, None]) & (rows > rows[-asking:, None] - rule.heard)
    weights = heard.float() * rule.echo / heard.sum(1, keepdim=True)
    return shares[:, :, -asking:] + weights @ floor


def _taken(blocks: Tensor, count: int) -> Tensor:
    """Bool ``[S, count]``: which of ``count`` Blocks are among ``blocks [S, b]``, padded with -1."""
    none = torch.zeros((len(blocks), count), dtype=torch.bool, device=blocks.device)
    return none.scatter_reduce_(1, blocks.clamp(min=0), blocks >= 0, "amax")


def _loudest(scores: Tensor, errors: Tensor, candidates: Tensor, open_: Tensor) -> Tensor:
    """Bool ``[1 or Hk, n]``: of the Blocks not scored with true keys, those whose errors count most in what votes are normalised by."""
    share = (scores + errors).masked_fill(~candidates, _EMPTY).softmax(-1)
    weight = (share * errors).amax(1)
    weight = (weight.amax(0, keepdim=True) if len(open_) == 1 else weight).masked_fill(~open_, _EMPTY)
    best = weight.topk(min(AT_ONCE, weight.shape[1])).indices
    return torch.zeros_like(open_).scatter_(1, best, True) & open_
