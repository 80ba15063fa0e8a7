"""Models come from folders or the hub, or one clear line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agent_memory.errors import ConfigError, ModelNotFound, UnsupportedModel
from agent_memory.model.load import load
from tests.model.zoo import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    place = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_a_saved_folder_loads_with_its_weights_and_without_a_chat_template(folder: Path) -> None:
    model, tokenizer = load(folder)
    assert not model.training and tokenizer.chat_template is None
    assert tokenizer.decode(tokenizer.encode("żółw")) == "żółw"
    ids = torch.tensor([[3, 4, 5]])
    assert torch.allclose(model(ids).logits, tiny("llama")(ids).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_dtype_asked_for_is_the_dtype(folder: Path, dtype: str | torch.dtype) -> None:
    assert load(str(folder), dtype=dtype)[0].dtype == torch.bfloat16
    assert load(str(folder))[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "manual_seed", "no such"])
def test_a_dtype_that_is_none_is_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match="dtype="):
        load(folder, dtype=dtype)


def one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("source", ["./nowhere", "/no/where", "~/no-where", "a/b/c", "", Path("nowhere/x")])
def test_a_path_that_is_none_is_named(source: str | Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        load(source)
    one_line(error, str(source))


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound) as error:
        load("nobody/has-this-model")
    one_line(error, "nobody/has-this-model")


def test_folders_without_a_model_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        load(tmp_path)
    one_line(error, "config.json")
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelNotFound) as error:
        load(tmp_path)
    one_line(error, "safetensors")


def test_an_unknown_architecture_is_unsupported(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(UnsupportedModel) as error:
        load(tmp_path)
    one_line(error, "no_such_type")


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(tiny("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFound):
        load(tmp_path)
