"""A GGUF file that cannot be used is one clear line of our own errors, and nothing is left of the try."""

from __future__ import annotations

import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from agent_memory.errors import AgentMemoryError, ConfigError, ModelNotFound, UnsupportedModel
from agent_memory.model import dequantized
from agent_memory.model.load import load
from agent_memory.model.locate import locate
from agent_memory.runtime import Runtime
from tests.model.tiny_gguf import tiny_model, write_gguf
from tests.promises.test_p07_full import small_disk
from tests.store.support import Child

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))


def refused(kind: type[AgentMemoryError], source: Any, *words: str, **options: Any) -> None:
    with pytest.raises(AgentMemoryError) as error:
        load(source, **options)
    assert type(error.value) is kind
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def assert_nothing_left(cache: Path) -> None:
    left = {path.name for path in (cache / "gguf").rglob("*")} if (cache / "gguf").exists() else set()
    assert left <= {"lock"}, left


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.03, 0.05, 0.06, 0.5, 0.99999])
def test_a_file_that_was_cut_off(file: Path, cache: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(UnsupportedModel, file, "cut off" if len(file.read_bytes()) > 4 else "is no GGUF file", str(file))
    assert_nothing_left(cache)


@pytest.mark.parametrize("begins", [b"", b"GGU", b"GGML", b"<!DOCTYPE html>", b"PK\3\4"])
def test_a_file_of_another_kind(tmp_path: Path, cache: Path, begins: bytes) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(begins + random.Random(0).randbytes(1000) * bool(begins))
    refused(UnsupportedModel, file, str(file), "is no GGUF file")
    assert_nothing_left(cache)


@pytest.mark.parametrize("seed", range(12))
def test_garbage_after_the_first_bytes(file: Path, cache: Path, seed: int) -> None:
    rng, whole = random.Random(seed), file.read_bytes()
    file.write_bytes(whole[: rng.choice([8, 24, 60, 2000])] + rng.randbytes(len(whole)))
    refused(UnsupportedModel, file, str(file))
    assert_nothing_left(cache)


def test_a_file_without_anything_in_it(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "empty.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(1000))
    refused(UnsupportedModel, file, "general.architecture")
    assert_nothing_left(cache)


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path, cache: Path) -> None:
    writer = GGUFWriter(tmp_path / "rwkv.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(UnsupportedModel, tmp_path / "rwkv.gguf", "rwkv6")
    assert_nothing_left(cache)


def test_an_architecture_that_cannot_be_attached(tmp_path: Path, cache: Path) -> None:
    refused(UnsupportedModel, write_gguf(tmp_path / "mamba.gguf", tiny_model("mamba"), "mamba"), "MambaForCausalLM cannot be attached")
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("kept", "absent"),
    [
        (lambda name: name != "blk.1.attn_k.weight", "'model.layers.1.self_attn.k_proj.weight'"),
        (lambda name: False, "lacks"),
    ],
    ids=["one tensor", "the vocabulary alone"],
)
def test_tensors_that_are_missing_are_not_made_up(tmp_path: Path, cache: Path, kept: Callable[[str], bool], absent: str) -> None:
    refused(UnsupportedModel, write_gguf(tmp_path / "less.gguf", tiny_model("llama"), keep=kept), "lacks", "LlamaForCausalLM", absent)
    assert_nothing_left(cache)


def test_tensors_of_another_shape(tmp_path: Path, cache: Path) -> None:
    model = tiny_model("llama")
    model.config.intermediate_size = 32
    refused(UnsupportedModel, write_gguf(tmp_path / "odd.gguf", model), "lacks 6 tensors", "mlp.")
    assert_nothing_left(cache)


def test_parts_of_a_split_model(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "split.gguf", tiny_model("llama"), tensors_a_part=9)
    first, second, *_ = sorted(tmp_path.glob("split-*.gguf"))
    kept = second.rename(tmp_path / "renamed.gguf")
    refused(ModelNotFound, first, second.name)
    refused(UnsupportedModel, kept, "renamed.gguf", "is one of")
    shutil.copy(first, second)
    refused(UnsupportedModel, first, "do not belong together")
    assert_nothing_left(cache)


def test_without_the_package_gguf(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(ConfigError, file, "pip install 'agent-kv-memory[gguf]'")
    assert_nothing_left(cache)


def test_a_copy_that_is_there_needs_no_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert locate(file) == place


@pytest.mark.parametrize("kilobytes", [16, 100, 160])
@pytest.mark.parametrize("seen_before", [True, False])
def test_no_room(kilobytes: int, seen_before: bool, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 kB hold the weights, and not the tokenizer as well."""
    with small_disk(kilobytes) as disk:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        if not seen_before:  # as with a quota, or another process that writes meanwhile
            roomy = shutil.disk_usage("/")
            monkeypatch.setattr(shutil, "disk_usage", lambda _: roomy)
        loaded, real = list[Path](), dequantized._load

        def counted(folder: Path, named: Path):
            loaded.append(named)
            return real(folder, named)

        monkeypatch.setattr(dequantized, "_load", counted)
        refused(ConfigError, file, str(disk), "141,952 bytes", "XDG_CACHE_HOME")
        assert not loaded or not seen_before or kilobytes == 160
        assert_nothing_left(disk / "agent-memory")


def test_no_room_for_the_parts_of_a_split_model_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "split.gguf", tiny_model("llama"), tensors_a_part=9, kind=GGMLQuantizationType.Q8_0)
    with small_disk(200) as disk:
        roomy = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: roomy)
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        (disk / "ballast").write_bytes(bytes(180_000))
        refused(ConfigError, tmp_path / "split-00001-of-00003.gguf", str(disk), "cannot be written")
        assert_nothing_left(disk / "agent-memory")


def test_files_that_may_not_grow(file: Path, cache: Path) -> None:
    def work(tell: Callable[[str], None]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        refused(ConfigError, file, str(cache))
        assert_nothing_left(cache)

    assert Child(work).finish()[1] == 0


def test_a_cache_folder_that_is_none(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    refused(ConfigError, file, str(tmp_path / "taken"), "XDG_CACHE_HOME")


def test_an_interrupted_load_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent_memory.model.dequantized._seal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runtime.load(file)
    assert_nothing_left(cache)


def test_a_file_that_changes_while_it_is_read(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = dequantized._load, tiny_model("llama")
    other.model.norm.weight.data += 1

    def meanwhile(folder: Path, named: Path):
        loaded = real(folder, named)
        write_gguf(file, other)
        return loaded

    monkeypatch.setattr(dequantized, "_load", meanwhile)
    refused(UnsupportedModel, file, "changed while it was read")
    assert_nothing_left(cache)
