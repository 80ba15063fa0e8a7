"""What a layer looks like from outside, and the one function transformers calls instead of its own attention.

Knows transformers' two registries; nothing of where keys are kept or how they are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from agent_memory.errors import UnsupportedModel

ATTENTION = "agent_memory"
"""Name of our attention in transformers' registry. It has no mask function, so transformers makes no mask tensor."""

PROBE = "agent_memory_probe"
"""The same attention with a mask function that only hands over the rule of the mask; used while certifying."""

ROUTE = "agent_memory_route"
"""Keyword under which a hook hands a ``Route`` through an attention module to ``route_attention``."""


@dataclass(frozen=True)
class LayerSpec:
    """One attention layer, as certified.

    Attributes:
        index: dense number among the attention layers, in the order the model runs them.
        name: module path.
        kind: ``"full"``, or ``"sliding"`` with a native window.
        query_heads, kv_heads, head_dim: shape of its queries and keys (values have the same ``head_dim``).
        sliding_window: native window in tokens: key j is seen by query i if ``0 <= i - j < sliding_window``.
        rotates: False for layers without positions (NoPE).
        sinks: True if it has one learned extra logit per query head.
        softcap: logits become ``softcap * tanh(logits / softcap)`` before the mask.
        rope: layers with the same number share their rotary tables; -1 if it does not rotate.
        recalls: True if memory takes part here (full layers; sliding ones only where a model has no full layer).
        verdict: ``"ok"``, or why it cannot be attached.
        notes: what else people should know.
    """

    index: int
    name: str
    kind: Literal["full", "sliding"]
    query_heads: int
    kv_heads: int
    head_dim: int
    sliding_window: int | None
    rotates: bool
    sinks: bool
    softcap: float | None
    rope: int
    recalls: bool
    verdict: str
    notes: str


class AttentionStep(Protocol):
    """What takes the place of a model's attention for one forward."""

    def attend(
        self,
        layer: LayerSpec,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float,
        sinks: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend with the new tokens' unrotated queries ``[1, H, T, d]``, keys and values ``[1, Hk, T, d]``.

        ``sinks`` is ``[H]`` or None. Returns ``[1, T, H, d]``; query head h belongs to KV head ``h // (H // Hk)``.
        """
        ...


class Route(Protocol):
    """Where the attention of one module goes during one call."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """Return ``[1, T, H, d]``."""
        ...


def route_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention: ``[1, T, H, d]`` and no weights.

    Raises:
        UnsupportedModel: the module was called without the route a hook gives it.
    """
    route: Route | None = options.pop(ROUTE, None)
    if route is None:
        raise UnsupportedModel(
            f"{type(module).__name__} (layer {getattr(module, 'layer_idx', '?')}) gets no position_embeddings, or does not pass "
            f"its keywords on to its attention function; keys before rotation cannot be reached"
        )
    return route.attend(module, query, key, value, attention_mask, **options), None


def hand_over_mask_rule(*, mask_function: Callable[..., Tensor], device: torch.device | str = "cpu", **_: Any) -> Tensor:
    """A mask in name only: an empty tensor that carries the mask's rule, for ``certify`` to ask."""
    mask = torch.empty((1, 1, 1, 1), device=device)
    mask.agent_memory_rule = mask_function  # type: ignore[attr-defined]
    return mask


def register() -> None:
    """Make both attentions known to transformers; doing it again changes nothing."""
    AttentionInterface.register(ATTENTION, route_attention)
    AttentionInterface.register(PROBE, route_attention)
    AttentionMaskInterface.register(PROBE, hand_over_mask_rule)


def attention_configs(model: nn.Module) -> list[PretrainedConfig]:
    """The distinct configs the model's modules read their attention implementation from."""
    found: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found.setdefault(id(config), config)
    return list(found.values())


@contextmanager
def implementation(configs: Iterable[PretrainedConfig], name: str) -> Iterator[None]:
    """Let the configs' models use attention ``name`` inside the block, and exactly what they used before after it."""
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation = {"": name}
        yield
    finally:
        for config, original in before:
            config._attn_implementation = {"": original}
