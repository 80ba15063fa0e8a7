"""Plain-torch definition of every operation: what a faster kernel must equal.

Shapes: ``G`` groups of queries that share one selection, ``S`` key heads, ``m`` query rows of one key head (query heads of the
GQA group times queries), ``n`` keys, ``d`` head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = float("-inf")

LEAST_SHARE = 1e-3
"""Share of a query's vote below which a candidate counts as not found by it."""

BLOCKS_AT_ONCE = 128
"""Blocks in one product at most. Few shapes, since a CPU keeps a compiled kernel for each one it has seen."""

PRODUCTS_AT_ONCE = 1 << 19
"""Products of queries and keys held at a time: they stay in one core's cache."""


def score(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Scaled products of grouped queries with keys, in fp32.

    Args:
        queries: ``[G, S, m, d]``, not rotated.
        keys: ``[S, n, d]`` shared by all groups, or ``[G, S, n, d]``.
        scale: logit factor.

    Returns:
        ``[G, S, m, n]`` fp32.
    """
    return torch.matmul(queries.float() * scale, keys.float().transpose(-1, -2))


def block_maxima(queries: Tensor, keys: list[Tensor], scale: float) -> Tensor:
    """The best product each query has with any key of each Block; the products themselves are never all held.

    Args:
        queries: ``[rows, d]``, not rotated.
        keys: views ``[*, block, d]`` that follow each other, in a dtype the products are made in (bf16 on a CPU).
        scale: logit factor.

    Returns:
        ``[rows, blocks]`` fp32.
    """
    rows, dtype = queries.shape[0], keys[0].dtype
    asked = (queries.float() * scale).to(dtype).transpose(0, 1).contiguous()
    best = queries.new_empty((sum(len(part) for part in keys), rows), dtype=torch.float32)
    done = 0
    step = max(1, min(BLOCKS_AT_ONCE, PRODUCTS_AT_ONCE // (rows * keys[0].shape[1])))
    for part in keys:
        for at in range(0, len(part), step):
            first = max(0, min(at, len(part) - step))  # the last chunk overlaps: products of one shape share one compiled kernel
            chunk = part[first : first + step]
            products = chunk.reshape(-1, chunk.shape[-1]) @ asked
            best[done + first : done + first + len(chunk)] = products.view(len(chunk), chunk.shape[1], rows).amax(1)
        done += len(part)
    return best.transpose(0, 1)


def vote(scores: Tensor, candidates: Tensor, rule: str) -> Tensor:
    """One vote a candidate: the most any query row gives it.

    Args:
        scores: ``[G, S, m, n]`` fp32; overwritten.
        candidates: bool ``[G, 1 or S, n]``; False is never voted for.
        rule: ``"max"`` takes raw scores; ``"softmax"`` first normalises each query row over its candidates, so that a query
            with many good matches does not outvote one with a single match.

    Returns:
        ``[G, S, n]`` fp32, ``-inf`` where not a candidate.
    """
    scores.masked_fill_(~candidates[:, :, None, :], EMPTY)
    if rule == "softmax":
        scores -= torch.logsumexp(scores, dim=-1, keepdim=True)
    elif rule != "max":
        raise ValueError(f"no vote rule named {rule!r}; choose 'max' or 'softmax'")
    best = scores.amax(dim=2)
    return best.masked_fill_(~candidates.expand_as(best), EMPTY)


def echo(scores: Tensor, candidates: Tensor, window: int, weight: float) -> Tensor:
    """Votes of queries that speak for themselves and, in part, for the queries just before them.

    A query's score is its normalised one plus ``weight`` times the mean log share that the last ``window`` queries gave the same
    candidate: what a whole name and its field keep finding stands above what only the field finds.

    Args:
        scores: ``[G, S, m, n]`` fp32, rows in the order of the queries; overwritten.
        candidates: bool ``[G, 1 or S, n]``.
        window: queries that are heard, the row's own with them.
        weight: how loud the earlier ones are.

    Returns:
        ``[G, S, m, n]`` fp32, ``-inf`` where not a candidate.
    """
    scores.masked_fill_(~candidates[:, :, None, :], EMPTY)
    scores -= torch.logsumexp(scores, dim=-1, keepdim=True)
    shares = (scores.exp() + LEAST_SHARE).log_()
    sums = torch.nn.functional.pad(shares.cumsum(2), (0, 0, 1, 0))
    m = scores.shape[2]
    last = torch.arange(1, m + 1, device=scores.device)
    first = (last - window).clamp(min=0)
    heard = (sums[:, :, last] - sums[:, :, first]) / (last - first)[:, None]
    return scores.add_(heard, alpha=weight)


def select(votes: Tensor, count: int) -> Tensor:
    """The ``count`` best candidates of each row; equal votes go to the lower index.

    Args:
        votes: ``[..., n]`` fp32, ``-inf`` where not a candidate.
        count: how many.

    Returns:
        int64 ``[..., count]`` ascending, padded with -1 at the end.
    """
    n = votes.shape[-1]
    take = min(count, n)
    if take < n:
        order = _top_stable(votes, take)
    else:
        order = torch.arange(n, device=votes.device).expand(votes.shape)
    chosen = order.masked_fill(torch.gather(votes, -1, order) == EMPTY, n)
    chosen = chosen.sort(dim=-1).values
    chosen = chosen.masked_fill(chosen == n, -1)
    return torch.nn.functional.pad(chosen, (0, count - take), value=-1)


def _top_stable(votes: Tensor, take: int) -> Tensor:
    """Indices of the ``take`` largest; ties at the border go to lower indices whatever ``topk`` does."""
    floor = torch.topk(votes, take, dim=-1).values[..., -1:]
    above = votes > floor
    level = votes == floor
    room = take - above.sum(dim=-1, keepdim=True)
    keep = above | (level & (level.cumsum(dim=-1) <= room))
    return keep.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :take]


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over one set of keys, with its log-sum-exp.

    Args:
        queries: ``[G, S, m, d]``, rotated.
        keys: ``[G, S, n, d]``, rotated.
        values: ``[G, S, n, dv]``.
        bias: fp32, broadcastable to ``[G, S, m, n]``; ``-inf`` hides a key.
        scale: logit factor.
        softcap: bound of the logits, ``cap * tanh(logit / cap)``, applied before the bias.

    Returns:
        output ``[G, S, m, dv]`` in the dtype of ``values`` (0 where every key is hidden) and lse ``[G, S, m]`` fp32.
    """
    logits = torch.matmul(queries, keys.transpose(-1, -2)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == EMPTY, 0.0)[..., None])
    return torch.matmul(weights.to(values.dtype), values), lse


def attend_alone(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The output of :func:`attend` for a set of keys that is merged with no other: torch's fused attention, four times as fast on a CPU.

    Every row must see at least one key.
    """
    mask = None if bias is None else bias.to(queries.dtype).expand(queries.shape[0], -1, -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)


def merge(outputs: list[Tensor], lses: list[Tensor], sinks: Tensor | None) -> Tensor:
    """Join attentions over disjoint key sets into attention over their union, exactly.

    Args:
        outputs: each ``[G, S, m, dv]``.
        lses: each ``[G, S, m]`` fp32.
        sinks: extra logit a row that takes weight and gives nothing, broadcastable to ``[G, S, m]`` (gpt-oss).

    Returns:
        ``[G, S, m, dv]`` in the dtype of the outputs.
    """
    if len(outputs) == 1 and sinks is None:
        return outputs[0]
    parts = list(lses) if sinks is None else [*lses, sinks.float().expand_as(lses[0])]
    total = torch.logsumexp(torch.stack(parts), dim=0)
    joined = sum(out.float() * torch.exp(lse - total)[..., None] for out, lse in zip(outputs, lses, strict=True))
    return joined.to(outputs[0].dtype)  # type: ignore[union-attr]
