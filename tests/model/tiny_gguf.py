"""GGUF files of tiny random models, written with the package ``gguf`` as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tests.model.conftest import byte_tokenizer
from tests.model.zoo import build

TEMPLATE = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 24}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 24}),
    "phi3": ("phi3", {"sliding_window": None}),
    "mamba": ("mamba", {"state_size": 4, "layer_norm_epsilon": 1e-5}),
    "qwen3moe": ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
}
"""By GGUF's name: transformers' model type, and what a file says of it or transformers takes for granted."""

SPECIAL = ["<pad>", "<s>", "</s>"]
_NORMAL, _CONTROL, _BYTE = 1, 3, 6


def byte_level() -> tuple[str, list[str], list[str], list[int]]:
    """(kind, tokens, merges, token types) of a byte-level vocabulary, as GPT-2's."""
    tokenizer = byte_tokenizer()
    merges = [" ".join(pair) for pair in (("l", "l"), ("h", "e"), ("he", "ll"), ("hell", "o"), ("S", "T"))]
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    return "gpt2", tokens, merges, [_CONTROL if token in SPECIAL else _NORMAL for token in tokens]


def sentencepiece() -> tuple[str, list[str], list[str], list[int]]:
    """The same of a SentencePiece vocabulary with byte fallback, as Llama 2's: the merges are left to its scores."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.", "he", "ll", "hell", "hello", "\u2581hello"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return "llama", tokens, [], [_CONTROL] * 3 + [_BYTE] * 256 + [_NORMAL] * len(letters)


VOCABULARIES = {"byte-level": byte_level, "sentencepiece": sentencepiece}


def tiny_model(architecture: str, vocabulary: str = "byte-level") -> PreTrainedModel:
    """A random model of ``ARCHITECTURES`` with a token for each of the vocabulary, whose weights a GGUF file can hold in any type."""
    size = len(VOCABULARIES[vocabulary]()[1])
    kind, extra = ARCHITECTURES[architecture]
    return build(kind, **{"vocab_size": size, "intermediate_size": 64, **extra})


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str = "llama",
    *,
    vocabulary: str = "byte-level",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    template: str | None = TEMPLATE,
    keep: Callable[[str], bool] = lambda name: True,
    tensors_a_part: int = 0,
    alignment: int = 32,
) -> Path:
    """Write ``model`` and return ``path``.

    Args:
        kind: of matrices; vectors are always in fp32.
        keep: which tensors, by their names in the file.
        tensors_a_part: split the model after so many; the parts are beside ``path``.
        alignment: of tensors in the file, in bytes.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_a_part)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    _describe(writer, model, architecture)
    _spell(writer, vocabulary, template)
    for name, values in _tensors(model, architecture).items():
        if keep(name):
            packed = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, quantize(values, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: str) -> None:
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "mamba":
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_freq_base(10000.0)
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _spell(writer: gguf.GGUFWriter, vocabulary: str, template: str | None) -> None:
    kind, tokens, merges, types = VOCABULARIES[vocabulary]()
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, NDArray[np.float32]]:
    """By their names in the file, as llama.cpp's converter turns them."""
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        base = name.removesuffix(".weight").removesuffix(".bias")
        if name.endswith("mlp.experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                found[f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
            continue
        written = str(names.get_name(base))
        if not name.endswith((".A_log", ".D")):
            written += ".bias" if name.endswith(".bias") else ".weight"
        found[written] = _turned(values, name, model, architecture)
    return found


def _turned(values: NDArray[np.float32], name: str, model: PreTrainedModel, architecture: str) -> NDArray[np.float32]:
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):  # halves of a head become pairs
        heads = model.config.num_attention_heads if name.endswith("q_proj.weight") else model.config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if architecture.startswith("gemma") and "norm" in name:
        return values + 1
    if name.endswith(".A_log"):
        return -np.exp(values)
    return values.squeeze(1) if name.endswith("conv1d.weight") else values
