"""Causal attention for training: small matrix products, which on a CPU beat the fused kernel several times over.

Knows how to register itself with transformers. It knows no masks but the causal one, and no caches.
"""

import os
import sys
from typing import Any

import torch

CHUNK = 128
NAME = "pocket_training"
# Large blocks that go back to the system after every step cost more in page faults than the arithmetic.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "1073741824",
    "OMP_NUM_THREADS": "1",
}


def keep_memory() -> None:
    """Start this process again with an allocator that keeps what it has; glibc reads that only at the start."""
    if os.environ.get("MALLOC_TOP_PAD_") is None and sys.platform == "linux":
        os.execve(sys.executable, sys.orig_argv, os.environ | ALLOCATOR)  # noqa: S606


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention, a chunk of queries at a time over the keys it may see."""
    kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    members = heads // groups
    keys = key.reshape(batch * groups, length, size).to(kind)
    values = value.reshape(batch * groups, length, size).to(kind)
    queries = (query * scaling).to(kind)
    out = []
    for start in range(0, length, CHUNK):
        part = queries[:, :, start : start + CHUNK]
        width = part.shape[2]
        scores = torch.bmm(part.reshape(batch * groups, members * width, size), keys[:, : start + width].transpose(1, 2))
        scores = scores.view(batch * groups, members, width, start + width)
        future = torch.full((width, width), float("-inf"), dtype=kind).triu(1)
        scores[..., start:] += future
        weights = torch.softmax(scores, -1).view(batch * groups, members * width, start + width)
        out.append(torch.bmm(weights, values[:, : start + width]).view(batch, heads, width, size))
    return torch.cat(out, 2).transpose(1, 2), None


def use(model: Any) -> None:
    """Have the model attend this way."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.config._attn_implementation = NAME
