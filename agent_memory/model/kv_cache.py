"""The cache object a forward is given: it keeps nothing, and says where the new tokens stand.

Knows transformers' Cache protocol; keys and values pass through it to the attention step, which keeps them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache


class PassingCache(Cache):
    """A ``Cache`` that claims ``start`` tokens and returns just the new keys and values.

    ``passed`` holds the ``id`` of every key tensor handed through, so that certifying can tell a layer which borrows the keys of
    another one.
    """

    def __init__(self, start: int) -> None:
        super().__init__(layers=[])
        self.start = start
        self.passed: list[int] = []

    def __bool__(self) -> bool:
        return True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hand the new ``[1, Hk, T, d]`` keys and values back."""
        self.passed.append(id(key_states))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones."""
        return self.start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of the first new token."""
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset, as if everything were here."""
        return self.start + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1
