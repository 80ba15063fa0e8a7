"""``streaming``: sink and local tokens only, at packed positions (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

from ..selectors import WindowSelector
from .base import Given, Method, Sizes, derive_sizes


@dataclass(frozen=True)
class Streaming:
    """No parameters: the window is the trained one."""

    def make(self, given: Given) -> Method:
        """Sink and as many local tokens as the window holds."""
        sizes = derive_sizes(given.window, given.head)
        return Method("streaming", Sizes(sizes.sink, 0, sizes.local + sizes.recalled), WindowSelector())
