"""What certifying finds, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agent_memory.errors import UnsupportedModel
from agent_memory.model import attach as attach_module
from agent_memory.model.attach import attach, inspect
from agent_memory.model.mask_rule import mask_fault, native_window
from tests.model.zoo import build, tiny

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hunyuan_v1_dense": ({"head_dim": 8}, r"layer model\.layers\.0\.self_attn: changes its queries or keys after rotation"),
    "qwen3_next": ({"layer_types": ["full_attention", "linear_attention"]}, "layer 1 of Qwen3NextForCausalLM is 'linear_attention'"),
    "deepseek_v3": ({}, r"layer model\.layers\.0\.self_attn: "),
    "doge": ({}, r"layer model\.layers\.0\.self_attn: makes its own attention mask"),
    "diffllama": ({}, r"layer model\.layers\.0\.self_attn: runs more than once"),
    "llama4_text": ({}, "is 'chunked_attention'"),
    "gpt2": ({}, r"GPT2Attention \(layer 0\) gets no position_embeddings"),
    "bloom": ({}, "no attention of BloomForCausalLM"),
    "falcon": ({}, "no attention of FalconForCausalLM"),
    "mpt": ({}, "no attention of MptForCausalLM"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_attached_are_refused_by_name(kind: str) -> None:
    changes, reason = REFUSED[kind]
    model = build(kind, **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        attach(model)
    report = inspect(model)
    assert not report.ok and report.reason is not None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_layers_are_described_as_they_are() -> None:
    layers = attach(tiny("gpt_oss")).layers
    assert [(s.index, s.kind, s.sliding_window, s.recalls) for s in layers] == [(0, "sliding", 24, False), (1, "full", None, True)]
    assert all((s.query_heads, s.kv_heads, s.head_dim, s.sinks, s.softcap) == (4, 2, 16, True, None) for s in layers)
    assert [s.name for s in layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all(s.softcap == 50.0 for s in attach(tiny("gemma2")).layers)
    assert [s.rope for s in attach(tiny("gemma3")).layers] == [0, 1]
    assert [s.rope for s in attach(tiny("llama")).layers] == [0, 0]


def test_sliding_layers_only_recall_or_are_refused() -> None:
    model = tiny("mistral-sliding")
    attachment = attach(model)
    assert attachment.window == 24 and all(layer.recalls and layer.kind == "sliding" and layer.notes for layer in attachment.layers)
    with pytest.raises(UnsupportedModel, match="sliding='recall'"):
        attach(model, sliding="native")
    assert attach(tiny("qwen2-mixed"), sliding="native").window == 512


def test_inspect_lists_every_layer_and_leaves_the_model_alone() -> None:
    model = build("hunyuan_v1_dense", head_dim=8)
    report = inspect(model)
    assert [layer.name for layer in report.layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all("after rotation" in layer.verdict for layer in report.layers)
    good = inspect(tiny("llama"))
    assert good.ok and good.reason is None and all(layer.verdict == "ok" for layer in good.layers)


@pytest.mark.parametrize("norm", ["query_layernorm", "key_layernorm"])
def test_queries_and_keys_are_each_examined(norm: str) -> None:
    """A norm whose weights are all one commutes with rotation, so either can be made harmless."""
    model = build("hunyuan_v1_dense", head_dim=8)
    for layer in range(2):
        weight = model.get_parameter(f"model.layers.{layer}.self_attn.{norm}.weight")
        torch.nn.init.ones_(weight)
    assert "after rotation" in str(inspect(model).reason)
    for layer in range(2):
        for name in ("query_layernorm", "key_layernorm"):
            torch.nn.init.ones_(model.get_parameter(f"model.layers.{layer}.self_attn.{name}.weight"))
    assert inspect(model).ok


def test_one_bad_layer_among_good_ones_is_named() -> None:
    model = build("hunyuan_v1_dense", head_dim=8)
    for name in ("query_layernorm", "key_layernorm"):
        torch.nn.init.ones_(model.get_parameter(f"model.layers.0.self_attn.{name}.weight"))
    assert [layer.verdict == "ok" for layer in inspect(model).layers] == [True, False]
    with pytest.raises(UnsupportedModel, match=r"layer model\.layers\.1\.self_attn"):
        attach(model)


def test_a_training_model_and_one_without_window_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="eval"):
        attach(tiny("llama").train())
    model = tiny("llama")
    model.config.max_position_embeddings = 1
    with pytest.raises(UnsupportedModel, match="max_position_embeddings"):
        attach(model)


def test_a_decoder_layer_without_attention_is_refused() -> None:
    model = tiny("llama", num_hidden_layers=3)
    layer = model.get_submodule("model.layers.1")

    class Mixer(nn.Module):
        def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
            return hidden_states.cumsum(1), None

    layer.self_attn = Mixer()
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1 \(LlamaDecoderLayer\)"):
        attach(model)


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def test_mask_rules_are_read_to_the_token() -> None:
    assert native_window(causal) is None and mask_fault(causal, None) is None
    for window in (1, 2, 24, 4096):

        def sliding(batch: Tensor, head: Tensor, query: Tensor, key: Tensor, window: int = window) -> Tensor:
            return (key <= query) & (key > query - window)

        assert native_window(sliding) == window and mask_fault(sliding, window) is None
        assert mask_fault(sliding, None) and mask_fault(sliding, window + 1)


def test_other_mask_rules_are_faults() -> None:
    def chunked(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key // 64 == query // 64)

    def both_ways(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= 0

    def looked_up(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones(8, dtype=torch.bool)[query] & (key <= query)

    for rule in (chunked, both_ways, looked_up, None):
        assert mask_fault(rule, native_window(rule))


def test_public_names() -> None:
    assert set(attach_module.__all__) == {"AttachReport", "Attachment", "AttentionStep", "LayerSpec", "attach", "inspect"}
