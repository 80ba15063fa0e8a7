"""Choices made of several operations: the certified best Blocks, the best tokens, and the tokens that most queries name.

Nothing here waits for the device. Works with any :class:`.PagedOperations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .checks import need
from .paging import Codes, PagedOperations, Pages, Workspace


@dataclass(frozen=True, slots=True)
class Candidates:
    """Blocks that can be among the best, with their true scores.

    Attributes:
        blocks: int32 ``[R, S, C]`` ascending, padded with -1.
        scores: fp32 ``[R, S, C]``.
        found: int32 ``[R, S]``, how many there are, whether they fitted or not.
    """

    blocks: Tensor
    scores: Tensor
    found: Tensor

    @property
    def rescored(self) -> Tensor:
        """int32 ``[R, S]``: Blocks that were scored in full precision."""
        return self.found.clamp(max=self.blocks.shape[-1])

    @property
    def proven(self) -> Tensor:
        """Bool ``[R, S]``: all that can be among the best are here."""
        return self.found <= self.blocks.shape[-1]


def candidate_blocks(
    operations: PagedOperations,
    queries: Tensor,
    stored: tuple[Tensor, Codes],
    pages: Pages,
    count: int,
    *,
    capacity: int,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Candidates:
    """Score all Blocks in 8 bits, and those in full precision that can be among the ``count`` best. Three launches.

    Args:
        operations: implementation.
        queries: ``[R, S, m, d]``, not rotated.
        stored: pool of keys ``[P, S, B, d]``, and their codes.
        pages: where each row's Blocks are.
        count: how many are wanted.
        capacity: room for candidates.
        starts: int32 ``[R]``, first Block to choose from; None is 0.
        lengths: int32 ``[R]``, where the Blocks to choose from end; None is ``pages.counts``.
        workspace: counters.
    """
    lower, upper = operations.score_int8(queries, stored[1], pages, workspace=workspace)
    ends = pages.counts if lengths is None else lengths
    blocks, found = operations.certify(lower, upper, count, capacity, starts=starts, lengths=ends, workspace=workspace)
    scores = operations.rescore(queries, stored[0], pages, blocks, workspace=workspace)
    return Candidates(blocks, scores, found)


def certified_blocks(
    operations: PagedOperations,
    queries: Tensor,
    stored: tuple[Tensor, Codes],
    pages: Pages,
    count: int,
    *,
    capacity: int,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Candidates]:
    """The ``count`` best Blocks, proven to be those that scoring all of them in full precision gives. Four launches.

    Arguments are those of :func:`candidate_blocks`.

    Returns:
        int32 ``[R, S, count]`` ascending, padded with -1, and what they were chosen from. Where ``proven`` is False, they are the best
        of the Blocks with the largest upper bounds.
    """
    found = candidate_blocks(
        operations, queries, stored, pages, count, capacity=capacity, starts=starts, lengths=lengths, workspace=workspace
    )
    return operations.select(found.scores, count, names=found.blocks, workspace=workspace), found


def top_tokens(
    operations: PagedOperations,
    queries: Tensor,
    keys: Tensor,
    pages: Pages,
    count: int,
    *,
    each: bool = False,
    workspace: Workspace | None = None,
) -> Tensor:
    """The ``count`` tokens with the best products: exact, though only ``count`` Blocks are looked into. Four launches.

    The best tokens lie in the Blocks with the best maxima: were one in another, each of ``count`` Blocks would hold a better one.

    Args:
        operations: implementation.
        queries: ``[R, S, m, d]``, not rotated.
        keys: pool ``[P, S, B, d]``.
        pages: where each row's Blocks are.
        count: how many.
        each: each query row has its own best; False takes the best over the rows of a KV head.
        workspace: counters.

    Returns:
        int32 ``[R, S, count]``, or ``[R, S, m, count]`` for ``each``: tokens ascending, padded with -1; ties to the lower one.
    """
    size, capacity = keys.shape[2], pages.table.shape[1]
    need(capacity * size < 2**31, f"{capacity} Blocks of {size} tokens; token numbers must stay below 2**31")
    maxima = operations.score(queries, keys, pages, each=each, workspace=workspace)
    blocks = operations.select(maxima, min(count, capacity), lengths=pages.counts, workspace=workspace)
    scores = operations.rescore(queries, keys, pages, blocks, by_token=True, workspace=workspace)
    return operations.select(scores, count, names=blocks, size=size, workspace=workspace)


def most_named(operations: PagedOperations, named: Tensor, width: int, count: int, *, workspace: Workspace | None = None) -> Tensor:
    """ReAttention's vote: the tokens that most (query head, query) pairs name, counted over a whole row. Two launches.

    Args:
        operations: implementation.
        named: int32 ``[R, ...]`` tokens, as :func:`top_tokens` gives them for ``each``; negative ones are nothing.
        width: tokens there can be.
        count: how many are kept.
        workspace: counters.

    Returns:
        int32 ``[R, count]`` ascending, padded with -1; ties to the lower one, what nobody names is never kept.
    """
    return operations.select(operations.tally(named, width, workspace=workspace), count, workspace=workspace)
