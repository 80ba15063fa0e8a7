"""Keys far away, looked up in clusters of like keys, so that what is read to choose does not grow with the memory.

Knows clusters and 8-bit keys of a layer; does not know what is chosen. Which clusters to look into is told by the mass that each can be
expected to hold: were its members spread around its centre as a round normal distribution is, the mean of ``exp(q . k)`` would be
``exp(q . c + |q|^2 s / 2)``, with centre c and s the mean square offset of a dimension. RetroInfer (arXiv 2505.02922, section 4) weighs a
cluster of n members by ``n exp(q . c)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_memory_kernels import Span
from agent_memory_kernels.reference import LARGEST

from ....memory.cluster_tables import ClusterTables
from ....memory.clusters import LayerClusters
from ....types import BLOCK_BITS
from .scan import Scan

MOST = 1e30
"""Of an expected weight, that thousands can be added up."""


@dataclass(frozen=True, slots=True)
class Found:
    """Keys that were looked at in clusters.

    Attributes:
        tokens: int32 ``[s, g, n]``, in no order; what only fills up a cluster is -1.
        blocks: int64 ``[s, g, n]``: their Blocks; of what may not be chosen, the number of all Blocks.
        weights: fp32 ``[s, g, n, m]``: ``exp(logit - near)``; anything for what may not be chosen.
        total: fp32 ``[s, g, m]``: weight of all keys in clusters, where those that were not looked at weigh what is expected of them.
        scored: keys and centres that were multiplied.
    """

    tokens: Tensor
    blocks: Tensor
    weights: Tensor
    total: Tensor
    scored: int


def look_up(scan: Scan, clusters: LayerClusters, heads: slice, groups: slice, allowed: Tensor, first: int | None, count: int) -> Found:
    """Look into the ``count`` clusters of each KV head with the largest expected shares of the attention of a group.

    Args:
        scan: of the same queries.
        clusters: of the layer.
        heads, groups: whose.
        allowed: bool ``[g, blocks]``: Blocks whose tokens may be chosen.
        first: the token from which on all may be that are in clusters; None where ``allowed`` has to be asked for each.
        count: clusters of each KV head and group.
    """
    rows, common = scan.far(heads, groups)
    near = scan.near[groups, heads].transpose(0, 1)
    tables = clusters.tables()
    sizes = tables.sizes[heads]
    expected = _expected(scan, rows, common, near, tables, heads)
    total = expected.sum(1)
    best = (expected / (1 + total)[:, None]).sum(3).topk(min(count, expected.shape[1]), dim=1, sorted=False).indices
    opened = expected.gather(1, best[..., None].expand(-1, -1, -1, expected.shape[3])).sum(1)
    scored = int(sizes[..., None].expand(-1, -1, best.shape[2]).gather(1, best).sum()) + best.shape[2] * sizes.numel()
    best = best.transpose(1, 2)
    tokens, codes, steps = clusters.keys_of(best, heads)
    keys = zip(codes.flatten(2, 3).flatten(0, 1)[:, :, None], steps.flatten(2).flatten(0, 1), strict=True)
    weights = near.new_empty((*tokens.shape[:2], tokens[0, 0].numel(), near.shape[2]))
    scan.write([Span(rows.flatten(0, 1), list(keys), common.flatten(0, 1))], near.flatten(0, 1), weights.flatten(0, 1))
    tokens = tokens.flatten(2)
    there = tokens >= (0 if first is None else first)
    blocks = (tokens >> BLOCK_BITS).long().masked_fill_(~there, allowed.shape[1])
    if first is None:
        asked = torch.nn.functional.pad(allowed, (0, 1)).expand(len(tokens), -1, -1).gather(2, blocks)
        there &= asked
        blocks.masked_fill_(~asked, allowed.shape[1])
    mine = (there.float()[:, :, None] @ weights)[:, :, 0]
    return Found(tokens, blocks, weights, mine + (total - opened).clamp_(min=0), scored)


def _expected(scan: Scan, rows: Tensor, common: Tensor, near: Tensor, tables: ClusterTables, heads: slice) -> Tensor:
    """The weight relative to ``near`` that each cluster can be expected to have, fp32 ``[s, C, g, m]``."""
    expected = near.new_empty((len(near), tables.rows, *near.shape[1:]))
    centres = list(zip(tables.centre_codes[heads][:, :, None], tables.centre_steps[heads], strict=True))
    scan.write([Span(rows.flatten(1, 2), centres, common.flatten(1))], near, expected)
    half_norms = (rows.float() * scan.scaling).square().sum(-1) / 2
    more = tables.spread[heads][:, :, None, None] * half_norms[:, None] + tables.sizes[heads][:, :, None, None].log()
    return expected.mul_(more.clamp_(max=LARGEST).exp_()).clamp_(max=MOST)
