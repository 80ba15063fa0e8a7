"""What a model's attention mask allows, read off its rule instead of a mask tensor.

Knows transformers' mask functions ``rule(batch, head, query, key) -> bool``; nothing of layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_FAR = 1_000_003
"""Query index at which rules are asked: far from any window, chunk or power of two."""


def native_window(rule: MaskRule | None) -> int | None:
    """The smallest distance query - key that ``rule`` hides; None if it hides nothing behind a query, or cannot be asked."""
    if rule is None or mask_fault(rule, None) is None:
        return None
    try:
        return _first_hidden(rule)
    except (IndexError, RuntimeError):
        return None


def mask_fault(rule: MaskRule | None, window: int | None) -> str | None:
    """Why ``rule`` is not causal attention with a sliding ``window`` (None: without); None if it is."""
    if rule is None:
        return "makes its own attention mask"
    far = _FAR if window is None else window
    hidden = [-1, -far] if window is None else [-1, -far, far, far + 1]
    queries = [_FAR, _FAR + 5, _FAR + 1000]
    try:
        seen = all(_sees(rule, distance, query) for query in queries for distance in {0, min(1, far - 1), far // 2, far - 1})
        fits = seen and not any(_sees(rule, distance, query) for query in queries for distance in hidden)
    except (IndexError, RuntimeError) as error:
        return f"its mask depends on more than distance ({error})"
    return None if fits else "its mask is neither causal nor a sliding window"


def _first_hidden(rule: MaskRule) -> int:
    low, high = 0, _FAR
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _sees(rule, middle, _FAR) else (low, middle)
    return high


def _sees(rule: MaskRule, distance: int, query: int) -> bool:
    zero = torch.zeros((), dtype=torch.long)
    return bool(rule(zero, zero, torch.tensor(query), torch.tensor(query - distance)))
