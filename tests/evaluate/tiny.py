"""A tiny random model whose tokenizer has no chat template, and text for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agent_memory import pocket
from agent_memory.pocket import data
from agent_memory.runtime import Runtime

WINDOW = 256
MakeRuntime = Callable[..., Runtime]
Words = Callable[..., tuple[int, str, str]]
"""Runs ``agent-memory WORD...``; exit code, standard output, standard error."""


@cache
def tiny() -> tuple[Any, Any]:
    """Model and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(pocket.path()))
    tokenizer.chat_template = None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def story(seed: int, lines: int = 60) -> str:
    """Lines of about ten tokens."""
    return data.noise(random.Random(seed), lines)


def stock_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What transformers alone makes of ``ids [n]``: fp32 ``[n - 1]``."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
