"""Tiny random models of many families, and the plain attention step they are compared with. No memory in sight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from agent_memory.model.attach import Attachment, LayerSpec

VOCABULARY = 97
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LAYERS = ["sliding_attention", "full_attention"]
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 6.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 320,
    "factor": 1.6,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3-rope": ("llama", {"rope_parameters": _LLAMA3}),
    "yarn": ("llama", {"rope_parameters": _YARN}),
    "dynamic": ("llama", {"rope_parameters": _DYNAMIC}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "mistral-sliding": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2-mixed": ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "layer_types": _LAYERS}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 24, "layer_types": _LAYERS, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 24, "layer_types": _LAYERS, "query_pre_attn_scalar": 16}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 320, "sliding_window": None}),
    "granite": ("granite", {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.7}),
    "olmo2": ("olmo2", {}),
    "gpt_oss": (
        "gpt_oss",
        {"head_dim": 16, "sliding_window": 24, "layer_types": _LAYERS, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "smollm3-nope": ("smollm3", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
    "cohere-interleaved": ("cohere", {}),
    "glm-partial": ("glm", {"head_dim": 16}),
    "stablelm-partial": ("stablelm", {}),
}


def tiny(family: str, **changes: Any) -> PreTrainedModel:
    """A model of ``FAMILIES[family]`` whose weights, norms and biases are random and large enough for attention to matter."""
    kind, extra = FAMILIES[family]
    return build(kind, **{**extra, **changes})


def build(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model of transformers' model type ``kind``."""
    config = CONFIG_MAPPING[kind](**{**_SMALL, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.25 * torch.randn(parameter.shape, generator=noise))
    model.generation_config.eos_token_id = None
    model.set_attn_implementation("eager")  # sdpa of transformers before 5.23 leaves out gemma2's softcap
    return model


class ExactStep:
    """Keeps every key and value and attends to all of them at true positions: what stock attention computes.

    ``shift`` moves the queries' positions, which a correct comparison must notice.
    """

    def __init__(self, attachment: Attachment, *, shift: int = 0) -> None:
        self.attachment, self.shift = attachment, shift
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(
        self, layer: LayerSpec, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, sinks: Tensor | None, softcap: float | None
    ) -> Tensor:
        keys = torch.cat([self.keys.get(layer.index, k[:, :, :0]), k], dim=2)
        values = torch.cat([self.values.get(layer.index, v[:, :, :0]), v], dim=2)
        self.keys[layer.index], self.values[layer.index] = keys, values
        n, t, group = keys.shape[2], q.shape[2], layer.query_heads // layer.kv_heads
        cos, sin = self.attachment.cos_sin(layer.index, torch.arange(n + self.shift))
        rotate = self.attachment.rotate
        keys = rotate(layer.index, keys, cos[:, :n], sin[:, :n]).repeat_interleave(group, dim=1)
        q = rotate(layer.index, q, cos[:, n - t + self.shift :], sin[:, n - t + self.shift :])
        logits = q @ keys.transpose(2, 3) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        distance = torch.arange(n - t, n)[:, None] - torch.arange(n)
        logits = logits.masked_fill((distance < 0) | (distance >= (layer.sliding_window or n)), float("-inf"))
        if sinks is not None:
            logits = torch.cat([logits, sinks[None, :, None, None].expand(1, -1, t, 1)], dim=-1)
        weights = logits.softmax(-1)[..., :n]
        return (weights @ values.repeat_interleave(group, dim=1)).transpose(1, 2)
