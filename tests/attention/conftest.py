"""Memory attention driven directly, on a tiny random model: no Store, no text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_memory.attention.methods import Method
from agent_memory.attention.recent_queries import RecentQueries
from agent_memory.attention.rotation import rotate_keys
from agent_memory.attention.step import MemoryStep
from agent_memory.attention.trace import Trace
from agent_memory.layer_step import LayerStep
from agent_memory.memory.block import NoDisk
from agent_memory.memory.cache import TieredCache
from agent_memory.memory.layer_kv import KVPlan
from agent_memory.memory.session_kv import SessionKV
from agent_memory.model.attach import Attachment, attach
from agent_memory.types import Budget, KVLayout
from agent_memory_kernels import operations

WINDOW = 512


class Driver:
    """Feeds token ids through a model over memory."""

    def __init__(self, attachment: Attachment, method: Method) -> None:
        self.attachment, self.method = attachment, method
        layers = attachment.layers
        layout = KVLayout(tuple(s.kv_heads for s in layers), tuple(s.head_dim for s in layers), "float32")
        cache = TieredCache(layout, Budget(device="64MiB"), attachment.device, min_blocks=64, unsaved_blocks=64)
        sizes = method.sizes
        keep = None if sizes is None else sizes.attended + 1024
        sink, recalling = 32 if sizes is None else sizes.sink, tuple(method.recalls for _ in layers)
        plan = KVPlan(
            sink,
            keep,
            recalling,
            method.selector.keeps,
            None if keep is None else keep - 256,
            tuple(s.query_heads for s in layers),
            partial(rotate_keys, attachment),
        )
        self.recent = RecentQueries()
        self.kv = SessionKV(layout, plan, cache, NoDisk())
        self.steps: list[MemoryStep] = []

    def feed(self, ids: torch.Tensor, trace: Trace | None = None) -> torch.Tensor:
        start = self.kv.length
        step = MemoryStep(self.kv, self.method, self.attachment, operations(), (start, start + len(ids)), self.recent, trace)
        out = self.attachment.forward(ids[None].to(self.attachment.device), start, LayerStep(step), logits="all")
        assert out is not None
        return out[0]


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,
    )
    made: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return made


@pytest.fixture(scope="session")
def attachment(model: LlamaForCausalLM) -> Attachment:
    return attach(model)


@pytest.fixture
def drive(attachment: Attachment) -> Callable[[Method], Driver]:
    return lambda method: Driver(attachment, method)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (1700,), generator=torch.Generator().manual_seed(1))
