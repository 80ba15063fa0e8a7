"""Tensor operations of memory attention: tensors in, tensors out.

Knows torch (and, where it is there, triton); knows nothing of models, Sessions, Tiers or files.
``operations()`` and, for keys that lie in pages, ``paged()`` are the places where an implementation is chosen.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import fused, reference
from .chosen import Candidates, candidate_blocks, certified_blocks, most_named, top_tokens
from .errors import KernelError
from .paging import (
    FARTHEST,
    Codes,
    LogitRule,
    PagedOperations,
    Pages,
    Placed,
    Pool,
    Regions,
    Rotation,
    Timeline,
    Workspace,
)
from .reference import Span
from .reference import paged as paged_reference

__all__ = [
    "FARTHEST",
    "Candidates",
    "Codes",
    "KernelError",
    "LogitRule",
    "Operations",
    "PagedOperations",
    "Pages",
    "Placed",
    "Pool",
    "Regions",
    "Rotation",
    "Span",
    "Timeline",
    "Workspace",
    "candidate_blocks",
    "certified_blocks",
    "most_named",
    "operations",
    "paged",
    "top_tokens",
]


class Operations(Protocol):
    """What an implementation offers; ``reference`` defines each operation."""

    def score(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Products of grouped queries with keys."""
        ...

    def block_maxima(self, queries: Tensor, keys: list[list[tuple[Tensor, Tensor]]], scale: float) -> Tensor:
        """The best product each query has with any key of each Block."""
        ...

    def key_weights(
        self, spans: Sequence[Span], scale: float, reference: Tensor, out: Tensor, softcap: float | None = None, *, integers: bool = False
    ) -> None:
        """Attention weights of keys, relative to a reference."""
        ...

    def block_bounds(self, queries: Tensor, keys: list[list[tuple[Tensor, Tensor, Tensor]]], scale: float) -> tuple[Tensor, Tensor]:
        """The best product each query has with any key of each Block, and how far it can be from the true one."""
        ...

    def vote(self, scores: Tensor, candidates: Tensor, rule: str) -> Tensor:
        """One vote a candidate, from the scores all queries gave it."""
        ...

    def echo(
        self,
        scores: Tensor,
        candidates: Tensor,
        asking: int,
        window: int,
        weight: float,
        follows: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
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


def paged(backend: str = "auto", device: torch.device | str = "cpu") -> PagedOperations:
    """Return the paged operations named ``backend`` for tensors on ``device``.

    ``"triton"`` runs kernels, and ``"torch"`` the plain definition. ``"auto"`` takes kernels on a CUDA device and the definition on any
    other; it does not go back to the definition where a CUDA machine lacks triton.

    Raises:
        KernelError: no such backend, or kernels cannot run there.
    """
    device = torch.device(device)
    if backend not in ("auto", "torch", "triton"):
        raise KernelError(f"no paged backend named {backend!r}; choose 'auto', 'torch' or 'triton'")
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return paged_reference
    if importlib.util.find_spec("triton") is None:
        raise KernelError("backend 'triton' needs triton, which is not installed; pip install triton, or choose 'torch'")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise KernelError(f"backend 'triton' runs on a CUDA device, not on {device.type!r}; choose 'torch', or set TRITON_INTERPRET=1")
    from . import device as kernels

    return kernels
