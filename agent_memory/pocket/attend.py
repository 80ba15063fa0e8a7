"""Causal attention for training: small matrix products, which on a CPU beat the fused kernel several times over.

Knows how to register itself with transformers. It knows no masks but the causal one, and no caches.
"""

import os
import sys
from typing import Any

import torch

CHUNK = 128
NAME = "pocket_training"
LOOK_BACK = 240
"""Tokens before it that a token far from the beginning attends to in layers that do not recall."""
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
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float,
    look_back: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, a chunk of queries at a time over the keys it may see: all before it, or those from ``look_back``
    before the chunk on."""
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
        first = 0 if look_back is None else max(0, start - look_back)
        seen = slice(first, start + width)
        scores = torch.bmm(part.reshape(batch * groups, members * width, size), keys[:, seen].transpose(1, 2))
        scores = scores.view(batch * groups, members, width, -1)
        future = torch.full((width, width), float("-inf"), dtype=kind).triu(1)
        scores[..., start - first :] += future
        weights = torch.softmax(scores, -1).view(batch * groups, members * width, -1)
        out.append(torch.bmm(weights, values[:, seen]).view(batch, heads, width, size))
    return torch.cat(out, 2).transpose(1, 2), None


def as_recalled(inner: Any, ids: torch.Tensor, keep: torch.Tensor, first: int) -> torch.Tensor:
    """Hidden states ``[B, K, hidden]`` of the tokens ``keep [B, K]`` of dialogues ``ids [B, L]`` that are longer than the window.

    As under recall, layers before ``first`` read the dialogue as it was, those from it on only what is shown, side by side.
    """
    hidden = inner.embed_tokens(ids)
    for at, layer in enumerate(inner.layers):
        if at == first:
            hidden = hidden.gather(1, keep[..., None].expand(-1, -1, hidden.shape[-1]))
        turned = inner.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        hidden = layer(hidden, position_embeddings=turned, look_back=LOOK_BACK if at < first else None)
    out: torch.Tensor = inner.norm(hidden)
    return out


def use(model: Any) -> None:
    """Have the model attend this way."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.config._attn_implementation = NAME
