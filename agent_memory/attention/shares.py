"""How the attention of one reply was shared out: the sink, what was recalled token by token, and all that is local.

Knows weights and token indices; which turn a token belongs to is the Session's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .positions import Attended
from .region import Weights


@dataclass(frozen=True, slots=True)
class SharedOut:
    """Attention shares; ``sink + local + recalled.sum() + unread`` is 1.

    Attributes:
        sink: of the first tokens that are always attended, and of the extra logits of layers that have such.
        local: of every other key that was not recalled, and of the reply's own tokens, even where those were read as memory.
        recalled: float64 ``[tokens]``, of each committed token where it was recalled.
        unread: of what stood for keys that were not read.
        peaks: fp32 ``[tokens]``, the largest weight each got where it was recalled: in one layer, from one token, on average over the
            query heads of one KV head.
    """

    sink: float
    local: float
    recalled: NDArray[np.float64]
    unread: float
    peaks: NDArray[np.float32]


class AttentionShares:
    """Sums of softmax weights, kept on the device until they are asked for.

    Args:
        tokens: committed tokens; recalled keys after them are the reply's own.
        device: where attention is.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # a long reply adds up millions of weights
        self._sink, self._local, self._unread = (torch.zeros((), dtype=dtype, device=device) for _ in range(3))
        self._recalled = torch.zeros(tokens + 1, dtype=dtype, device=device)
        self._peaks = torch.zeros(tokens + 1, device=device)
        self._own, self._rows = tokens, 0

    def add(self, weights: Weights, attended: Sequence[Attended], query_heads: int) -> None:
        """Add the weights that one token's queries gave in one layer to keys, attended in one part or one after another."""
        start = 0
        for part in attended:
            stop = start + part.tokens.shape[-1]
            self._add(weights.keys[:, start:stop], part, query_heads)
            start = stop
        if weights.sinks is not None:
            self._sink += weights.sinks
        if weights.unread is not None:
            self._unread += weights.unread
        self._rows += query_heads

    def _add(self, keys: Tensor, attended: Attended, query_heads: int) -> None:
        tokens, near = attended.tokens[-1], attended.sink + attended.recalled
        by_key = keys if len(tokens) > 1 else keys.sum(0, keepdim=True)
        if attended.sink:
            self._sink += by_key[:, : attended.sink].sum()
        if attended.recalled:
            at = tokens[:, attended.sink : near].clamp(0, self._own).reshape(-1)  # where there is no key the weight is 0
            self._recalled.index_add_(0, at, by_key[:, attended.sink : near].to(self._recalled.dtype).reshape(-1))
            peaks = keys[:, attended.sink : near] * (len(keys) / query_heads)
            self._peaks.scatter_reduce_(0, at, peaks.amax(0) if len(tokens) == 1 else peaks.reshape(-1), "amax")
        self._local += by_key[:, near:].sum()

    def result(self) -> SharedOut | None:
        """Averages over all that was added, every query head of every layer and token alike; None if nothing was."""
        if not self._rows:
            return None
        recalled = self._recalled.cpu().double().numpy() / self._rows
        own = float(recalled[self._own])
        local, peaks = float(self._local) / self._rows + own, self._peaks.cpu().numpy()
        unread = float(self._unread) / self._rows
        return SharedOut(float(self._sink) / self._rows, local, recalled[: self._own], unread, peaks[: self._own])
