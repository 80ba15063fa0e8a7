"""Plain-torch definition of every operation: what a faster kernel must equal.

Shapes: ``G`` groups of queries that share one selection, ``S`` key heads, ``m`` query rows of one key head (query heads of the
GQA group times queries), ``n`` keys, ``d`` head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = float("-inf")

LEAST_SHARE = 1e-4
"""Share of a query's vote below which a candidate counts as not found by it."""

RUN = 32
"""Votes that are looked at together when the best of many are sought."""


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


def echo(
    scores: Tensor,
    candidates: Tensor,
    asking: int,
    window: int,
    weight: float,
    follows: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Votes of queries that speak for themselves and, in part, for the queries just before them.

    A query's score is its normalised one plus ``weight`` times the mean log share that the last ``window`` queries gave the same
    candidate or the one before it: what a whole name and its field keep finding stands above what only the field finds, and a
    fact may begin at the end of one Block and have its value in the next.

    Args:
        scores: ``[G, S, m, n]`` fp32, rows in the order of the queries; overwritten.
        candidates: bool ``[G, 1 or S, n]``, at least one in each row.
        asking: how many of the last rows vote.
        window: queries that are heard, the row's own with them.
        weight: how loud the earlier ones are.
        follows: bool ``[n]``: which candidates come right after the one before them in the list; None is all of them.
        known: bool ``[m]``: which rows are heard by all who ask, whatever ``window`` says; where rows lie in a ring.

    Returns:
        ``[G, S, asking, n]`` fp32, ``-inf`` where not a candidate.
    """
    scores.masked_fill_(~candidates[:, :, None, :], EMPTY)
    shares = torch.softmax(scores, dim=-1).add_(LEAST_SHARE).log_()
    before = shares[..., :-1] if follows is None else shares[..., :-1].masked_fill(~follows[1:], EMPTY)
    shares[..., 1:] = torch.maximum(shares[..., 1:], before)
    rows = torch.arange(scores.shape[2], device=scores.device)
    heard = (rows <= rows[-asking:, None]) & (rows > rows[-asking:, None] - window) if known is None else known.expand(asking, -1)
    weights = heard.float() * weight / heard.sum(1, keepdim=True)
    return torch.log_softmax(scores[:, :, -asking:], dim=-1).add_(weights @ shares)


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
    chosen = _top_stable(votes, take) if take < n else torch.arange(n, device=votes.device).expand(votes.shape)
    none = torch.gather(votes, -1, chosen) == EMPTY
    if bool(none.any()):
        chosen = chosen.masked_fill(none, n).sort(dim=-1).values
        chosen = chosen.masked_fill(chosen == n, -1)
    return torch.nn.functional.pad(chosen, (0, count - take), value=-1)


def _top_stable(votes: Tensor, take: int) -> Tensor:
    """Indices of the ``take`` largest, ascending; ties at the border go to lower indices whatever ``topk`` does.

    The largest of many lie in the runs with the largest maxima, so that only those runs are looked at: a run is preferred to a later
    one with the same maximum as its members are to later ones of the same size.
    """
    n = votes.shape[-1]
    if n <= RUN * (take + 1):
        return _top_few(votes, take)
    whole = n - n % RUN
    maxima = votes[..., :whole].unflatten(-1, (-1, RUN)).amax(-1)
    if whole < n:
        maxima = torch.cat([maxima, votes[..., whole:].amax(-1, keepdim=True)], dim=-1)
    index = (_top_stable(maxima, take)[..., None] * RUN + torch.arange(RUN, device=votes.device)).flatten(-2)
    members = torch.gather(votes, -1, index.clamp(max=n - 1)).masked_fill_(index >= n, EMPTY)
    # What fills up the last run is never chosen: it comes after all else that is no vote.
    return torch.gather(index, -1, _top_few(members, take))


def _top_few(votes: Tensor, take: int) -> Tensor:
    floor = torch.topk(votes, take, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    found = (votes >= floor).nonzero()[:, -1]
    if len(found) == floor.numel() * take:  # no row has more that are as large as its last
        return found.view(*votes.shape[:-1], take)
    above = votes > floor
    level = votes == floor
    room = take - above.sum(dim=-1, keepdim=True)
    keep = above | (level & (level.cumsum(dim=-1) <= room))
    return keep.nonzero()[:, -1].view(*votes.shape[:-1], take)


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


def column_mass(queries: Tensor, keys: Tensor, bias: Tensor | None, lse: Tensor, scale: float, softcap: float | None) -> Tensor:
    """How much attention each key gets: softmax weights summed over queries, head by head.

    Args:
        queries: ``[G, S, h, T, d]``, rotated: ``T`` queries of each of the ``h`` query heads that share a key head.
        keys: ``[G, S, n, d]``, rotated.
        bias: fp32, broadcastable to ``[G, S, T, n]``; ``-inf`` hides a key.
        lse: fp32 ``[G, S, h, T]``: log-sum-exp over all keys the queries attend to, of which these may be some.
        scale: logit factor.
        softcap: as in :func:`attend`.

    Returns:
        fp32 ``[G, S, h, n]``.
    """
    logits = torch.matmul(queries, keys[:, :, None].transpose(-1, -2)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias[:, :, None]
    return torch.exp(logits - lse[..., None]).sum(-2)


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
