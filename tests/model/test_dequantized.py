"""A GGUF file is dequantised once, into a folder that gives what transformers makes of the file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agent_memory.model import dequantized as room
from agent_memory.model import gguf_files
from agent_memory.model.attach import attach
from agent_memory.model.fingerprint import fingerprint
from agent_memory.model.load import load
from agent_memory.model.locate import locate
from agent_memory.types import ModelId
from tests.model.conftest import byte_tokenizer
from tests.model.tiny_gguf import ARCHITECTURES, TEMPLATE, tiny_model, write_gguf
from tests.store.support import Child

TEXTS = ["hello  hello.", " leading", "żółw 123\n\n<s>user", "Sphinx of black quartz"]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that transformers loads from GGUF format, as they are loaded."""
    files, real = list[Path](), room._load

    def counted(source: Path, file: Path):
        files.append(file)
        return real(source, file)

    monkeypatch.setattr(room, "_load", counted)
    return files


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(torch.arange(3, 60)[None]).logits
    return made


def named(file: Path, **options: str) -> ModelId:
    place = locate(file, **options)
    return fingerprint(*load(place), source=place)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"mamba"}))
def test_the_copy_is_the_model_that_the_file_was_made_of(architecture: str, tmp_path: Path) -> None:
    original = tiny_model(architecture)
    model, _ = load(write_gguf(tmp_path / "tiny.gguf", original, architecture))
    assert type(model) is type(original) and model.dtype == torch.float32 and not model.training
    assert torch.allclose(logits(model), logits(original), atol=1e-4)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied is original.config.tie_word_embeddings
    attach(model).detach()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"])
def test_the_copy_has_the_weights_that_transformers_dequantises(kind: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), kind=gguf.GGMLQuantizationType[kind])
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    kept, _ = load(tmp_path / "tiny.gguf")
    assert {name: tensor.tolist() for name, tensor in kept.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in read.state_dict().items()
    }
    assert kept.generation_config.to_diff_dict() == read.generation_config.to_diff_dict()
    assert not hasattr(kept.config, "quantization_config") and load(tmp_path / "tiny.gguf", dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [*((name, "sentencepiece") for name in ("llama", "gemma2", "phi3", "qwen2")), ("llama", "byte-level"), ("qwen2", "byte-level")],
)
def test_the_copy_has_the_tokenizer_that_transformers_reads_from_the_file(architecture: str, vocabulary: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(architecture, vocabulary), architecture, vocabulary=vocabulary)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    _, kept = load(file)
    assert [kept.encode(text) for text in TEXTS] == [read.encode(text) for text in TEXTS]
    ids = [[3, 4, 5], list(range(len(read)))]
    assert [kept.decode(row) for row in ids] == [read.decode(row) for row in ids]
    assert (kept.special_tokens_map, kept.chat_template, len(kept)) == (read.special_tokens_map, TEMPLATE, len(read))


def test_a_file_is_dequantised_once_and_named_the_same_at_every_load(file: Path, tmp_path: Path, loaded: list[Path]) -> None:
    first = named(file)
    assert named(file) == first
    moved = shutil.copy(file, tmp_path / "moved.gguf")
    assert named(Path(moved)) == first
    assert named(tmp_path, gguf_file="tiny.gguf") == first
    assert loaded == [file]


def test_a_file_of_any_name_counts_by_what_is_in_it(file: Path, tmp_path: Path, loaded: list[Path]) -> None:
    first = named(file)
    blob = file.rename(tmp_path / "sha256-0123abc")  # as Ollama keeps them
    assert named(blob) == first and len(loaded) == 1
    other = tiny_model("llama")
    other.model.norm.weight.data += 1
    write_gguf(blob, other)
    assert named(blob).weights != first.weights and len(loaded) == 2


def test_a_file_changed_in_place_is_another_one_though_size_and_times_are_put_back(file: Path) -> None:
    first, before = locate(file), file.stat()
    with file.open("r+b") as opened:
        opened.seek(before.st_size - 2)
        opened.write(b"\x2a\x41")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert locate(file) != first


