"""Attaching memory to a transformers model: its attention goes to a step of ours for the length of one forward.

Knows hooks, positions and rotation; nothing of where keys are kept or which of them take part. Outside ``Attachment.forward`` the
model is exactly what it was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_memory.errors import UnsupportedModel
from agent_memory.model.certify import Layer, certify, embeddings, identity, window_of
from agent_memory.model.interface import ATTENTION, ROUTE, AttentionStep, LayerSpec, attention_configs, implementation
from agent_memory.model.kv_cache import PassingCache
from agent_memory.model.rope import Pair, Rope, half_rotation

__all__ = ["AttachReport", "Attachment", "AttentionStep", "LayerSpec", "attach", "inspect"]


@dataclass(frozen=True)
class _StepRoute:
    """Sends one layer's attention to the step of the current forward."""

    step: AttentionStep
    spec: LayerSpec

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        scaling = options.get("scaling")
        return self.step.attend(
            self.spec,
            q,
            k,
            v,
            scaling=q.shape[-1] ** -0.5 if scaling is None else scaling,
            sinks=options.get("s_aux"),
            softcap=self.spec.softcap,
        )


class Attachment:
    """A certified model whose attention can be sent to an ``AttentionStep``. Made by ``attach``.

    Attributes:
        model: the model.
        layers: its attention layers, in the order they run.
        window: positions it was made for, in tokens (for a model of sliding layers only: their window).
        device, dtype: of its embeddings and parameters.
    """

    def __init__(self, model: PreTrainedModel, layers: list[Layer]) -> None:
        self.model = model
        self.layers = tuple(layer.spec for layer in layers)
        sliding = [spec.sliding_window for spec in self.layers if spec.recalls and spec.sliding_window is not None]
        self.window = min([window_of(model), *sliding])
        self.device: torch.device = embeddings(model).device
        self.dtype: torch.dtype = model.dtype
        self._parts = layers
        self._configs = attention_configs(model)
        self._ropes: list[Rope] = list({id(layer.rope): layer.rope for layer in layers if layer.rope is not None}.values())
        self._lock = threading.RLock()
        self._step: AttentionStep | None = None
        self._bare: tuple[Pair, Pair] | None = None
        self._hooks = [layer.module.register_forward_pre_hook(self._hook(layer.spec), with_kwargs=True) for layer in layers]

    def cos_sin(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's true cosines and sines ``[1, n, r]`` at the ``[n]`` int64 positions, in the model's dtype.

        One rotary call over all of them: longrope and dynamic models pick their factors by the largest. A layer without
        rotation gives r = 0.
        """
        rope = self._parts[layer].rope
        return self._nothing(positions.shape[0], positions.device) if rope is None else rope.pair(positions)

    def table(self, layer: int, n: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """``cos_sin`` of positions 0 to n-1, kept between calls and shared by the layers of one rope. Do not write to it."""
        rope = self._parts[layer].rope
        where = self.device if device is None else device
        return self._nothing(n, where) if rope is None else rope.table(n, where)

    def rotate(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``[B, H, n, d]`` queries or keys by a pair ``[1 or B, n, r]`` with the model's own function, or one that was found to
        differ from it in rounding only; a layer without rotation gives ``x`` back."""
        rotate = self._parts[layer].rotate
        return x if rotate is None else rotate(x, cos, sin)

    def rotation(self, layer: int, n: int) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``[n, r]`` of positions 0 to n-1, where rotating by them is rotating halves (:func:`.rope.half_rotation`) and
        they are the same whatever other positions are asked for; r = 0 where nothing is rotated; None where it is otherwise."""
        part = self._parts[layer]
        if part.rope is not None and not (part.rope.steady and part.rotate is half_rotation):
            return None
        cos, sin = self.table(layer, n)
        return cos[0], sin[0]

    def halves(self, layer: int, n: int) -> Tensor | None:
        """See :class:`.attention.rotation.Rotary`: ``[n, r]``, kept between calls. Do not write to it."""
        part = self._parts[layer]
        if part.rope is None or not part.rope.steady or part.rotate is not half_rotation:
            return None
        return part.rope.halves(n, self.device)

    def forward(
        self,
        ids: Tensor,
        start: int,
        step: AttentionStep,
        *,
        logits: Literal["last", "all", "none"] = "last",
        positions: Tensor | None = None,
    ) -> Tensor | None:
        """Run ``[1, T]`` int64 ids as tokens ``start`` to ``start + T - 1``, with all attention done by ``step``.

        Returns logits ``[1, 1, vocabulary]`` (``last``), ``[1, T, vocabulary]`` (``all``) or None, in the model's dtype. No
        gradients. One forward at a time: another thread waits. An exception of the step leaves the model as it was.
        ``positions`` ``[1, T]`` on the device, if given, say the same as ``start``.
        """
        if positions is None:
            positions = torch.arange(start, start + ids.shape[1], device=self.device)[None]
        inputs = {"input_ids": ids.to(self.device), "position_ids": positions, "past_key_values": PassingCache(start), "use_cache": True}
        with self._lock, torch.no_grad(), implementation(self._configs, ATTENTION):
            states = [rope.save() for rope in self._ropes]
            self._step = step
            try:
                if logits == "none":
                    self.model.base_model(**inputs)
                    return None
                made: Tensor = self.model(**inputs, logits_to_keep=1 if logits == "last" else 0).logits
                return made
            finally:
                self._step = self._bare = None
                for rope, state in zip(self._ropes, states, strict=True):
                    rope.restore(state)

    def detach(self) -> None:
        """Take the hooks away. Doing it twice is fine."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, spec: LayerSpec) -> Any:
        def unrotated(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            if self._step is None:
                return None
            pair = kwargs["position_embeddings"]
            return args, {**kwargs, "position_embeddings": self._bare_of(pair), ROUTE: _StepRoute(self._step, spec)}

        return unrotated

    def _bare_of(self, pair: Pair | None) -> Pair | None:
        """The pair that rotates nothing, for a pair that most layers of a forward share."""
        if pair is None:
            return None
        if self._bare is None or self._bare[0] is not pair:
            self._bare = (pair, identity(pair))
        return self._bare[1]

    def _nothing(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        empty = torch.empty((1, n, 0), dtype=self.dtype, device=device)
        return empty, empty


def attach(model: PreTrainedModel, *, sliding: Literal["recall", "native"] = "recall") -> Attachment:
    """Certify ``model`` and put the hooks in place.

    Args:
        model: a causal language model in eval mode.
        sliding: what a model of sliding-window layers only does: recall in them, or be refused.

    Raises:
        UnsupportedModel: naming the layer and the reason.
    """
    layers = certify(model, sliding=sliding)
    for layer in layers:
        if layer.spec.verdict != "ok":
            raise UnsupportedModel(f"{type(model).__name__} cannot be attached: layer {layer.spec.name}: {layer.spec.verdict}")
    return Attachment(model, layers)


@dataclass(frozen=True)
class AttachReport:
    """What ``inspect`` found: one LayerSpec a layer, and the reason if the model cannot be attached."""

    model: str
    layers: tuple[LayerSpec, ...]
    reason: str | None

    @property
    def ok(self) -> bool:
        """True if ``attach`` would succeed."""
        return self.reason is None


def inspect(model: PreTrainedModel, *, sliding: Literal["recall", "native"] = "recall") -> AttachReport:
    """Examine ``model`` as ``attach`` does, leave it untouched, and report instead of raising."""
    name = type(model).__name__
    try:
        specs = tuple(layer.spec for layer in certify(model, sliding=sliding))
    except UnsupportedModel as error:
        return AttachReport(name, (), str(error))
    bad = next((spec for spec in specs if spec.verdict != "ok"), None)
    return AttachReport(name, specs, None if bad is None else f"layer {bad.name}: {bad.verdict}")
