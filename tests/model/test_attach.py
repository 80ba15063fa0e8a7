"""Attached models compute what stock transformers computes, for every family and every partition into forwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_memory.model.attach import Attachment, LayerSpec, attach
from agent_memory.model.interface import attention_configs
from agent_memory.model.kv_cache import PassingCache
from agent_memory.model.rope import half_rotation, rotations
from tests.model.zoo import FAMILIES, VOCABULARY, ExactStep, tiny

TOLERANCE = 1e-4
every_family = pytest.mark.parametrize("family", FAMILIES)


def some_ids(n: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stock(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids).logits
    return logits


def run(attachment: Attachment, ids: Tensor, cuts: tuple[int, ...] = (), shift: int = 0) -> Tensor:
    """Logits of ``ids`` fed in pieces cut at ``cuts``."""
    step, edges, made = ExactStep(attachment, shift=shift), (0, *cuts, ids.shape[1]), []
    for start, stop in zip(edges, edges[1:], strict=False):
        logits = attachment.forward(ids[:, start:stop], start, step, logits="all")
        assert logits is not None
        made.append(logits)
    return torch.cat(made, dim=1)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@every_family
def test_logits_equal_stock_in_one_forward_and_in_many(family: str) -> None:
    model, ids = tiny(family), some_ids(70)
    expected = stock(model, ids)
    attachment = attach(model)
    assert apart(run(attachment, ids), expected) < TOLERANCE
    assert apart(run(attachment, ids, (16, 17, 40, 69)), expected) < TOLERANCE


@every_family
def test_256_greedy_tokens_equal_stock(family: str) -> None:
    model, prompt = tiny(family), some_ids(20)
    expected = model.generate(prompt, max_new_tokens=256, do_sample=False)[0, 20:].tolist()  # type: ignore[operator]
    attachment = attach(model)
    step, ids, got = ExactStep(attachment), prompt, list[int]()
    for _ in range(256):
        logits = attachment.forward(ids, 20 + len(got) - 1 if got else 0, step)
        assert logits is not None and logits.shape == (1, 1, VOCABULARY)
        ids = logits.argmax(-1)
        got.append(int(ids))
    assert got == expected
    assert len(set(got)) > 2, "a reply of one token over and over would prove little"


@every_family
def test_the_comparison_notices_a_position_wrong_by_one(family: str) -> None:
    model, ids = tiny(family), some_ids(70)
    assert apart(run(attach(model), ids, shift=1), stock(model, ids)) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["dynamic", "phi3-longrope"])
def test_factors_beyond_the_original_length_are_those_of_stock(family: str) -> None:
    model, ids = tiny(family, max_position_embeddings=512 if family == "phi3-longrope" else 64), some_ids(330)
    expected = stock(model, ids)
    assert apart(run(attach(model), ids), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["dynamic", "phi3-longrope"])
def test_tables_do_not_depend_on_what_was_asked_before(family: str) -> None:
    attachment = attach(tiny(family, max_position_embeddings=512 if family == "phi3-longrope" else 64))
    short, long = torch.arange(64), torch.arange(5000)
    first = attachment.cos_sin(0, short)[0]
    grown = attachment.cos_sin(0, long)[0]
    attachment.forward(some_ids(4), 1_000_000, Silent())
    assert torch.equal(attachment.cos_sin(0, short)[0], first)
    assert torch.equal(attachment.cos_sin(0, long)[0], grown)
    assert not torch.equal(grown[:, :64], first), "the factors should have changed, or this test proves nothing"


@pytest.mark.parametrize("family", ["dynamic", "phi3-longrope"])
def test_the_rotary_module_is_left_as_it_was(family: str) -> None:
    model = tiny(family, max_position_embeddings=512 if family == "phi3-longrope" else 64)
    attachment, rotary = attach(model), model.get_submodule("model.rotary_emb")
    before = {name: buffer.clone() for name, buffer in rotary.named_buffers(remove_duplicate=False)}
    attachment.cos_sin(0, torch.arange(5000))
    attachment.table(0, 3000)
    attachment.forward(some_ids(4), 1_000_000, Silent())
    assert all(torch.equal(getattr(rotary, name), buffer) for name, buffer in before.items())


class Silent:
    """Attends to nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def attend(
        self, layer: LayerSpec, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, sinks: Tensor | None, softcap: float | None
    ) -> Tensor:
        self.calls.append((layer.name, tuple(k.shape)))
        return torch.zeros_like(q).transpose(1, 2)


@every_family
def test_without_a_step_the_model_is_stock(family: str) -> None:
    model, ids = tiny(family), some_ids(40)
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    before = [config._attn_implementation for config in attention_configs(model)]
    attachment = attach(model)
    run(attachment, ids)
    assert [config._attn_implementation for config in attention_configs(model)] == before
    with torch.no_grad():
        assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    attachment.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_failing_step_leaves_the_model_stock() -> None:
    model, ids = tiny("gemma3"), some_ids(30)
    expected = stock(model, ids)

    class Failing(Silent):
        def attend(self, *args: object, **kwargs: object) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attach(model).forward(ids, 0, Failing())
    assert torch.equal(stock(model, ids), expected)


