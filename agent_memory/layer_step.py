"""A model's layers, handed to whatever attends for them.

Knows how the model describes a layer and how a step wants it; nothing of what a step does.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .attention.region import LayerRule
from .model.attach import LayerSpec


class Step(Protocol):
    """Attends for the new tokens of one forward."""

    def attend(self, rule: LayerRule, q: Tensor, k: Tensor, v: Tensor, sliding: int | None = None) -> Tensor:
        """See :meth:`.attention.step.MemoryStep.attend`."""
        ...


class LayerStep:
    """An ``AttentionStep`` of the model that leaves attention to a step of the memory."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def attend(
        self, layer: LayerSpec, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, sinks: Tensor | None, softcap: float | None
    ) -> Tensor:
        """See :class:`.model.interface.AttentionStep`."""
        sliding = None if layer.recalls or layer.kind == "full" else layer.sliding_window
        return self._step.attend(LayerRule(layer.index, scaling, sinks, softcap), q[0], k[0], v[0], sliding)[None]
