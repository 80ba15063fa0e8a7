"""Each field of a ModelId changes when its thing changes, and only then."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_memory.errors import ModelNotFound
from agent_memory.model import fingerprint as room
from agent_memory.model.attach import attach
from agent_memory.model.fingerprint import fingerprint
from agent_memory.model.load import load
from agent_memory.types import ModelId
from tests.model.conftest import byte_tokenizer
from tests.model.test_attach import run, some_ids
from tests.model.zoo import tiny

Pair = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def named(pair: Pair) -> ModelId:
    return fingerprint(*pair, source=None)


def differing(a: ModelId, b: ModelId) -> set[str]:
    return {field.name for field in dataclasses.fields(ModelId) if getattr(a, field.name) != getattr(b, field.name)}


def changed(edit: Callable[[Any, Any], Any], family: str = "llama") -> set[str]:
    model, tokenizer = tiny(family), byte_tokenizer()
    before = named((model, tokenizer))
    given = edit(model, tokenizer)
    return differing(before, named(given if isinstance(given, tuple) else (model, tokenizer)))


def weigh(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3


def other_window(model: Any, tokenizer: Any) -> None:
    model.config.max_position_embeddings = 1024


def other_base(model: Any, tokenizer: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 20000.0}


def other_scaling(model: Any, tokenizer: Any) -> None:
    model.config.rope_parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], set[str]]] = {
    "nothing": (lambda m, t: None, set()),
    "one weight": (weigh, {"weights"}),
    "dtype": (lambda m, t: (m.to(dtype=torch.bfloat16), t), {"dtype", "weights"}),
    "epsilon": (lambda m, t: setattr(m.config, "rms_norm_eps", 1e-3), {"config"}),
    "heads": (lambda m, t: setattr(m.config, "num_key_value_heads", 4), {"config"}),
    "window": (other_window, {"rope"}),
    "rope base": (other_base, {"rope"}),
    "rope scaling": (other_scaling, {"rope"}),
    "an added token": (lambda m, t: t.add_tokens(["<tool>"]), {"tokenizer"}),
    "a special token": (lambda m, t: t.add_special_tokens({"additional_special_tokens": ["<x>"]}), {"tokenizer"}),
    "another end token": (lambda m, t: setattr(t, "eos_token", "<s>"), {"tokenizer"}),
    "a chat template": (lambda m, t: setattr(t, "chat_template", "{{ messages }}"), {"chat_template"}),
    "padding and truncation": (lambda m, t: t(["ab", "c"], padding=True, truncation=True, max_length=2), set()),
    "where it was loaded from": (lambda m, t: setattr(m.config, "_name_or_path", "elsewhere"), set()),
    "attention implementation": (lambda m, t: m.set_attn_implementation("eager"), set()),
    "use_cache": (lambda m, t: setattr(m.config, "use_cache", False), set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_field_changes_when_and_only_when_its_thing_changes(change: str) -> None:
    edit, fields = CHANGES[change]
    assert changed(edit) == fields


def test_the_class_is_the_architecture() -> None:
    assert {"architecture"} <= differing(named((tiny("llama"), byte_tokenizer())), named((tiny("mistral-sliding"), byte_tokenizer())))


def test_attaching_and_running_changes_nothing() -> None:
    assert changed(lambda m, t: run(attach(m), some_ids(600)) is None, "dynamic") == set()


def test_fields_are_short_text() -> None:
    identity = named((tiny("llama"), byte_tokenizer()))
    for name in ("config", "weights", "rope", "tokenizer", "chat_template"):
        assert len(getattr(identity, name)) == 16 and int(getattr(identity, name), 16) >= 0
    assert (identity.dtype, identity.architecture) == ("float32", "LlamaForCausalLM")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tiny("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def of_folder(folder: Path) -> ModelId:
    return fingerprint(*load(folder), source=folder)


def test_a_folder_is_named_by_its_tensors_and_a_copy_is_the_same(folder: Path, tmp_path: Path) -> None:
    first = of_folder(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert of_folder(tmp_path / "copy") == first
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert differing(of_folder(folder), first) == {"weights"}


def test_how_tensors_are_split_over_files_does_not_matter(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    whole = room._weights(tiny("llama"), folder)
    (folder / "model.safetensors").unlink()
    save_file({name: weights[name] for name in names[:5]}, folder / "model-1.safetensors", metadata={"note": "other"})
    save_file({name: weights[name] for name in names[5:]}, folder / "model-2.safetensors")
    assert room._weights(tiny("llama"), folder) == whole


def test_weights_changed_in_place_are_noticed_though_size_and_times_are_put_back(folder: Path) -> None:
    file = folder / "model.safetensors"
    first, before = of_folder(folder), file.stat()
    with file.open("r+b") as opened:
        opened.seek(before.st_size - 2)
        opened.write(b"\x2a\x41")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert differing(of_folder(folder), first) == {"weights"}


def test_a_hub_model_is_named_by_its_commit() -> None:
    model, tokenizer = tiny("llama"), byte_tokenizer()
    model.config._commit_hash = "0123456789abcdef0123456789abcdef01234567"
    assert fingerprint(model, tokenizer, source="some/model").weights == "0123456789abcdef"
    assert fingerprint(model, tokenizer, source=None).weights != "0123456789abcdef"


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    model, file = tiny("llama"), folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", b"\xff" * 32, whole[:-100]):
        file.write_bytes(content)
        with pytest.raises(ModelNotFound, match="model.safetensors"):
            room._weights(model, folder)
    file.unlink()
    with pytest.raises(ModelNotFound, match="no .safetensors"):
        room._weights(model, folder)