def test_a_file_without_a_chat_template_gives_none(tmp_path: Path) -> None:
    assert load(write_gguf(tmp_path / "plain.gguf", tiny_model("llama"), template=None))[1].chat_template is None


def test_a_tokenizer_beside_a_file_counts_as_transformers_counts_it(file: Path, tmp_path: Path, loaded: list[Path]) -> None:
    first = named(file)
    other = byte_tokenizer()
    other.add_tokens(["Sphinx"])
    other.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert [load(file)[1].encode(text) for text in TEXTS] == [read.encode(text) for text in TEXTS]
    assert len(read.encode("Sphinx")) == 1 and len(loaded) == 2
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    assert named(file) == first and len(loaded) == 2


def test_what_is_no_tokenizer_beside_a_file_does_not_count(file: Path, tmp_path: Path, loaded: list[Path]) -> None:
    first = named(file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert named(file) == first and len(loaded) == 1


@pytest.mark.parametrize("tensors_a_part", [4, 9])
def test_a_split_model_is_loaded_by_any_of_its_parts(tensors_a_part: int, tmp_path: Path, loaded: list[Path]) -> None:
    original = tiny_model("llama")
    write_gguf(tmp_path / "split.gguf", original, tensors_a_part=tensors_a_part, kind=gguf.GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "whole.gguf", original, kind=gguf.GGMLQuantizationType.Q8_0)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 1
    model, tokenizer = load(parts[0])
    assert torch.equal(logits(model), logits(load(tmp_path / "whole.gguf")[0])) and tokenizer.chat_template == TEMPLATE
    assert locate(parts[-1]) == locate(parts[0]) and len(loaded) == 2


def test_joining_keeps_metadata_tensors_and_their_alignment(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), kind=gguf.GGMLQuantizationType.Q4_0, alignment=256)
    gguf_files.join(gguf_files.read((file,)), tmp_path / "joined.gguf")
    before, after = (gguf.GGUFReader(path) for path in (file, tmp_path / "joined.gguf"))
    assert after.alignment == 256
    assert {field.name: field.contents() for field in after.fields.values()} == {
        field.name: field.contents() for field in before.fields.values()
    }
    assert [(tensor.name, tensor.tensor_type, tensor.data.tobytes()) for tensor in after.tensors] == [
        (tensor.name, tensor.tensor_type, tensor.data.tobytes()) for tensor in before.tensors
    ]


def test_a_damaged_copy_is_made_again(file: Path, loaded: list[Path]) -> None:
    first = named(file)
    weights = Path(locate(file), "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert named(file) == first and len(loaded) == 2
    Path(locate(file), "tokenizer.json").unlink()
    assert named(file) == first and len(loaded) == 3


def test_processes_at_once_get_one_copy(file: Path, cache: Path, loaded: list[Path]) -> None:
    def work(tell: Callable[[str], None]) -> None:
        tell(json.dumps(named(file).to_dict()))
        tell(str(len(loaded)))

    told = [child.finish() for child in [Child(work) for _ in range(3)]]
    assert [(lines[0], code) for lines, code in told] == [(json.dumps(named(file).to_dict()), 0)] * 3
    assert sorted(lines[1] for lines, _ in told) == ["0", "0", "1"] and not loaded
    assert {path.name for path in (cache / "gguf").iterdir()} == {Path(locate(file)).name, "lock"}


def test_a_killed_process_holds_nobody_up(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tell: Callable[[str], None]) -> None:
        def stopped(*_: object) -> None:
            tell("written")
            time.sleep(600)

        monkeypatch.setattr(room, "_seal", stopped)
        locate(file)

    child = Child(work)
    assert child.wait_for_line() == "written"
    assert [path.name.startswith("partial-") for path in (cache / "gguf").iterdir()].count(True) == 1
    child.kill()
    assert child.finish()[1] == -signal.SIGKILL
    assert named(file) == named(file) and {path.name for path in (cache / "gguf").iterdir()} == {Path(locate(file)).name, "lock"}
