"""``recall``, our own selection: every key is scanned, and each Block gets its best vote.

Knows summaries only; reads no Block. A query's scores are normalised over everything it scored before the group takes the maximum, so
that one query with a sharp match is not outvoted by many vague ones. Mean keys as a prefilter are there for models whose keys in a
Block are alike; where every key stands for itself (copying heads) the mean of 32 keys says nothing (docs/methods.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ...errors import ConfigError
from ...memory.layer_kv import LayerKV
from ...memory.summary import LayerSummary
from ...types import BLOCK_TOKENS
from .base import Ask, Bounds, Selection, by_kv_head

Choice = tuple[Tensor, bool, bool, int]
"""Blocks ``[G, S, b]`` (-1 padded), whether they are proven among what was scored, whether that was everything, keys scored."""

SCORES_AT_ONCE = 1 << 18
"""Scores held at a time (1 MiB of fp32, so that a pass over them stays in the cache of one core)."""


@dataclass(frozen=True, slots=True)
class RecallRule:
    """How ``recall`` chooses.

    Attributes:
        blocks: Blocks recalled for each choice.
        scan: ``keys`` scans every key in 8 bits; ``means`` prefilters by mean keys and scores the keys of ``survivors`` in 8 bits
            with an error bound; ``exact`` scores every key in fp32, and keeps them all in memory.
        survivors: Blocks the ``means`` prefilter leaves; 0 decides by mean keys alone.
        vote: ``softmax`` (normalised per query) or ``max`` (raw).
        scope: who shares a choice: each ``kv_head`` its own, or the whole ``layer``.
        echo: how loud the queries just before are in a query's vote, in ``keys`` scans; 0 lets each speak for itself.
        heard: queries that are heard, the asking one with them.
        margin: a Block is left out for a query whose best Block has that much more of its vote: it would only distract.
        pool: score the mean of the query heads that share a KV head instead of each of them.
        angle: rotate queries to this position before scoring them against keys that are not rotated, as InfLLM does; None does not.
    """

    blocks: int
    scan: Literal["keys", "means", "exact"] = "keys"
    survivors: int = 64
    vote: Literal["softmax", "max"] = "softmax"
    scope: Literal["kv_head", "layer"] = "layer"
    echo: float = 4.0
    heard: int = 12
    margin: float = 2.0
    pool: bool = True
    angle: int | None = None

    def check(self, most: int) -> None:
        """Raise ``ConfigError`` for what cannot be; ``most`` Blocks fit the trained window."""
        for name, choices in (("scan", ("keys", "means", "exact")), ("vote", ("softmax", "max")), ("scope", ("layer", "kv_head"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"recall: {name}={getattr(self, name)!r} cannot be used; choose one of {', '.join(choices)}")
        for name, least, limit in (("blocks", 1, most), ("survivors", 0, None), ("heard", 1, None), ("echo", 0, None), ("margin", 0, None)):
            value = getattr(self, name)
            if value < least or (limit is not None and value > limit):
                bound = f"at least {least}" if limit is None else f"between {least} and {limit}, what the trained window holds"
                raise ConfigError(f"recall: {name}={value} cannot be used; it must be {bound}")

    @property
    def echoes(self) -> bool:
        """Whether queries hear those before them."""
        return self.scan == "keys" and self.vote == "softmax" and self.pool and self.echo > 0


class RecallSelector:
    """Chooses whole Blocks by :class:`RecallRule`."""

    representatives = None

    def __init__(self, rule: RecallRule, ops: Operations) -> None:
        self.rule, self._ops = rule, ops
        self.needs_every_key = rule.scan == "exact"

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose Blocks for groups of queries."""
        summary = _summary(layer)
        rows = [self._rows(ask, summary.kv_heads) for ask in asks]
        candidates = [ask.bounds.candidates() for ask in asks]
        if self.rule.scan == "keys":
            choices = self._scan(rows, asks, candidates, scaling, summary)
        else:
            choices = [self._choose(part, scaling, allowed, layer) for part, allowed in zip(rows, candidates, strict=True)]
        return [self._selection(ask.bounds, choice) for ask, choice in zip(asks, choices, strict=True)]

    def _rows(self, ask: Ask, kv_heads: int) -> Tensor:
        """``[G, Hk, m, d]``: the queries that share a KV head, pooled or one by one; those asked before only where they are heard."""
        queries = ask.queries if self.rule.echoes else ask.queries[:, :, -ask.asking :]
        if self.rule.angle is not None:
            queries = ask.rotated(queries, self.rule.angle)
        rows = by_kv_head(queries, kv_heads)
        return rows.reshape(*rows.shape[:2], -1, queries.shape[2], rows.shape[-1]).mean(2) if self.rule.pool else rows

    def _selection(self, bounds: Bounds, choice: Choice) -> Selection:
        blocks, proven, whole, scored = choice
        return Selection(
            bounds.tokens(blocks),
            exact=proven and whole and not bounds.lost.any(),
            certified="no" if not proven else "memory" if whole else "survivors",
            keys_scored=scored,
        )

    def _all(self, candidates: Tensor) -> Choice | None:
        """Every candidate, where there are not more than may be chosen."""
        if int(candidates.sum(1).max()) > self.rule.blocks:
            return None
        every = candidates[:, None].float().masked_fill(~candidates[:, None], float("-inf"))
        return self._ops.select(every, self.rule.blocks), True, True, 0

    def _scan(
        self, rows: list[Tensor], asks: Sequence[Ask], candidates: list[Tensor], scaling: float, summary: LayerSummary
    ) -> list[Choice]:
        """Choose by the best key of each Block. Every key is read once, for all queries of the forward together."""
        choices = [self._all(allowed) for allowed in candidates]
        wanted = [at for at, choice in enumerate(choices) if choice is None]
        if wanted:
            count = max(candidates[at].shape[1] for at in wanted)
            known = [asks[at].shared if at - 1 in wanted and self.rule.echoes else 0 for at in wanted]
            new = [rows[at][:, :, skip:].transpose(0, 1).flatten(1, 2) for at, skip in zip(wanted, known, strict=True)]
            flat = torch.cat(new, dim=1)
            scans = self._ops.block_maxima(flat, [summary.scanned(head, count) for head in range(flat.shape[0])], scaling)
            before = flat.new_empty(0)
            for at, skip, best in zip(wanted, known, scans.split([part.shape[1] for part in new], dim=1), strict=True):
                whole = torch.cat([before[:, -skip:], best], dim=1) if skip else best
                choices[at] = self._choose_scanned(whole, rows[at], asks[at].asking, candidates[at])
                before = whole
        return [choice for choice in choices if choice is not None]

    def _choose_scanned(self, best: Tensor, rows: Tensor, asking: int, candidates: Tensor) -> Choice:
        """Choose by the best products ``[Hk, G * m, at least n]`` of the groups' queries; each is normalised over the Blocks."""
        groups, heads, m, _ = rows.shape
        count = candidates.shape[1]
        by_group = best[..., :count].unflatten(1, (groups, m)).transpose(0, 1)
        votes = torch.cat([self._vote(by_group[g : g + 1].contiguous(), asking, candidates[g : g + 1, None]) for g in range(groups)])
        return self._ops.select(votes, self.rule.blocks), False, True, groups * heads * count * BLOCK_TOKENS

    def _choose(self, rows: Tensor, scaling: float, candidates: Tensor, layer: LayerKV) -> Choice:
        """Choose by means, or by every key in fp32, some groups at a time."""
        everything = self._all(candidates)
        if everything is not None:
            return everything
        choose = self._choose_exactly if self.rule.scan == "exact" else self._choose_by_means
        keys = (
            candidates.shape[1] * BLOCK_TOKENS
            if self.rule.scan == "exact"
            else max(candidates.shape[1], self.rule.survivors * BLOCK_TOKENS)
        )
        step = max(1, SCORES_AT_ONCE // (rows.shape[1] * rows.shape[2] * max(1, keys)))
        parts = [choose(rows[at : at + step], scaling, candidates[at : at + step], layer) for at in range(0, rows.shape[0], step)]
        blocks = torch.cat([part[0] for part in parts])
        return blocks, all(part[1] for part in parts), all(part[2] for part in parts), sum(part[3] for part in parts)

    def _vote(self, scores: Tensor, asking: int, candidates: Tensor) -> Tensor:
        """Votes ``[1, Hk, n]`` of one group's scores ``[1, Hk, m, n]``."""
        if not self.rule.echoes:
            return self._shared(self._ops.vote(scores, candidates, self.rule.vote))
        votes = self._shared(self._ops.echo(scores, candidates, asking, self.rule.heard, self.rule.echo))
        far = votes < votes.amax(-1, keepdim=True) - self.rule.margin
        return votes.masked_fill_(far, float("-inf")).amax(2)

    def _choose_by_means(self, rows: Tensor, scaling: float, candidates: Tensor, layer: LayerKV) -> Choice:
        """Choose by summaries."""
        summary, count = _summary(layer), candidates.shape[1]
        scored, whole = 0, int(candidates.sum(1).max()) <= self.rule.survivors
        if whole:
            survivors = torch.arange(count, device=rows.device).masked_fill(~candidates[:, None], -1).expand(-1, rows.shape[1], -1)
        else:
            means = summary.means.slice(0, count).transpose(0, 1)
            coarse = self._ops.vote(self._ops.score(rows, means, scaling), candidates[:, None], self.rule.vote)
            scored = coarse.numel()
            if self.rule.survivors == 0:
                return self._ops.select(self._shared(coarse), self.rule.blocks), False, False, scored
            survivors = self._ops.select(self._shared(coarse), self.rule.survivors).expand(-1, rows.shape[1], -1)
        votes, slack = self._rescore(rows, scaling, survivors, summary)
        votes, slack = _scatter(votes, survivors, count, float("-inf")), _scatter(slack, survivors, count, 0.0)
        votes, slack = self._shared(votes), self._shared(slack)
        chosen = self._ops.select(votes, self.rule.blocks)
        return chosen, _proven(votes, slack, chosen), whole, scored + int(survivors.numel()) * BLOCK_TOKENS

    def _choose_exactly(self, rows: Tensor, scaling: float, candidates: Tensor, layer: LayerKV) -> Choice:
        """Choose by every key, in fp32."""
        if layer.every_key is None:
            raise RuntimeError("this layer keeps no key store")
        count = candidates.shape[1]
        keys = layer.every_key.slice(0, count).transpose(0, 1).flatten(1, 2)
        by_token = candidates[:, None].repeat_interleave(BLOCK_TOKENS, dim=2)
        votes = self._ops.vote(self._ops.score(rows, keys, scaling), by_token, self.rule.vote)
        votes = self._shared(votes.reshape(*votes.shape[:2], count, BLOCK_TOKENS).amax(-1))
        return self._ops.select(votes, self.rule.blocks), True, True, rows.shape[0] * keys.shape[0] * keys.shape[1]

    def _shared(self, votes: Tensor) -> Tensor:
        """Votes of each KV head, or their mean for the whole layer."""
        return votes.mean(dim=1, keepdim=True) if self.rule.scope == "layer" else votes

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