def test_two_models_of_one_class_do_not_meet() -> None:
    one, other = tiny("llama"), copy.deepcopy(tiny("llama"))
    first, second = attach(one), attach(other)
    ids, step = some_ids(8), Silent()
    first.forward(ids, 0, step)
    assert len(step.calls) == 2
    expected = stock(other, ids)
    assert apart(run(second, ids), expected) < TOLERANCE
    first.detach()
    first.detach()
    assert apart(run(second, ids), expected) < TOLERANCE


def test_forward_returns_the_logits_asked_for() -> None:
    attachment, ids = attach(tiny("granite")), some_ids(12)
    everything = attachment.forward(ids, 0, ExactStep(attachment), logits="all")
    last = attachment.forward(ids, 0, ExactStep(attachment), logits="last")
    assert everything is not None and last is not None
    assert everything.shape == (1, 12, VOCABULARY) and torch.allclose(last, everything[:, -1:], atol=1e-6)
    assert attachment.forward(ids, 0, ExactStep(attachment), logits="none") is None
    last += 1


def test_keys_reach_the_step_before_rotation() -> None:
    attachment = attach(tiny("llama"))
    same = torch.full((1, 6), 9)

    class Keys(Silent):
        def attend(self, layer: LayerSpec, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
            if layer.index == 0:
                assert torch.equal(k, k[:, :, :1].expand_as(k)) and torch.equal(q, q[:, :, :1].expand_as(q))
            return torch.zeros_like(q).transpose(1, 2)

    attachment.forward(same, 123_456_789, Keys())


@every_family
def test_table_is_cos_sin_of_a_range(family: str) -> None:
    attachment = attach(tiny(family))
    for layer in range(len(attachment.layers)):
        for n in (1, 7, 256, 257, 40):
            cos, sin = attachment.table(layer, n)
            expected = attachment.cos_sin(layer, torch.arange(n))
            assert torch.equal(cos, expected[0]) and torch.equal(sin, expected[1])


def test_rotating_is_relative_and_batched() -> None:
    attachment = attach(tiny("glm-partial"))
    x = torch.randn(3, 4, 5, 16)
    cos, sin = attachment.cos_sin(0, torch.arange(15))
    each = torch.cat([attachment.rotate(0, x[i : i + 1], cos[:, 5 * i : 5 * i + 5], sin[:, 5 * i : 5 * i + 5]) for i in range(3)])
    assert torch.equal(attachment.rotate(0, x, cos.view(3, 5, -1), sin.view(3, 5, -1)), each)
    assert not torch.equal(each, x)


@pytest.mark.parametrize(
    ("family", "usual"), [("llama", True), ("phi3", True), ("stablelm-partial", True), ("cohere-interleaved", False), ("gpt_oss", False)]
)
def test_the_fast_rotation_is_taken_where_it_is_the_models_own(family: str, usual: bool) -> None:
    attachment = attach(tiny(family))
    parts = attachment._parts
    assert [part.rotate is half_rotation for part in parts] == [usual] * len(parts)
    if usual:
        x, own = torch.randn(2, 3, 70, parts[0].spec.head_dim), rotations(parts[0].module)
        pair = attachment.cos_sin(0, torch.arange(70))
        made = [rotate(x, *pair) for rotate in own[pair[0].shape[-1] < x.shape[-1] :][:1]]
        torch.testing.assert_close(half_rotation(x, *pair), made[0], atol=1e-6, rtol=0)


def test_nope_layers_do_not_rotate() -> None:
    attachment = attach(tiny("smollm3-nope"))
    x = torch.randn(1, 4, 5, 8)
    cos, sin = attachment.cos_sin(1, torch.arange(5))
    assert cos.shape == sin.shape == (1, 5, 0)
    assert attachment.rotate(1, x, cos, sin) is x
    assert [layer.rotates for layer in attachment.layers] == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_attach_and_agree_with_their_fp32_selves(dtype: torch.dtype) -> None:
    model, ids = tiny("qwen3"), some_ids(40)
    expected = stock(model, ids)
    attachment = attach(model.to(dtype=dtype))  # type: ignore[call-arg]
    assert attachment.dtype == dtype and attachment.cos_sin(0, torch.arange(4))[0].dtype == dtype
    ours, theirs = apart(run(attachment, ids).float(), expected), apart(stock(model, ids).float(), expected)
    assert ours < 2 * theirs + 1e-3


def test_the_cache_keeps_nothing_and_knows_its_place() -> None:
    cache, keys, values = PassingCache(70), torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    back = cache.update(keys, values, 0)
    assert back[0] is keys and back[1] is values
    assert cache and cache.get_seq_length() == cache.get_query_offset() == 70
    assert cache.get_mask_sizes(3) == (73, 0) and cache.get_max_length() == -1
