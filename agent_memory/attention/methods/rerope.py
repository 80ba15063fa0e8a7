"""``rerope`` and ``leaky_rerope``: true distances up to a window, then one distance, or slowly growing ones (kexue.fm/archives/9708)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ..positions import BandedPositions
from ..selectors import WindowSelector
from .base import Given, Method, bounded


@dataclass(frozen=True)
class Clipped:
    """Every distance from ``window`` on is ``window``."""

    window: int

    def query(self, i: Tensor) -> Tensor:
        """Position of far queries."""
        return torch.full_like(i, self.window)

    def key(self, j: Tensor) -> Tensor:
        """Position of far keys."""
        return torch.zeros_like(j)


@dataclass(frozen=True)
class Leaking:
    """Beyond ``window`` distances grow by one in ``factor``; real-valued positions."""

    window: int
    factor: float

    def query(self, i: Tensor) -> Tensor:
        """Position of far queries."""
        return (i.double() + self.window * (self.factor - 1)) / self.factor

    def key(self, j: Tensor) -> Tensor:
        """Position of far keys."""
        return j.double() / self.factor


@dataclass(frozen=True)
class ReRoPE:
    """Rectified rotary positions.

    Attributes:
        window: w, by default half the trained window (the author advises a quarter to a half).
        log_n: scale the logits of query i by ``max(1, ln(i + 1) / ln(trained window))``, as the author's code always does.
    """

    window: int | None = None
    log_n: bool = True

    def make(self, given: Given) -> Method:
        """Everything attended at ``min(i - j, w)``."""
        far = Clipped(_window("rerope", self.window, given))
        return Method("rerope", None, WindowSelector(), BandedPositions(far.window, far, given.window if self.log_n else None))


@dataclass(frozen=True)
class LeakyReRoPE:
    """ReRoPE whose far distances grow by one in ``factor`` tokens (16 in the author's code).

    Attributes:
        window, log_n: as in :class:`ReRoPE`.
        factor: k.
    """

    window: int | None = None
    factor: float = 16.0
    log_n: bool = True

    def make(self, given: Given) -> Method:
        """Everything attended at ``w + (i - j - w) / k`` beyond w."""
        far = Leaking(_window("leaky_rerope", self.window, given), self.factor)
        if not self.factor >= 1:
            raise ConfigError(f"leaky_rerope: factor={self.factor} cannot be used: it must be at least 1, which is plain rotary attention")
        return Method("leaky_rerope", None, WindowSelector(), BandedPositions(far.window, far, given.window if self.log_n else None))


def _window(name: str, window: int | None, given: Given) -> int:
    w = given.window // 2 if window is None else window
    return bounded(f"{name}: window", w, 1, given.window - 1, f"below the trained window of {given.window} tokens")
