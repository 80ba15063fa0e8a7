"""Up to how many tokens attending to everything costs less than choosing what to attend to, measured where the model runs.

Knows how to time a layer; nothing of Sessions. Beyond the trained window nothing is ever attended whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .attention.methods import Method
from .errors import ConfigError
from .made_up import LayerShape, MadeUpLayer

ROUNDS = 5
STEP = 1024
"""Borders are multiples of this: how exactly they are measured."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """What was measured.

    Attributes:
        border: tokens up to which everything is attended.
        recall: seconds of a step that chooses, in one layer.
        dense: seconds of one that attends to as many tokens as recall does at most.
        per_token: seconds each token more takes.
    """

    border: int
    recall: float
    dense: float
    per_token: float

    def __str__(self) -> str:
        dense = f"everything {1e3 * self.dense:.1f} ms and {1e6 * self.per_token:.2f} µs a token more"
        took = f"recall {1e3 * self.recall:.1f} ms a layer, {dense}"
        return f"attends to everything up to {self.border:,} tokens, and recalls beyond (measured: {took})"


def border_of(
    shape: Callable[[], LayerShape], method: Method, window: int, border: int | Literal["auto"] | None
) -> tuple[BreakEven | None, int | None]:
    """What was measured, and up to how many tokens new Sessions attend to everything; None is what the method attends to anyway.

    Args:
        shape: of a layer that recalls.
        method: the method.
        window: trained window in tokens.
        border: as ``Runtime`` takes it.

    Raises:
        ConfigError: the border is out of bounds.
    """
    least = method.attended
    if border is None or least is None or not method.recalls or method.border is not None:
        return None, None
    if border != "auto":
        if not least <= border <= window:
            raise ConfigError(f"border={border} cannot be used: it must be between {least}, what is always attended, and {window}")
        return None, border
    measured = break_even(shape(), method, window)
    return measured, None if measured is None or measured.border == least else measured.border


def break_even(shape: LayerShape, method: Method, window: int) -> BreakEven | None:
    """Time one layer, with the method and without; None where the method attends to the whole window anyway, or never recalls.

    Args:
        shape: of a layer that recalls.
        method: one with an attended set.
        window: trained window in tokens, which the border never passes.
    """
    least = method.attended
    if least is None or not method.recalls or window < least + STEP:
        return None
    near, far = least - 64, min(2 * least, window) - 64
    recall = _seconds(MadeUpLayer(shape, replace(method, border=None), 2 * least, varied=False))
    dense = [_seconds(MadeUpLayer(shape, replace(method, border=far + 64), tokens, varied=False)) for tokens in (near, far)]
    per_token = max(dense[1] - dense[0], 0.0) / (far - near)
    whole = window if per_token <= 0 else near + int((recall - dense[0]) / per_token)
    border = min(max(whole // STEP * STEP, least), window)
    return BreakEven(border, recall, dense[0], per_token)


def _seconds(layer: MadeUpLayer) -> float:
    """The fastest step of some, the first not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        _finish(layer.shape.device)
        started = time.perf_counter()
        layer.decode()
        _finish(layer.shape.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _finish(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
