"""The password in the URL of a Store is in nothing that is printed, traced or written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumpd, dumps
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryBuffer

from agent_memory.cli import main
from agent_memory.config import Settings
from agent_memory.errors import AgentMemoryError
from agent_memory.given import without_credentials
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory

URLS = [
    "sqlite://user:secret@host/db", "postgresql://user:secret@host:5432/db?x=1", "https://user:p/secret@ss@host/db", "x://:secret@/db",
    "scheme://secret@host",
]  # fmt: skip

SHOWN: dict[str, Callable[[str], Any]] = {
    "dumps": lambda url: dumps(ChatAgentMemory(store=url)),
    "dumps of the plain model": lambda url: dumps(AgentMemoryLLM(store=url)),
    "dumps of options": lambda url: dumps(ChatAgentMemory(options={"store": url})),
    "dumps of a binding": lambda url: dumps(ChatAgentMemory(store=url).bind_tools([])),
    "repr": lambda url: repr(ChatAgentMemory(store=url)),
    "str": lambda url: str(ChatAgentMemory(store=url, options={"store": url})),
    "repr of a binding": lambda url: repr(ChatAgentMemory(store=url).bind(max_tokens=3)),
    "traces": lambda url: ChatAgentMemory(store=url, options={"store": url})._identifying_params,
    "to_dict": lambda url: AgentMemory(store=url, options={"store": url}).to_dict(),
    "to_json": lambda url: AgentMemory(store=url).to_json(),
    "repr of LlamaIndex's": lambda url: repr(AgentMemory(store=url, options={"store": url})),
    "a buffer": lambda url: AgentMemoryBuffer.from_defaults(AgentMemory(store=url), "s").to_dict(),
    "repr of a buffer": lambda url: repr(AgentMemoryBuffer.from_defaults(AgentMemory(store=url), "s")),
    "settings": lambda url: f"{Settings.load(store=url)!r} {Settings.load(store=url)}",
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("way", SHOWN)
def test_a_password_is_not_shown(way: str, url: str) -> None:
    said = str(SHOWN[way](url))
    assert "secret" not in said and url.partition("://")[0] in said


FAILING: dict[str, Callable[[str], Any]] = {
    "langchain": lambda url: ChatAgentMemory(store=url).invoke([HumanMessage("one")]),
    "llama_index": lambda url: AgentMemory(store=url).chat([ChatMessage("one")]),
    "an unknown setting": lambda url: Settings.load(stoer=url),
    "an unknown option": lambda url: ChatAgentMemory(options={"stoer": url}).invoke([HumanMessage("one")]),
    "another setting": lambda url: Settings.load(window=url),
    "a model": lambda url: ChatAgentMemory(model=url, store="memory").invoke([HumanMessage("one")]),
}


@pytest.mark.parametrize("way", FAILING)
def test_nor_in_an_error(way: str) -> None:
    with pytest.raises(AgentMemoryError) as caught:
        FAILING[way]("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("words", [["sessions"], ["sessions", "--json"], ["chat", "--json"], ["sessions", "--device", "8 gigs"]])
def test_nor_by_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--store", "postgresql://user:secret@host/db"])
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err and printed.err


def test_what_has_no_password_is_written_down_as_it_is() -> None:
    for store in ("sqlite:////data/a:b@c/index.sqlite", "/data/a:b@c", "memory"):
        assert dumpd(ChatAgentMemory(store=store))["kwargs"]["store"] == store
        assert AgentMemory.from_dict(AgentMemory(store=store).to_dict()).store == store
        assert without_credentials({"a": [store, 3, None]}) == {"a": [store, 3, None]}
