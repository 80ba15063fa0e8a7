"""``reattention``: every query names its top keys, a layer keeps the most named, with a span each (arXiv 2407.15176)."""

from __future__ import annotations

from dataclasses import dataclass

from ...types import BLOCK_TOKENS, GROUP_TOKENS
from ..selectors import TopKSelector
from .base import Given, Method, Sizes, bounded, derive_sizes, rounded_head


@dataclass(frozen=True)
class ReAttention:
    """The paper's parameters (methods.md 1.1).

    Attributes:
        sink: ``global_size`` G.
        k: top-k of each query head and query.
        span: tokens fetched around a kept key.
        local: ``local_size`` L; as in the paper it counts the group.
        clip: ``recall_clip`` k', keys kept in a layer.
        group: ``chunk_size``: queries that share a selection.
    """

    sink: int | None = None
    k: int = 4
    span: int = 32
    local: int | None = None
    clip: int | None = None
    group: int = GROUP_TOKENS

    def make(self, given: Given) -> Method:
        """``sink + clip * span + local`` fills the trained window, as the paper's own settings do."""
        derived = derive_sizes(given.window, given.head)
        sink = max(rounded_head(given.head), self.sink or 0)
        local = derived.local + GROUP_TOKENS if self.local is None else self.local
        clip = (derived.attended - sink - local) // self.span if self.clip is None else self.clip
        attended = sink + clip * self.span + local
        bounded("reattention: sink + clip * span + local", attended, 1, given.window, f"the trained window of {given.window} tokens")
        bounded("reattention: local", local, self.group + BLOCK_TOKENS, given.window, f"a group of {self.group} and a Block at least")
        sizes = Sizes(sink, clip * self.span, local - self.group, self.group)
        return Method("reattention", sizes, TopKSelector(self.k, clip, self.span, given.ops))
