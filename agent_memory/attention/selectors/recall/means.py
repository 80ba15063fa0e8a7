"""Chooses by mean keys and then the 8-bit keys of the Blocks they leave, with a proof; or by every key, in fp32.

Knows summaries and keys of a layer; scores are normalised over what was scored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....memory.layer_kv import LayerKV
from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from .votes import Choice, Votes

SCORES_AT_ONCE = 1 << 18
"""Scores held at a time (1 MiB of fp32, so that a pass over them stays in the cache of one core)."""


def choose_some_at_a_time(choose: Callable[[Tensor, Tensor], Choice], rows: Tensor, candidates: Tensor, keys: int) -> Choice:
    """``choose(rows [g, Hk, m, d], candidates [g, n])`` for some of the groups at a time, each scoring ``keys`` keys."""
    step = max(1, SCORES_AT_ONCE // (rows.shape[1] * rows.shape[2] * max(1, keys)))
    return Choice.joined([choose(rows[at : at + step], candidates[at : at + step]) for at in range(0, rows.shape[0], step)])


class ByMeans:
    """Mean keys leave ``survivors``, whose keys are scored in 8 bits with an error bound."""

    def __init__(self, votes: Votes, summary: LayerSummary, scale: float) -> None:
        self._votes, self._summary, self._scale = votes, summary, scale

    def choose(self, rows: Tensor, candidates: Tensor) -> Choice:
        """Choose for groups ``[G, Hk, m, d]`` among bool ``[G, n]``."""
        keys = max(candidates.shape[1], self._votes.rule.survivors * BLOCK_TOKENS)
        return choose_some_at_a_time(self._choose, rows, candidates, keys)

    def _choose(self, rows: Tensor, candidates: Tensor) -> Choice:
        rule, votes, count = self._votes.rule, self._votes, candidates.shape[1]
        scored, whole = 0, int(candidates.sum(1).max()) <= rule.survivors
        if whole:
            survivors = torch.arange(count, device=rows.device).masked_fill(~candidates[:, None], -1).expand(-1, rows.shape[1], -1)
        else:
            means = self._summary.means.slice(0, count).transpose(0, 1)
            coarse = votes.ops.vote(votes.ops.score(rows, means, self._scale), candidates[:, None], rule.vote)
            scored = coarse.numel()
            if rule.survivors == 0:
                return Choice(votes.best(votes.shared(coarse)), False, False, scored)
            survivors = votes.ops.select(votes.shared(coarse), rule.survivors).expand(-1, rows.shape[1], -1)
        fine, slack = self._rescore(rows, survivors)
        fine, slack = _scatter(fine, survivors, count, float("-inf")), _scatter(slack, survivors, count, 0.0)
        fine, slack = votes.shared(fine), votes.shared(slack)
        chosen = votes.best(fine)
        return Choice(chosen, _proven(fine, slack, chosen), whole, scored + int(survivors.numel()) * BLOCK_TOKENS)

    def _rescore(self, rows: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Votes of Blocks ``[G, Hk, b]`` (-1 padded) by their int8 keys, and how far each vote can be from the fp32 one."""
        sketch = self._summary.score_sketch(rows * self._scale, blocks)
        by_key = sketch.scores.flatten(3)
        error = (sketch.query_norm.amax(-1)[..., None] * sketch.radius.amax(-1)).masked_fill(blocks < 0, 0.0)
        if self._votes.rule.vote == "softmax":
            by_key -= torch.logsumexp(by_key, dim=-1, keepdim=True)
            error = error + error.amax(-1, keepdim=True)
        return by_key.reshape(sketch.scores.shape).amax(dim=(2, 4)), error


class ByEveryKey:
    """Every key is scored in fp32."""

    def __init__(self, votes: Votes, layer: LayerKV, scale: float) -> None:
        if layer.every_key is None:
            raise RuntimeError("this layer keeps no key store")
        self._votes, self._keys, self._scale = votes, layer.every_key, scale

    def choose(self, rows: Tensor, candidates: Tensor) -> Choice:
        """Choose for groups ``[G, Hk, m, d]`` among bool ``[G, n]``."""
        return choose_some_at_a_time(self._choose, rows, candidates, candidates.shape[1] * BLOCK_TOKENS)

    def _choose(self, rows: Tensor, candidates: Tensor) -> Choice:
        ops, count = self._votes.ops, candidates.shape[1]
        keys = self._keys.slice(0, count).transpose(0, 1).flatten(1, 2)
        by_token = candidates[:, None].repeat_interleave(BLOCK_TOKENS, dim=2)
        votes = ops.vote(ops.score(rows, keys, self._scale), by_token, self._votes.rule.vote)
        votes = self._votes.shared(votes.reshape(*votes.shape[:2], count, BLOCK_TOKENS).amax(-1))
        return Choice(self._votes.best(votes), True, True, rows.shape[0] * keys.shape[0] * keys.shape[1])


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
