"""The LangChain wrappers, on a tiny random model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from agent_memory.errors import ConfigError
from agent_memory.store.store import Store
from agent_memory.types import Message, ToolCall, Turn
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory
from langchain_agent_memory.messages import to_messages


@pytest.fixture
def chat(tiny_model: str) -> Iterator[ChatAgentMemory]:
    made = ChatAgentMemory(model=tiny_model, store="memory", session_id="s", max_tokens=4)
    yield made
    made.close()


def turns(name: str = "s") -> list[Turn]:
    with Store.open("memory") as store:
        return store.turns(name)


def names() -> list[str]:
    with Store.open("memory") as store:
        return [info.name for info in store.sessions(branches=True)]


def test_usage_tells_what_was_in_memory(chat: ChatAgentMemory) -> None:
    conversation: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage("one")]
    first = chat.invoke(conversation)
    second = chat.invoke([*conversation, first, HumanMessage("two")])
    assert first.usage_metadata is not None and second.usage_metadata is not None
    assert first.usage_metadata["input_token_details"]["cache_read"] == 0
    assert second.usage_metadata["input_token_details"]["cache_read"] >= first.usage_metadata["total_tokens"]
    assert second.usage_metadata["input_token_details"]["cache_creation"] > 0
    assert second.response_metadata["agent_memory"]["session"] == "s"
    chat.close()
    assert [turn.role for turn in turns()] == ["system", "user", "assistant", "user", "assistant"]


def test_streaming_gives_the_same_text_and_usage_once(chat: ChatAgentMemory) -> None:
    whole = chat.invoke([HumanMessage("one")], session_id="a")
    chunks = list(chat.stream([HumanMessage("one")], session_id="b"))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [whole.usage_metadata]
    assert isinstance(chunks[-1], AIMessageChunk) and chunks[-1].chunk_position == "last"


def test_async_gives_the_same_text(chat: ChatAgentMemory) -> None:
    async def both() -> tuple[AIMessage, str]:
        whole = await chat.ainvoke([HumanMessage("one")], session_id="a")
        return whole, "".join([str(chunk.content) async for chunk in chat.astream([HumanMessage("one")], session_id="b")])

    whole, streamed = asyncio.run(both())
    assert whole.content == streamed == chat.invoke([HumanMessage("one")], session_id="c").content


def test_the_thread_of_a_configuration_names_the_session(chat: ChatAgentMemory) -> None:
    config: Any = {"configurable": {"thread_id": "thread-7"}}
    chat.invoke([HumanMessage("one")], config)
    inside: RunnableLambda[str, AIMessage] = RunnableLambda(lambda text: chat.invoke([HumanMessage(str(text))]))
    inside.invoke("one", {"configurable": {"thread_id": "thread-8"}})
    chat.invoke([HumanMessage("one")], config, session_id="mine")
    chat.close()
    assert names() == ["mine", "thread-7", "thread-8"]


def test_without_any_name_nothing_stays(tiny_model: str) -> None:
    chat = ChatAgentMemory(model=tiny_model, store="memory", max_tokens=4)
    assert chat.invoke("one").usage_metadata is not None
    chat.close()
    assert names() == []


def test_bound_tools_are_part_of_the_head(tiny_model: str) -> None:
    def count(name: str) -> int:
        """Count things."""
        return len(name)

    chat = ChatAgentMemory(model=tiny_model, store="memory", session_id="s", max_tokens=4, options={"window": 1024})
    chat.bind_tools([count]).invoke([HumanMessage("one")])
    chat.close()
    assert [found["function"]["name"] for found in turns()[0].meta["tools"]] == ["count"]


def test_a_forced_tool_choice_is_refused(chat: ChatAgentMemory) -> None:
    with pytest.raises(ConfigError, match="cannot be forced"):
        chat.bind_tools([], tool_choice="any")


def test_messages_of_every_kind() -> None:
    call = {"name": "look", "args": {"x": 1}, "id": "7"}
    messages = [
        HumanMessage([{"type": "text", "text": "a"}, "b"]),
        AIMessage([{"type": "text", "text": "c"}, {"type": "tool_use", "id": "7", "name": "look", "input": {"x": 1}}], tool_calls=[call]),
        ToolMessage("d", tool_call_id="7", name="look"),
    ]
    assert to_messages(messages) == [
        Message("user", "ab"),
        Message("assistant", "c", None, (ToolCall("7", "look", {"x": 1}),)),
        Message("tool", "d", "look", (), "7"),
    ]


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="'image_url' cannot be remembered"):
        to_messages([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_a_plain_language_model_remembers_its_prompts(tiny_model: str) -> None:
    llm = AgentMemoryLLM(model=tiny_model, store="memory", session_id="s", max_tokens=4)
    assert "".join(llm.stream("one", session_id="other")) == llm.invoke("one")
    llm.invoke("two")
    llm.close()
    assert [turn.text for turn in turns() if turn.role == "user"] == ["one", "two"]


def test_a_bad_setting_is_said_at_the_first_call() -> None:
    with pytest.raises(ConfigError, match="device='huge'"):
        ChatAgentMemory(options={"device": "huge"}).invoke("one")


def test_importing_and_making_one_loads_no_torch() -> None:
    code = "import sys, langchain_agent_memory as l; l.ChatAgentMemory(); l.AgentMemoryLLM(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
