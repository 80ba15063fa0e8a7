"""Votes for Blocks, made of the scores queries give them, and the Blocks that win.

Knows scores and the rule; does not know keys or where scores come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from .rule import RecallRule


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks chosen for groups of queries.

    Attributes:
        blocks: int64 ``[G, S, b]``, ascending, padded with -1.
        proven: they are the best of what was scored, whatever rounding did.
        whole: everything was scored.
        scored: key vectors that were scored.
        rescored: Blocks that were scored again, with their true keys.
    """

    blocks: Tensor
    proven: bool
    whole: bool
    scored: int
    rescored: int = 0

    @staticmethod
    def joined(parts: list[Choice]) -> Choice:
        """Choices of groups that follow each other."""
        return Choice(
            torch.cat([part.blocks for part in parts]),
            all(part.proven for part in parts),
            all(part.whole for part in parts),
            sum(part.scored for part in parts),
            sum(part.rescored for part in parts),
        )


class Votes:
    """Turns scores into votes by a :class:`RecallRule`."""

    def __init__(self, rule: RecallRule, ops: Operations) -> None:
        self.rule, self.ops = rule, ops

    def all(self, candidates: Tensor) -> Choice | None:
        """Every candidate of bool ``[G, n]``, where there are not more than may be chosen."""
        if int(candidates.sum(1).max()) > self.rule.blocks:
            return None
        every = candidates[:, None].float().masked_fill(~candidates[:, None], float("-inf"))
        return Choice(self.ops.select(every, self.rule.blocks), True, True, 0)

    def cast(self, scores: Tensor, asking: int, candidates: Tensor, follows: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Votes fp32 ``[G, 1 or S, n]`` of groups' scores ``[G, S, m, n]`` for ``candidates`` bool ``[G, 1, n]``.

        Args:
            scores: overwritten; the last ``asking`` rows ask, the others are heard.
            asking: rows that ask.
            candidates: at least one of each group.
            follows, known: see ``Operations.echo``.
        """
        if not self.rule.echoes:
            return self.shared(self.ops.vote(scores, candidates, self.rule.vote))
        votes = self.shared(self.ops.echo(scores, candidates, asking, self.rule.heard, self.rule.echo, follows, known))
        far = votes < votes.amax(-1, keepdim=True) - self.rule.margin
        return votes.masked_fill_(far, float("-inf")).amax(2)

    def shared(self, votes: Tensor) -> Tensor:
        """Votes of each KV head, or their mean for the whole layer."""
        return votes.mean(dim=1, keepdim=True) if self.rule.scope == "layer" else votes

    def best(self, votes: Tensor) -> Tensor:
        """The winners' places, int64 ``[G, S, b]`` ascending, padded with -1."""
        return self.ops.select(votes, self.rule.blocks)
