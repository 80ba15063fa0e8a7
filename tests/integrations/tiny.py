"""A tiny random model with the pocket model's tokenizer, as a folder: it answers nonsense, quickly and always the same."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agent_memory import pocket

WINDOW = 256


def save_tiny_model(folder: Path) -> str:
    """Write model and tokenizer to ``folder`` and return it as text."""
    tokenizer = AutoTokenizer.from_pretrained(str(pocket.path()))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=WINDOW,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return str(folder)
