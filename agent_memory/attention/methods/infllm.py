"""``infllm``: the blocks whose representative tokens answer best, everything far at one distance (arXiv 2402.04617)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ...memory.representatives import RepresentativePlan
from ...types import BLOCK_TOKENS
from ..positions import BandedPositions
from ..selectors import BlockSelector
from .base import Given, Method, Sizes, bounded, rounded_head
from .rerope import Clipped


@dataclass(frozen=True)
class InfLLM:
    """The paper's parameters; those not given keep its proportions for a trained window of 8,192 tokens.

    Attributes:
        local: ``n_local``, by default half the trained window.
        block: ``block_size``, whole Blocks; by default a 64th of the window.
        topk: blocks looked up; by default as many as the window has room for.
        representatives: ``repr_topk``, tokens that represent a block for each head.
        init: ``n_init``, first tokens that are always attended; by default a 64th of the window.
        group: ``exc_block_size``, queries that share a lookup; by default a 16th of the window.
    """

    local: int | None = None
    block: int | None = None
    topk: int | None = None
    representatives: int = 4
    init: int | None = None
    group: int | None = None

    def make(self, given: Given) -> Method:
        """Far keys stand at distance ``local - 1``, so no position leaves the trained window however many blocks are looked up."""
        window = given.window
        local = window // 2 if self.local is None else self.local
        bounded("infllm: local", local, 2 * BLOCK_TOKENS, window, f"the trained window of {window} tokens")
        block = max(BLOCK_TOKENS, window // 64) if self.block is None else self.block
        init = rounded_head(max(given.head, window // 64 if self.init is None else self.init))
        group = max(16, window // 16) if self.group is None else self.group
        bounded("infllm: group", group, 1, local, f"local={local}")
        topk = max(1, (window - init - local - group) // block) if self.topk is None else self.topk
        bounded("infllm: representatives", self.representatives, 1, block, f"block={block}")
        if block % BLOCK_TOKENS:
            raise ConfigError(f"infllm: block={block} is no multiple of {BLOCK_TOKENS}, the tokens of a Block")
        sizes = Sizes(init, topk * block, local, group)
        plan = RepresentativePlan(init, block, self.representatives, local)
        border = min(sizes.attended, window) // group * group
        return Method("infllm", sizes, BlockSelector(plan, topk, given.ops), BandedPositions(local, Clipped(local - 1)), border=border)
