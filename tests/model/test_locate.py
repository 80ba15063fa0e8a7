"""What may be named as a model: folders, GGUF files alone or in a folder or a repository, hub ids; and what is said of anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from agent_memory.errors import AgentMemoryError, ConfigError, ModelNotFound
from agent_memory.model import locate as room
from agent_memory.model.fingerprint import fingerprint
from agent_memory.model.load import load
from agent_memory.model.locate import locate
from agent_memory.runtime import Runtime
from tests.model.conftest import byte_tokenizer
from tests.model.tiny_gguf import tiny_model, write_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "files"
    place.mkdir()
    write_gguf(place / "tiny.gguf", tiny_model("llama"))
    return place


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of ``someone/tiny-GGUF`` in the hub's cache, of a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--someone--tiny-GGUF"
    files = kept / "snapshots" / COMMIT
    files.mkdir(parents=True)
    (kept / "refs").mkdir()
    for name in ("main", "v1"):
        (kept / "refs" / name).write_text(COMMIT)
    return files


def refused(kind: type[AgentMemoryError], source: str | Path, *words: str, **options: str) -> None:
    with pytest.raises(AgentMemoryError) as error:
        locate(source, **options)
    assert type(error.value) is kind
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_what_was_located_is_located_where_it_is(folder: Path) -> None:
    place = locate(folder / "tiny.gguf")
    assert place == locate(place) == locate(Path(place)) == locate(folder, gguf_file="tiny.gguf") == locate(str(folder / "tiny.gguf"))
    assert locate("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


def test_a_path_may_be_relative_or_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(folder / "tiny.gguf")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert place == locate("tiny.gguf") == locate("./tiny.gguf") == locate("~/files/tiny.gguf") == locate("~/files", gguf_file="tiny.gguf")


def test_a_file_of_the_same_name_in_the_working_folder_does_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tiny_model("llama")
    other.model.norm.weight.data += 1
    write_gguf(Path("tiny.gguf"), other)
    weights = load(folder, gguf_file="tiny.gguf")[0].model.norm.weight
    assert weights.tolist() == tiny_model("llama").model.norm.weight.tolist()


def test_a_folder_of_gguf_files_names_them(folder: Path) -> None:
    refused(ModelNotFound, folder, "no config.json", "tiny.gguf", "gguf_file=")
    refused(ModelNotFound, folder, "holds no file 'other.gguf'", "tiny.gguf", gguf_file="other.gguf")


def test_gguf_file_where_it_means_nothing(folder: Path) -> None:
    refused(ConfigError, folder / "tiny.gguf", "gguf_file='tiny.gguf'", gguf_file="tiny.gguf")
    with pytest.raises(ModelNotFound, match="holds no file 'tiny.gguf'"):
        Runtime.load(gguf_file="tiny.gguf")


@pytest.mark.parametrize("source", ["./no.gguf", "/no/where/no.gguf", "~/no.gguf", "no.gguf", "a/no.gguf", "a/b/no.gguf", Path("no.gguf")])
def test_a_file_that_is_not_there(source: str | Path) -> None:
    refused(ModelNotFound, source, str(source))


def test_a_file_in_a_repository(repository: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_gguf(repository / "tiny.gguf", model)
    place = locate("someone/tiny-GGUF", gguf_file="tiny.gguf")
    assert place == locate("someone/tiny-GGUF", gguf_file="tiny.gguf", revision="v1") == locate(write_gguf(tmp_path / "own.gguf", model))
    assert fingerprint(*load("someone/tiny-GGUF", gguf_file="tiny.gguf"), source=place) == fingerprint(*load(place), source=place)
    byte_tokenizer().save_pretrained(repository)
    assert locate("someone/tiny-GGUF", gguf_file="tiny.gguf") != place, "a tokenizer of the repository counts, as for transformers"


def test_a_split_model_in_a_folder_of_a_repository(repository: Path, tmp_path: Path) -> None:
    (repository / "Q8").mkdir()
    write_gguf(repository / "Q8" / "tiny.gguf", tiny_model("llama"), tensors_a_part=9)
    place = locate("someone/tiny-GGUF", gguf_file="Q8/tiny-00001-of-00003.gguf")
    assert place == locate(repository / "Q8" / "tiny-00002-of-00003.gguf")


def test_of_a_repository_one_model_and_a_tokenizer_are_fetched(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, real = list[str](), huggingface_hub.snapshot_download

    def watched(*given: str, **options: Any) -> str:
        wanted.extend(options["allow_patterns"])
        return str(real(*given, **options))

    monkeypatch.setattr(room, "snapshot_download", watched)
    write_gguf(repository / "tiny.gguf", tiny_model("llama"), tensors_a_part=9)
    locate("someone/tiny-GGUF", gguf_file="tiny-00002-of-00003.gguf")
    parts = [f"tiny-0000{part}-of-00003.gguf" for part in range(1, 4)]
    others = ["tiny-00004-of-00003.gguf", "tiny.gguf", "Q8/tiny-00001-of-00003.gguf", "README.md"]
    assert list(filter_repo_objects([*parts, "tokenizer.json", *others], allow_patterns=wanted)) == [*parts, "tokenizer.json"]


def test_what_is_not_in_a_repository(repository: Path) -> None:
    write_gguf(repository / "tiny.gguf", tiny_model("llama"))
    refused(ModelNotFound, "someone/tiny-GGUF", "holds no file 'other.gguf'", "tiny.gguf", gguf_file="other.gguf")
    refused(ModelNotFound, "someone/tiny-GGUF", "someone/tiny-GGUF", gguf_file="tiny.gguf", revision="v2")
    refused(ModelNotFound, "nobody/tiny-GGUF", "nobody/tiny-GGUF", gguf_file="tiny.gguf")
    refused(ModelNotFound, "no id at all", "no id at all", gguf_file="tiny.gguf")
