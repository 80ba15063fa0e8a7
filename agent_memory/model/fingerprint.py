"""Naming a model by everything stored keys and values depend on.

Knows configs, tokenizers and safetensors files; nothing of Sessions. Two models with the same ``ModelId`` give the same keys.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from agent_memory.errors import ModelNotFound
from agent_memory.types import ModelId
from agent_memory.user_folders import expanded

_DIGITS = 16
_CHUNK = 1 << 22
_ROPE_FIELDS = {"rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings", "original_max_position_embeddings"}
_PASSING_FIELDS = {
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "auto_map",
    "use_cache",
    "recall",  # how memory is read, which each Session records
}


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, source: str | os.PathLike[str] | None) -> ModelId:
    """The fingerprint of ``model`` and ``tokenizer``.

    Args:
        model: the loaded model.
        tokenizer: its tokenizer.
        source: what it was loaded from: a folder (its safetensors are hashed, every byte, each time: sizes and times of files may be
            what they were though the bytes are not), a hub id (the commit is taken), or None for a model in memory (its tensors are
            hashed).

    Raises:
        ModelNotFound: ``source`` is a folder without safetensors.
        ConfigError: ``source`` is under a home folder that is not known.
    """
    config = model.config.to_diff_dict()
    return ModelId(
        architecture=type(model).__name__,
        config=_short(_without(config, _ROPE_FIELDS | _PASSING_FIELDS)),
        weights=_weights(model, source),
        dtype=str(model.dtype).removeprefix("torch."),
        rope=_short(_rope(model.config)),
        tokenizer=_short(_tokenizer(tokenizer)),
        chat_template=_short(getattr(tokenizer, "chat_template", None)),
    )


def _short(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _without(config: dict[str, Any], fields: set[str]) -> dict[str, Any]:
    """The config and its sub-configs without ``fields``."""
    return {name: _without(value, fields) if isinstance(value, dict) else value for name, value in config.items() if name not in fields}


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    return {name: getattr(text, name, None) for name in sorted(_ROPE_FIELDS)}


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides which ids a text gets. Truncation and padding are left out: calls change them, ids of one text they do not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = {name: part for name, part in json.loads(backend.to_str()).items() if name not in ("truncation", "padding")}
    return {"class": type(tokenizer).__name__.removesuffix("Fast"), "rules": rules, "special": tokenizer.special_tokens_map}


def _weights(model: PreTrainedModel, source: str | os.PathLike[str] | None) -> str:
    adapted = getattr(model, "_hf_peft_config_loaded", False)
    if source is not None and not adapted:
        if (folder := expanded(Path(source))).is_dir():
            return _folder(folder)
        commit = getattr(model.config, "_commit_hash", None)
        if commit:
            return str(commit)[:_DIGITS]
    return _sum(_tensor_hash(name, tensor) for name, tensor in model.state_dict().items())


def _tensor_hash(name: str, tensor: torch.Tensor) -> int:
    data = tensor.detach().cpu().contiguous()
    digest = xxhash.xxh3_128(f"{name} {str(data.dtype)} {list(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.intdigest()


def _sum(hashes: Iterable[int]) -> str:
    """One name for a set of tensors, whatever their order and however they are split over files."""
    return f"{sum(hashes) % (1 << 128):032x}"[:_DIGITS]


def _folder(folder: Path) -> str:
    files = {path.resolve(): path for path in sorted(folder.glob("*.safetensors"))}  # a file that has two names counts once
    if not files:
        raise ModelNotFound(f"the folder {str(folder)!r} holds no .safetensors file; save the model with save_pretrained()")
    return _sum(map(_file_hash, files.values()))


def _file_hash(path: Path) -> int:
    """Sum of the hashes of a safetensors file's tensors; its metadata does not count."""
    total, room = 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ModelNotFound(f"{str(path)!r} is no safetensors file: its header would take {length} of {size} bytes")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            digest = xxhash.xxh3_128(f"{name} {entry['dtype']} {entry['shape']}".encode())
            file.seek(8 + length + start)
            while start < stop and (got := file.readinto(room[: min(_CHUNK, stop - start)])):
                digest.update(room[:got])
                start += got
            if start < stop:
                raise ModelNotFound(f"{str(path)!r} ends before its tensor {name!r} does")
            total += digest.intdigest()
    return total % (1 << 128)
