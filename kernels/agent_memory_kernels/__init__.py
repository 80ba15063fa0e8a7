"""Tensor operations of memory attention: tensors in, tensors out.

Knows torch (and, where it is there, triton); knows nothing of models, Sessions, Tiers or files.
``operations()`` is the one place where an implementation is chosen.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from . import fused, reference

__all__ = ["Operations", "operations"]


class Operations(Protocol):
    """What an implementation offers; ``reference`` defines each operation."""

    def score(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Products of grouped queries with keys."""
        ...

    def block_maxima(self, queries: Tensor, keys: list[list[tuple[Tensor, Tensor]]], scale: float) -> Tensor:
        """The best product each query has with any key of each Block."""
        ...

    def vote(self, scores: Tensor, candidates: Tensor, rule: str) -> Tensor:
        """One vote a candidate, from the scores all queries gave it."""
        ...

    def echo(self, scores: Tensor, candidates: Tensor, asking: int, window: int, weight: float) -> Tensor:
        """Normalised scores of each query, in part of the queries before it."""
        ...

    def select(self, votes: Tensor, count: int) -> Tensor:
        """The best ``count`` indices, ascending, padded with -1."""
        ...

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """Attention output and its fp32 log-sum-exp."""
        ...

    def attend_alone(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """Attention output of one set of keys that is merged with no other."""
        ...

    def column_mass(self, queries: Tensor, keys: Tensor, bias: Tensor | None, lse: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Softmax weight each key gets, summed over queries."""
        ...

    def merge(self, outputs: list[Tensor], lses: list[Tensor], sinks: Tensor | None) -> Tensor:
        """Join disjoint attentions exactly."""
        ...


def operations(backend: str = "auto") -> Operations:
    """Return the implementation named ``backend``.

    ``"auto"`` takes the fastest one that is there; ``"torch"`` is the plain definition.

    Raises:
        ValueError: no such backend.
    """
    if backend == "auto":
        return fused
    if backend == "torch":
        return reference
    raise ValueError(f"no kernel backend named {backend!r}; choose 'auto' or 'torch'")
