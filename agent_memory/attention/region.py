"""Attention as a list of at most three Regions, merged exactly by log-sum-exp (methods.md section 7).

Knows keys and positions; does not know where keys come from or why they were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from .rotation import Turning


@dataclass(frozen=True, slots=True)
class Region:
    """Keys that take part, who sees them, and at which positions.

    Attributes:
        keys: ``[G, Hk, n, d]``, not rotated.
        values: ``[G, Hk, n, dv]``.
        query_positions: phi, ``[T]`` shared by all groups or ``[G, T]``; integer or real.
        key_positions: psi, ``[n]``, ``[G, n]`` or ``[G, Hk, n]``.
        visible: bool, broadcastable to ``[G, Hk, T, n]``; None if all keys are visible to all queries.
        tau: logit factor of each query, ``[T]`` or ``[G, T]``; None is 1.
        first: which of the attended keys is the Region's first one.
    """

    keys: Tensor
    values: Tensor
    query_positions: Tensor
    key_positions: Tensor
    visible: Tensor | None = None
    tau: Tensor | None = None
    first: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of query groups to some keys, or to what stands for them, to be joined with that to other keys.

    Attributes:
        out: ``[G, Hk, m, dv]``; 0 where there is nothing to attend to. Rows of a GQA group come query head by query head.
        lse: fp32 ``[G, Hk, m]``, log-sum-exp of the logits; -inf where there is nothing.
    """

    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What a model's layer does besides rotation.

    Attributes:
        index: dense layer index.
        scaling: logit factor.
        sinks: per-query-head extra logits ``[H]`` or None.
        softcap: logit bound or None.
    """

    index: int
    scaling: float
    sinks: Tensor | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Turned:
    """A Region as kernels take it: turned to its positions, rows of a GQA group query head by query head.

    Attributes:
        region: which one.
        queries: ``[G, Hk, m, d]``.
        keys: ``[G, Hk, n, d]``.
        bias: fp32, broadcastable to ``[G, Hk, m, n]``; None where all keys are visible.
    """

    region: Region
    queries: Tensor
    keys: Tensor
    bias: Tensor | None


def turned(queries: Tensor, regions: Sequence[Region], turning: Turning) -> list[Turned]:
    """Regions, and ``queries [G, H, T, d]`` for each, turned to their positions. GQA pairing is ``h // g``."""
    groups, heads, count, dim = queries.shape
    turns = turning.turns([p for region in regions for p in (region.query_positions, region.key_positions)])
    parts = []
    for at, region in enumerate(regions):
        kv_heads = region.keys.shape[1]
        q = turning.turned(queries, turns[2 * at], ("queries", at))
        if region.tau is not None:
            q = q * _rows(region.tau, groups)[:, None, :, None].to(q.dtype)
        q = q.reshape(groups, kv_heads, heads // kv_heads * count, dim)
        k = turning.turned(region.keys, turns[2 * at + 1], ("keys", at))
        parts.append(Turned(region, q, k, _bias(region.visible, heads // kv_heads)))
    return parts


def attend(queries: Tensor, parts: Sequence[Turned], rule: LayerRule, ops: Operations, others: Sequence[Attention] = ()) -> Tensor:
    """Attention of query groups over disjoint Regions.

    Args:
        queries: ``[G, H, T, d]``.
        parts: they, turned; up to three Regions, disjoint for every query.
        rule: the layer's scale, sinks and softcap.
        ops: kernel implementation.
        others: attention to keys that are in no Region.

    Returns:
        ``[G, H, T, dv]``.
    """
    if not others and len(parts) == 1 and rule.sinks is None and rule.softcap is None:
        out = ops.attend_alone(parts[0].queries, parts[0].keys, parts[0].region.values, parts[0].bias, rule.scaling)
    else:
        out, _ = _merged(parts, rule, ops, others)
    return out.reshape(*queries.shape[:3], -1)


def attend_in_part(parts: Sequence[Turned], rule: LayerRule, ops: Operations) -> Attention:
    """Attention of queries to some of their keys; a layer's extra logits take no part in it yet."""
    return Attention(*_merged(parts, replace(rule, sinks=None), ops))


def with_sinks(attention: Attention, rule: LayerRule) -> Tensor:
    """fp32 ``[G, Hk, m]``: log-sum-exp of an attention with the layer's extra logits, where it has such."""
    return attention.lse if rule.sinks is None else torch.logaddexp(attention.lse, _sinks(rule.sinks, attention.lse))


@dataclass(frozen=True, slots=True)
class Weights:
    """Softmax weights of one query over all it attends to, summed over query heads; together they are the number of query heads.

    Attributes:
        keys: fp32 ``[Hk, n]``, over the query heads that share a KV head; 0 where a key is not visible.
        sinks: fp32 ``[]``, what the extra logits of a layer with ``sinks`` take; None where it has none.
        unread: fp32 ``[]``, what stands for keys that were not read takes; None where nothing does.
    """

    keys: Tensor
    sinks: Tensor | None
    unread: Tensor | None = None


def attend_with_last_weights(
    queries: Tensor, parts: Sequence[Turned], rule: LayerRule, ops: Operations, keys: int, unread: Attention | None = None
) -> tuple[Tensor, Weights]:
    """As :func:`attend`, and the weights of the last query of the last group.

    A single query in fp32 has its output made from these weights: that costs less than torch's fused attention, which gives none, and
    products with the keys once more. In 16 bits logits would be rounded on the way, which the fused attention does not do.

    Args:
        keys: how many are attended to, ``n``; each Region's lie among them from its ``first`` on.
        unread: attention to what stands for keys that are in no Region.
    """
    shares = _last_shares(parts, rule, queries.shape[2], unread)
    if queries.shape[0] == queries.shape[2] == 1 and queries.dtype == torch.float32:
        out = _weighted(shares, parts, unread).reshape(*queries.shape[:3], -1)
    else:
        out = attend(queries, parts, rule, ops, [] if unread is None else [unread])
    return out, _by_key(shares.sum(1), parts, keys, rule.sinks is not None, unread is not None)


def attend_and_weigh(queries: Tensor, parts: Sequence[Turned], rule: LayerRule, ops: Operations) -> tuple[Tensor, Tensor]:
    """As :func:`attend`, and how much attention each key of the first Region gets.

    Returns:
        ``[G, H, T, dv]``, and fp32 ``[G, H, n]``: weights of the softmax over all Regions, summed over the queries.
    """
    out, lse = _merged(parts, rule, ops)
    groups, heads, count, _ = queries.shape
    first, rows = parts[0], (groups, -1, heads // parts[0].keys.shape[1], count)
    bias = _additive(first.region.visible)
    mass = ops.column_mass(first.queries.reshape(*rows, queries.shape[-1]), first.keys, bias, lse.reshape(rows), rule.scaling, rule.softcap)
    return out.reshape(*queries.shape[:3], -1), mass.flatten(1, 2)


def _last_shares(parts: Sequence[Turned], rule: LayerRule, count: int, unread: Attention | None) -> Tensor:
    """Softmax ``[Hk, H / Hk, n]`` of the last of ``count`` queries of the last group over the keys of all parts, then the extra logits,
    then what stands for keys that were not read."""
    logits = [_last_logits(part, rule, count) for part in parts]
    if rule.sinks is not None:
        logits.append(rule.sinks.float().reshape(logits[0].shape[0], -1, 1))
    if unread is not None:
        logits.append(unread.lse[-1, :, count - 1 :: count, None])
    return (logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)).softmax(-1)


def _weighted(shares: Tensor, parts: Sequence[Turned], unread: Attention | None) -> Tensor:
    """Output ``[Hk, H / Hk, dv]`` of the one query that has these shares."""
    ends = list(accumulate(part.keys.shape[2] for part in parts))
    outputs = [shares[..., end - part.keys.shape[2] : end] @ part.region.values[0] for end, part in zip(ends, parts, strict=True)]
    if unread is not None:
        outputs.append(shares[..., -1:] * unread.out[0])
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).sum(0)


def _by_key(shares: Tensor, parts: Sequence[Turned], keys: int, sinks: bool, estimated: bool) -> Weights:
    """Shares ``[Hk, n]`` of the parts' keys by attended key, and those of extra logits and of what was not read."""
    if not sinks and not estimated and len(parts) == 1 and shares.shape[1] == keys:
        return Weights(shares, None)
    by_key, at = shares.new_zeros((shares.shape[0], keys)), 0
    for part in parts:  # Regions may name the same keys, each for other queries or heads
        width, first = part.keys.shape[2], part.region.first
        by_key[:, first : first + width] += shares[:, at : at + width]
        at += width
    return Weights(by_key, shares[:, at].sum() if sinks else None, shares[:, -1].sum() if estimated else None)


def _last_logits(part: Turned, rule: LayerRule, count: int) -> Tensor:
    """Logits ``[Hk, H / Hk, n]`` of the last query, products in the dtype of the keys, the rest in fp32; ``-inf`` hides a key."""
    query = part.queries[-1, :, count - 1 :: count]
    logits = torch.matmul(query * rule.scaling, part.keys[-1].transpose(-1, -2)).float()
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    return logits if part.bias is None else logits.add_(part.bias[-1, :, -1:])  # all query heads of a query see the same keys


def _merged(parts: Sequence[Turned], rule: LayerRule, ops: Operations, others: Sequence[Attention] = ()) -> tuple[Tensor, Tensor]:
    """Output ``[G, Hk, m, dv]`` over all parts and others, and its log-sum-exp ``[G, Hk, m]``, the sinks' included."""
    done = [ops.attend(part.queries, part.keys, part.region.values, part.bias, rule.scaling, rule.softcap) for part in parts]
    outputs = [out for out, _ in done] + [other.out for other in others]
    lses = [lse for _, lse in done] + [other.lse for other in others]
    sinks = None if rule.sinks is None else _sinks(rule.sinks, lses[0])
    total = torch.logsumexp(torch.stack([*lses, *([] if sinks is None else [sinks])]), dim=0)
    return ops.merge(outputs, lses, sinks), total


def _sinks(sinks: Tensor, lse: Tensor) -> Tensor:
    """Extra logits ``[H]`` for each row, fp32 ``[G, Hk, m]`` as ``lse`` is."""
    _, kv_heads, rows = lse.shape
    each = sinks.float().reshape(1, kv_heads, -1, 1)
    spread: Tensor = each.expand(-1, -1, -1, rows // each.shape[2])
    return spread.reshape(1, kv_heads, rows).expand_as(lse)


def _rows(positions: Tensor, groups: int) -> Tensor:
    return positions.expand(groups, -1) if positions.dim() == 1 else positions


def _bias(visible: Tensor | None, share: int) -> Tensor | None:
    """``[.., T, n]`` bool to ``[.., share * T, n]`` additive fp32: rows of a GQA group come query head by query head.
    One row for all queries stays one."""
    bias = _additive(visible)
    return bias if share == 1 or bias is None or bias.shape[-2] == 1 else bias.repeat(*([1] * (bias.dim() - 2)), share, 1)


def _additive(visible: Tensor | None) -> Tensor | None:
    if visible is None:
        return None
    return torch.zeros(visible.shape, dtype=torch.float32, device=visible.device).masked_fill_(~visible, float("-inf"))
