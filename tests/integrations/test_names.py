"""An empty name is a mistake, never the default: only what is not given is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryBuffer

from agent_memory.errors import InvalidName
from agent_memory.history import Request
from agent_memory.types import Message
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory

ONE = [HumanMessage("one")]


def named(**configurable: Any) -> Any:
    return {"configurable": configurable}


LANGCHAIN: dict[str, Callable[[ChatAgentMemory], Any]] = {
    "memory_namespace": lambda chat: chat.invoke(ONE, named(thread_id="t", memory_namespace="")),
    "thread_id": lambda chat: chat.invoke(ONE, named(thread_id="")),
    "memory_session": lambda chat: chat.invoke(ONE, named(memory_session="", thread_id="t")),
    "session_id of a call": lambda chat: chat.invoke(ONE, session_id=""),
    "namespace of a call": lambda chat: chat.invoke(ONE, session_id="t", namespace=""),
    "session_id of the model": lambda chat: chat.model_copy(update={"session_id": ""}).invoke(ONE),
    "stream": lambda chat: list(chat.stream(ONE, named(thread_id=""))),
    "ainvoke": lambda chat: asyncio.run(chat.ainvoke(ONE, named(thread_id=""))),
    "delete_thread": lambda chat: chat.delete_thread(""),
    "delete_thread of a tenant": lambda chat: chat.delete_thread("t", namespace=""),
    "copy_thread from": lambda chat: chat.copy_thread("", "u"),
    "copy_thread to": lambda chat: chat.copy_thread("t", ""),
    "prune": lambda chat: chat.prune(["t", ""]),
    "prune of a tenant": lambda chat: chat.prune(["t"], namespace=""),
    "branches": lambda chat: chat.branches(""),
    "thread_messages": lambda chat: chat.thread_messages("t", namespace=""),
}


@pytest.mark.parametrize("way", LANGCHAIN)
def test_langchain_takes_no_empty_name(tiny_model: str, way: str, own_folder: Path) -> None:
    with pytest.raises(InvalidName, match="cannot be empty"):
        LANGCHAIN[way](ChatAgentMemory(model=tiny_model))
    assert not (own_folder / "memory").exists(), "nothing was opened"


def test_langchains_plain_model_takes_no_empty_name(tiny_model: str) -> None:
    with pytest.raises(InvalidName, match="cannot be empty"):
        AgentMemoryLLM(model=tiny_model).invoke("one", named(thread_id=""))


def test_a_configuration_that_names_nothing_names_nothing(tiny_model: str) -> None:
    chat = ChatAgentMemory(model=tiny_model, store="memory", max_tokens=4, options={"window": 1024})
    chat.invoke(ONE, named(memory_session=None, thread_id="t", memory_namespace=None))
    assert chat.branches("t") == ["t"]
    chat.close()


LLAMA_INDEX: dict[str, Callable[[AgentMemory], Any]] = {
    "session_id of a call": lambda llm: llm.chat([ChatMessage("one")], session_id=""),
    "namespace of a call": lambda llm: llm.chat([ChatMessage("one")], session_id="t", namespace=""),
    "complete": lambda llm: llm.complete("one", session_id=""),
    "session_id of the model": lambda llm: llm.model_copy(update={"session_id": ""}).complete("one"),
    "with_session": lambda llm: llm.with_session(""),
    "with_session of a tenant": lambda llm: llm.with_session("t", ""),
    "session_messages": lambda llm: llm.session_messages(""),
    "session_messages of a tenant": lambda llm: llm.session_messages("t", ""),
    "delete_session": lambda llm: llm.delete_session(""),
    "delete_session of a tenant": lambda llm: llm.delete_session("t", ""),
    "buffer": lambda llm: AgentMemoryBuffer.from_defaults(llm.with_session("t"), session_id=""),
    "buffer of a tenant": lambda llm: AgentMemoryBuffer.from_defaults(llm.with_session("t"), namespace=""),
}


@pytest.mark.parametrize("way", LLAMA_INDEX)
def test_llama_index_takes_no_empty_name(tiny_model: str, way: str, own_folder: Path) -> None:
    with pytest.raises(InvalidName, match="cannot be empty"):
        LLAMA_INDEX[way](AgentMemory(model=tiny_model))
    assert not (own_folder / "memory").exists(), "nothing was opened"


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 256])
def test_a_request_has_names_that_can_be(name: str) -> None:
    for session, namespace in ((name, None), ("t", name)):
        with pytest.raises(InvalidName):
            Request(session, [Message("user", "one")], namespace=namespace)
