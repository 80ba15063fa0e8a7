"""``streaming``: sink and local tokens only, at packed positions (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

from ..selectors import WindowSelector
from .base import Given, Method, Sizes, bounded, derive_sizes


@dataclass(frozen=True)
class Streaming:
    """A sliding window.

    Attributes:
        attended: tokens of sink, window and group; by default the trained window.
    """

    attended: int | None = None

    def make(self, given: Given) -> Method:
        """Sink and as many local tokens as there is room for."""
        sizes = derive_sizes(given.window, given.head)
        attended = sizes.attended if self.attended is None else self.attended
        bounded("streaming: attended", attended, sizes.sink + 2 * sizes.group, given.window, f"the trained window of {given.window} tokens")
        return Method("streaming", Sizes(sizes.sink, 0, attended - sizes.sink - sizes.group), WindowSelector())
