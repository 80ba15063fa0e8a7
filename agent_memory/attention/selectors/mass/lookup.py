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

from ....memory.clusters import LayerClusters
from ....memory.summary import LayerSummary
from ....types import BLOCK_TOKENS
from .scan import Scan


@dataclass(frozen=True, slots=True)
class Found:
    """Keys that were looked at in clusters.

    Attributes:
        tokens: int64 ``[s, g, n]``, -1 where there is none; in no order.
        weights: fp32 ``[s, g, n, m]``: ``exp(logit - near)``, 0 where there is no token.
        others: fp32 ``[s, g, m]``: weight that all other keys in clusters are expected to have.
        scored: keys and centres that were multiplied.
    """

    tokens: Tensor
    weights: Tensor
    others: Tensor
    scored: int


def look_up(scan: Scan, clusters: LayerClusters, summary: LayerSummary, heads: slice, groups: slice, allowed: Tensor, count: int) -> Found:
    """Look into the ``count`` clusters of each KV head with the largest expected shares of the attention of a group, for tokens of Blocks
    that are ``allowed``, bool ``[g, blocks]``."""
    rows, common = scan.far(heads, groups)
    near = scan.near[groups, heads].transpose(0, 1)
    tables = clusters.tables()
    queries = rows.float() * scan.scaling
    logits = torch.einsum("sgmd,scd->sgmc", queries, tables.centres[heads])
    logits += common[..., None]
    if (cap := scan.ask.softcap) is not None:
        logits.div_(cap).tanh_().mul_(cap)
    logits -= near[..., None]
    logits += queries.square().sum(-1, keepdim=True) * (tables.spread[heads, None, None] / 2)
    expected = logits.add_(tables.sizes[heads, None, None].float().log()).clamp_(max=LARGEST).exp_()
    total = expected.sum(-1)
    best = (expected / (1 + total)[..., None]).sum(2).topk(min(count, expected.shape[3]), dim=-1, sorted=False).indices
    opened = expected.gather(3, best[:, :, None].expand(-1, -1, expected.shape[2], -1)).sum(-1)
    members = torch.stack([table[chosen] for table, chosen in zip(tables.members[heads], best, strict=True)]).flatten(2).long()
    weights = near.new_empty((*members.shape, near.shape[2]))
    numbers = range(heads.start, heads.stop)
    keys = [
        (codes[:, None], steps)
        for head, some in zip(numbers, members.clamp(min=0), strict=True)
        for codes, steps in (summary.scanned_keys(head, tokens) for tokens in some)
    ]
    scan.write([Span(rows.flatten(0, 1), keys, common.flatten(0, 1))], near.flatten(0, 1), weights.flatten(0, 1))
    scored = int((members >= 0).sum()) + members.shape[1] * tables.sizes[heads].numel()
    blocks = members.clamp(min=0).div(BLOCK_TOKENS, rounding_mode="floor")
    there = (members >= 0) & allowed.expand(len(members), -1, -1).gather(2, blocks)
    weights.masked_fill_(~there[..., None], 0.0)
    return Found(members.masked_fill_(~there, -1), weights, (total - opened).clamp_(min=0), scored)
