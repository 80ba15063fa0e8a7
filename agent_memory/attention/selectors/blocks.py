"""InfLLM's selection (arXiv 2402.04617): blocks of tokens, each looked up by its representative keys.

Follows methods.md 10.2, the clean semantics: the memory query is the mean query of a group, rotated to the far distance, all heads
together; tokens that left the local window and are in no block yet are attended as they are. Knows representatives only; reads no Block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent_memory_kernels import Operations

from ...memory.layer_kv import Keeps, LayerKV
from ...memory.representatives import LayerRepresentatives, RepresentativePlan
from .base import Ask, Bounds, Selection


class BlockSelector:
    """Chooses the ``topk`` blocks whose representatives answer a group best.

    Args:
        plan: sizes of blocks and window, and how many tokens represent a block.
        topk: blocks chosen.
        ops: kernel implementation.
    """

    def __init__(self, plan: RepresentativePlan, topk: int, ops: Operations) -> None:
        self.keeps, self.plan, self.topk, self._ops = Keeps(representatives=plan), plan, topk, ops

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """See the module; ``scaling`` is not used: the scores only rank."""
        kept = layer.representatives
        if kept is None:
            raise RuntimeError("this layer keeps no representatives")
        return [self._select(ask, kept) for ask in asks]

    def _select(self, ask: Ask, kept: LayerRepresentatives) -> Selection:
        plan, bounds = self.plan, ask.bounds
        made = ((bounds.stops - plan.first) // plan.block).clamp(min=0, max=len(kept))
        count = int(made.max())
        rows = kept.rows(count)
        asking = ask.queries[:, :, -ask.asking :]
        far = torch.full((ask.asking,), plan.local - 1, device=asking.device)
        query = ask.rotated(asking, far).float().mean(2)
        scores = torch.einsum("ghd,bhd->gb", query, rows)
        usable = ~self._lost(bounds, count) & ~rows.isnan().flatten(1).any(1)
        allowed = (torch.arange(count, device=scores.device)[None] < made[:, None]) & usable[None]
        chosen = self._ops.select(scores.masked_fill(~allowed, float("-inf")), self.topk)
        tokens = torch.cat([_tokens_of(chosen, plan), _tail(plan, made, bounds.stops)], dim=1)
        scored = int(made.sum()) * kept.heads
        return Selection(tokens[:, None], exact=bool(usable.all()) and not bounds.lost.any(), certified="memory", keys_scored=scored)

    def _lost(self, bounds: Bounds, count: int) -> Tensor:
        """Bool ``[blocks]``: those of which a part cannot be trusted."""
        plan, size = self.plan, bounds.block
        lost = torch.from_numpy(bounds.lost[plan.first // size : plan.end(count) // size]).to(bounds.stops.device)
        lost = torch.nn.functional.pad(lost, (0, count * plan.block // size - len(lost)))
        return lost.unflatten(0, (count, plan.block // size)).any(1) if count else lost


def _tokens_of(chosen: Tensor, plan: RepresentativePlan) -> Tensor:
    """Tokens ``[G, b * block]`` of blocks ``[G, b]``, -1 where padded."""
    tokens = plan.first + chosen[..., None] * plan.block + torch.arange(plan.block, device=chosen.device)
    return tokens.masked_fill(chosen[..., None] < 0, -1).flatten(1)


def _tail(plan: RepresentativePlan, made: Tensor, stops: Tensor) -> Tensor:
    """Tokens ``[G, n]`` from the end of the last block to the local window."""
    start = plan.first + made * plan.block
    tokens = start[:, None] + torch.arange(max(0, int((stops - start).max())), device=stops.device)
    return tokens.masked_fill(tokens >= stops[:, None], -1)
