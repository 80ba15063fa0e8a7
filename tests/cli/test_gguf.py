"""Everything that takes a model takes a GGUF file: options, environment, file, and the frameworks' wrappers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.agent_memory import AgentMemory

from agent_memory.errors import ModelNotFound
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory
from tests.cli.conftest import Result
from tests.model.tiny_gguf import tiny_model, write_gguf

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def file(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_folder / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    (own_folder / "files").mkdir()
    return write_gguf(own_folder / "files" / "tiny.gguf", tiny_model("llama"))


def chat(cli: Cli, *words: str) -> None:
    done = cli("chat", "talk", "--max-new-tokens", "2", "--window", "512", "--json", *words)
    assert (done.code, done.err) == (0, "")
    assert [reply["question"] for reply in done.json["replies"]] == ["hello"]


def test_options_name_a_file(cli: Cli) -> None:
    chat(cli, "--model", "files/tiny.gguf")


def test_options_name_a_file_in_a_folder(cli: Cli) -> None:
    chat(cli, "--model", "files", "--gguf-file", "tiny.gguf")


def test_the_environment_names_a_file_in_a_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MEMORY_MODEL", "files")
    monkeypatch.setenv("AGENT_MEMORY_GGUF_FILE", "tiny.gguf")
    chat(cli)


def test_the_settings_file_names_a_file_in_a_folder(cli: Cli) -> None:
    Path("agent-memory.toml").write_text('model = "files"\ngguf_file = "tiny.gguf"\n')
    chat(cli)


def test_attach_check(cli: Cli) -> None:
    assert cli("attach-check", "files/tiny.gguf", "--json").json["model"] == "LlamaForCausalLM"
    assert cli("attach-check", "files", "--gguf-file", "tiny.gguf", "--json").json["ok"]


def test_eval(cli: Cli) -> None:
    Path("text.txt").write_text("hello " * 400)
    words = ("--file", "text.txt", "--methods", "streaming", "--lengths", "300", "--model", "files/tiny.gguf", "--window", "256")
    assert cli("eval", "perplexity", *words, "--json").json["model"] == "LlamaForCausalLM"


@pytest.mark.parametrize("begins", [b"GGUF", b"no such file"])
def test_a_mistake_is_one_line_the_first_time_too(cli: Cli, file: Path, begins: bytes) -> None:
    file.write_bytes(begins + bytes(1000))
    done = cli("chat", "--model", "files/tiny.gguf")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("error: ") and "files/tiny.gguf" in done.err


def test_a_model_that_cannot_be_attached_is_one_line(cli: Cli) -> None:
    write_gguf(Path("mamba.gguf"), tiny_model("mamba"), "mamba")
    done = cli("attach-check", "mamba.gguf")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1) and "cannot be attached" in done.err


@pytest.mark.parametrize("named", [{"model": "files/tiny.gguf"}, {"model": "files", "gguf_file": "tiny.gguf"}])
def test_the_frameworks_wrappers(named: dict[str, Any]) -> None:
    options: dict[str, Any] = {"options": {"window": 512}, "max_tokens": 2}
    chat_model, plain, llm = ChatAgentMemory(**named, **options), AgentMemoryLLM(**named, **options), AgentMemory(**named, **options)
    for wrapper, ask in ((chat_model, chat_model.invoke), (plain, plain.invoke), (llm, llm.complete)):
        ask("hello")
        wrapper.close()
    assert chat_model._identifying_params["gguf_file"] == named.get("gguf_file")


def test_a_wrapper_names_what_is_not_there() -> None:
    wrapper = ChatAgentMemory(model="files", gguf_file="other.gguf")
    with pytest.raises(ModelNotFound, match=r"other\.gguf.*tiny\.gguf"):
        wrapper.invoke("hello")
