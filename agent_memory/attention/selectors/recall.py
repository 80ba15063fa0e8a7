"""``recall``, our own selection: mean keys prefilter Blocks, int8 keys with a residual bound rescore the survivors.

Knows summaries only; reads no Block. Each query's scores are normalised over what was scored before the group takes the maximum,
so that one query with a sharp match is not outvoted by many vague ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ...memory.session_kv import LayerKV
from ...memory.summary import LayerSummary
from ...types import BLOCK_TOKENS
from .base import Bounds, Selection, by_kv_head

Choice = tuple[Tensor, bool, bool, int]
"""Blocks ``[G, S, b]`` (-1 padded), whether they are proven among what was scored, whether that was everything, keys scored."""

SCORES_AT_ONCE = 1 << 18
"""Scores held at a time (1 MiB of fp32, so that a pass over them stays in the cache of one core)."""


@dataclass(frozen=True, slots=True)
class RecallRule:
    """How ``recall`` chooses.

    Attributes:
        blocks: Blocks recalled for each choice.
        survivors: Blocks whose keys are scored; 0 decides by mean keys alone.
        vote: ``softmax`` (normalised per query) or ``max`` (raw).
        scope: who shares a choice: each ``kv_head`` its own, or the whole ``layer``.
        exact: score every stored key in fp32 instead; keeps them all in memory.
    """

    blocks: int
    survivors: int
    vote: Literal["softmax", "max"] = "softmax"
    scope: Literal["kv_head", "layer"] = "kv_head"
    exact: bool = False


class RecallSelector:
    """Chooses whole Blocks by :class:`RecallRule`."""

    def __init__(self, rule: RecallRule, ops: Operations) -> None:
        self.rule, self._ops = rule, ops
        self.needs_every_key = rule.exact

    def select(self, queries: Tensor, scaling: float, bounds: Bounds, layer: LayerKV) -> Selection:
        """Choose Blocks for groups, a few groups at a time so that scores stay small."""
        rows = by_kv_head(queries, _summary(layer).kv_heads)
        candidates = bounds.candidates()
        count = candidates.shape[1]
        keys = count * bounds.block if self.rule.exact else max(count, self.rule.survivors * bounds.block)
        per_group = rows.shape[1] * rows.shape[2] * max(1, keys)
        step = max(1, SCORES_AT_ONCE // per_group)
        choose = self._choose_exactly if self.rule.exact else self._choose
        parts = [choose(rows[at : at + step], scaling, candidates[at : at + step], layer) for at in range(0, rows.shape[0], step)]
        blocks = torch.cat([part[0] for part in parts])
        proven = all(part[1] for part in parts)
        whole = all(part[2] for part in parts)
        return Selection(
            bounds.tokens(blocks),
            exact=proven and whole and not bounds.lost.any(),
            certified="no" if not proven else "memory" if whole else "survivors",
            keys_scored=sum(part[3] for part in parts),
        )

    def _choose(self, rows: Tensor, scaling: float, candidates: Tensor, layer: LayerKV) -> Choice:
        """Choose by summaries."""
        summary, count = _summary(layer), candidates.shape[1]
        most = int(candidates.sum(1).max())
        if most <= self.rule.blocks:
            every = self._ops.select(candidates[:, None].float().masked_fill(~candidates[:, None], float("-inf")), self.rule.blocks)
            return every, True, True, 0
        scored, whole = 0, most <= self.rule.survivors
        if whole:
            survivors = torch.arange(count, device=rows.device).masked_fill(~candidates[:, None], -1).expand(-1, rows.shape[1], -1)
        else:
            means = torch.cat(summary.means.views())[:count].transpose(0, 1)
            coarse = self._ops.vote(self._ops.score(rows, means, scaling), candidates[:, None], self.rule.vote)
            scored = coarse.numel()
            if self.rule.survivors == 0:
                return self._ops.select(self._shared(coarse), self.rule.blocks), False, False, scored
            survivors = self._ops.select(coarse, self.rule.survivors)
        votes, slack = self._rescore(rows, scaling, survivors, summary)
        votes, slack = _scatter(votes, survivors, count, float("-inf")), _scatter(slack, survivors, count, 0.0)
        votes, slack = self._shared(votes), slack.amax(1, keepdim=True) if self.rule.scope == "layer" else slack
        chosen = self._ops.select(votes, self.rule.blocks)
        return chosen, _proven(votes, slack, chosen), whole, scored + int(survivors.numel()) * BLOCK_TOKENS

    def _choose_exactly(self, rows: Tensor, scaling: float, candidates: Tensor, layer: LayerKV) -> Choice:
        """Choose by every key, in fp32."""
        if layer.every_key is None:
            raise RuntimeError("this layer keeps no key store")
        count = candidates.shape[1]
        keys = torch.cat(layer.every_key.views())[:count].transpose(0, 1).flatten(1, 2)
        by_token = candidates[:, None].repeat_interleave(BLOCK_TOKENS, dim=2)
        votes = self._ops.vote(self._ops.score(rows, keys, scaling), by_token, self.rule.vote)
        votes = self._shared(votes.reshape(*votes.shape[:2], count, BLOCK_TOKENS).amax(-1))
        return self._ops.select(votes, self.rule.blocks), True, True, rows.shape[0] * keys.shape[0] * keys.shape[1]

    def _shared(self, votes: Tensor) -> Tensor:
        return votes.amax(dim=1, keepdim=True) if self.rule.scope == "layer" else votes

    def _rescore(self, rows: Tensor, scaling: float, blocks: Tensor, summary: LayerSummary) -> tuple[Tensor, Tensor]:
        """Votes of Blocks ``[G, Hk, b]`` (-1 padded) by their int8 keys, and how far each vote can be from the fp32 one."""
        sketch = summary.score_sketch(rows * scaling, blocks)
        by_key = sketch.scores.flatten(3)
        error = (sketch.query_norm.amax(-1)[..., None] * sketch.radius.amax(-1)).masked_fill(blocks < 0, 0.0)
        if self.rule.vote == "softmax":
            by_key -= torch.logsumexp(by_key, dim=-1, keepdim=True)
            error = error + error.amax(-1, keepdim=True)
        return by_key.reshape(sketch.scores.shape).amax(dim=(2, 4)), error


def _summary(layer: LayerKV) -> LayerSummary:
    if layer.summary is None:
        raise RuntimeError("this layer keeps no summaries")
    return layer.summary


def _scatter(values: Tensor, index: Tensor, count: int, fill: float) -> Tensor:
    """``values [G, Hk, b]`` to their places ``index`` (-1 padded) among ``count``."""
    full = values.new_full((*values.shape[:2], count + 1), fill)
    return full.scatter_(2, index.masked_fill(index < 0, count), values)[..., :count]


def _proven(votes: Tensor, slack: Tensor, chosen: Tensor) -> bool:
    """Whether no Block left out can belong to the best: their upper bounds stay under the lower bounds of the chosen."""
    taken = torch.zeros((*votes.shape[:2], votes.shape[2] + 1), dtype=torch.bool, device=votes.device)
    taken = taken.scatter_(2, chosen.masked_fill(chosen < 0, votes.shape[2]), True)[..., :-1]
    lower = (votes - slack).masked_fill(~taken, float("inf")).amin(-1)
    upper = (votes + slack).masked_fill(taken, float("-inf")).amax(-1)
    return bool((lower > upper).all())
