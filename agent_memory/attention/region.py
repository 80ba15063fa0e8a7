"""Attention as a list of at most three Regions, merged exactly by log-sum-exp (methods.md section 7).

Knows keys, positions and rotation; does not know where keys come from or why they were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agent_memory_kernels import Operations


class Rotary(Protocol):
    """The rotation of one attention layer, as its model does it."""

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Pair for ``positions [n]``, each ``[1, n, r]``, made in one call."""
        ...

    def table(self, layer: int, n: int) -> tuple[Tensor, Tensor]:
        """``cos_sin`` of positions 0 to n - 1, kept between calls."""
        ...

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``x [B, H, n, d]``."""
        ...


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
    """

    keys: Tensor
    values: Tensor
    query_positions: Tensor
    key_positions: Tensor
    visible: Tensor | None = None
    tau: Tensor | None = None


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


def attend(queries: Tensor, regions: Sequence[Region], rotary: Rotary, rule: LayerRule, ops: Operations) -> Tensor:
    """Attention of query groups over disjoint Regions.

    Args:
        queries: ``[G, H, T, d]``, not rotated.
        regions: one to three, disjoint for every query.
        rotary: rotation of the model.
        rule: the layer's scale, sinks and softcap.
        ops: kernel implementation.

    Returns:
        ``[G, H, T, dv]``. GQA pairing is ``h // g``.
    """
    groups, heads, count, _ = queries.shape
    kv_heads = regions[0].keys.shape[1]
    share = heads // kv_heads
    tables = _angles(regions, rotary, rule.index)
    outputs, lses = [], []
    for region, (phi, psi) in zip(regions, tables, strict=True):
        q = _rotate(queries, phi, rotary, rule.index)
        if region.tau is not None:
            q = q * _rows(region.tau, groups)[:, None, :, None].to(q.dtype)
        q = q.reshape(groups, kv_heads, share * count, q.shape[-1])
        k = _rotate(region.keys, psi, rotary, rule.index)
        if len(regions) == 1 and rule.sinks is None and rule.softcap is None:
            alone = ops.attend_alone(q, k, region.values, _bias(region.visible, share), rule.scaling)
            return alone.reshape(groups, heads, count, -1)
        out, lse = ops.attend(q, k, region.values, _bias(region.visible, share), rule.scaling, rule.softcap)
        outputs.append(out)
        lses.append(lse)
    sinks = None if rule.sinks is None else rule.sinks.reshape(1, kv_heads, share, 1).expand(-1, -1, -1, count).reshape(1, kv_heads, -1)
    joined = ops.merge(outputs, lses, sinks)
    return joined.reshape(groups, heads, count, joined.shape[-1])


def _rows(positions: Tensor, groups: int) -> Tensor:
    return positions.expand(groups, -1) if positions.dim() == 1 else positions


def _bias(visible: Tensor | None, share: int) -> Tensor | None:
    """``[.., T, n]`` bool to ``[.., share * T, n]`` additive fp32: rows of a GQA group come query head by query head."""
    if visible is None:
        return None
    bias = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device).masked_fill_(~visible, float("-inf"))
    return bias if share == 1 else bias.repeat(*([1] * (bias.dim() - 2)), share, 1)


Pair = tuple[Tensor, Tensor]


def _angles(regions: Sequence[Region], rotary: Rotary, layer: int) -> list[tuple[Pair, Pair]]:
    """Cosines and sines of every Region's positions, from one rotary call (longrope picks its factors by the largest position)."""
    flat = [p for region in regions for p in (region.query_positions, region.key_positions)]
    if all(not p.is_floating_point() for p in flat):
        largest = max(int(p.max()) for p in flat if p.numel())
        cos, sin = rotary.table(layer, largest + 1)
        pairs = [(cos[0][p], sin[0][p]) for p in flat]
    else:
        joined = torch.cat([p.reshape(-1).float() for p in flat])
        cos, sin = rotary.cos_sin(layer, joined)
        sizes = [p.numel() for p in flat]
        pairs = [
            (c.reshape(*p.shape, -1), s.reshape(*p.shape, -1))
            for c, s, p in zip(torch.split(cos[0], sizes), torch.split(sin[0], sizes), flat, strict=True)
        ]
    return list(zip(pairs[0::2], pairs[1::2], strict=True))


def _rotate(x: Tensor, pair: Pair, rotary: Rotary, layer: int) -> Tensor:
    """Rotate ``x [G, H, n, d]`` at ``[n]``, ``[G, n]`` or ``[G, H, n]`` positions."""
    cos, sin = pair
    if cos.dim() == 2:
        return rotary.rotate(layer, x, cos[None], sin[None])
    if cos.dim() == 3:
        return rotary.rotate(layer, x, cos, sin)
    groups, heads, n, d = x.shape
    flat = rotary.rotate(layer, x.reshape(groups * heads, 1, n, d), cos.reshape(groups * heads, n, -1), sin.reshape(groups * heads, n, -1))
    return flat.reshape(groups, heads, n, d)
