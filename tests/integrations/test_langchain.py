"""The LangChain wrappers, on a tiny random model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from agent_memory.errors import ConfigError
from agent_memory.store.store import Store
from agent_memory.types import Message, ToolCall, Turn
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory
from langchain_agent_memory.messages import from_messages, to_messages


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


@pytest.mark.parametrize("kind", ["image_url", "image", "audio", "video", "file", "input_audio"])
def test_what_is_no_text_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"content of type '{kind}' cannot be remembered"):
        to_messages([HumanMessage([{"type": "text", "text": "Look:"}, {"type": kind, "url": "x"}])])


def test_blocks_of_an_answer_that_are_no_text_are_left_out() -> None:
    blocks: list[str | dict[str, Any]] = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "a"}, "b"]
    assert to_messages([AIMessage(blocks)]) == [Message("assistant", "ab")]


def test_a_tool_that_says_nothing_and_other_roles() -> None:
    messages = [ChatMessage(content="be", role="developer"), ToolMessage("", tool_call_id="7"), AIMessage("")]
    assert to_messages(messages) == [Message("system", "be"), Message("tool", "(no output)", None, (), "7"), Message("assistant", "")]
    with pytest.raises(ConfigError, match="a RemoveMessage cannot be remembered"):
        to_messages([RemoveMessage(id="1")])
    with pytest.raises(ConfigError, match="a ChatMessage cannot be remembered"):
        to_messages([ChatMessage(content="x", role="narrator")])


def test_messages_there_and_back() -> None:
    call = {"name": "look", "args": {"x": 1}, "id": "7", "type": "tool_call"}
    messages = [
        SystemMessage("s"), HumanMessage("h"), AIMessage("a", tool_calls=[call]), ToolMessage("t", tool_call_id="7", name="look"),
    ]  # fmt: skip
    assert from_messages(to_messages(messages)) == messages


def test_a_plain_language_model_remembers_its_prompts(tiny_model: str) -> None:
    llm = AgentMemoryLLM(model=tiny_model, store="memory", session_id="s", max_tokens=4)
    assert "".join(llm.stream("one", session_id="other")) == llm.invoke("one")
    llm.invoke("two")
    llm.close()
    assert [turn.text for turn in turns() if turn.role == "user"] == ["one", "two"]


def test_a_bad_setting_is_said_at_the_first_call() -> None:
    with pytest.raises(ConfigError, match="device='huge'"):
        ChatAgentMemory(options={"device": "huge"}).invoke("one")


def test_options_with_a_typing_mistake_are_refused(chat: ChatAgentMemory) -> None:
    with pytest.raises(ValueError, match="no option 'temprature'; did you mean 'temperature'"):
        ChatAgentMemory(temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="a call of ChatAgentMemory has no option 'temprature'"):
        chat.invoke("one", temprature=1.0)
    with pytest.raises(ConfigError, match="not 'other'; make another ChatAgentMemory"):
        chat.invoke("one", model="other")


def test_options_go_by_the_names_langchain_uses() -> None:
    standard: dict[str, Any] = {"timeout": 3, "api_key": "k", "max_retries": 2, "streaming": True, "base_url": "u"}
    made = ChatAgentMemory(**standard, model_name="m", stop_sequences=["x"])  # type: ignore[call-arg]
    assert (made.model, made.stop, made.cache) == ("m", ["x"], False)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_only_what_was_configured_is_written_down(chat: ChatAgentMemory) -> None:
    made = ChatAgentMemory(model="m", store="sqlite://user:secret@host/db", session_id="s", temperature=0.5)
    again = load(dumpd(made), allowed_objects=[ChatAgentMemory], valid_namespaces=["langchain_agent_memory"])
    assert again.asdict() == made.asdict() and again.session_id == "s"
    assert "secret" not in str(made._identifying_params) and "host/db" in str(made._identifying_params)


def test_it_says_what_it_can_do(chat: ChatAgentMemory) -> None:
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == 1_000_000_000 and chat.profile["max_output_tokens"] == 4
    traced = chat._get_ls_params(stop=["x"], max_tokens=7)
    assert (traced["ls_provider"], traced["ls_max_tokens"], traced["ls_stop"]) == ("agent_memory", 7, ["x"])


def test_tokens_are_counted_as_the_model_reads_them(chat: ChatAgentMemory) -> None:
    talk: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    usage = chat.invoke(talk).usage_metadata
    assert usage is not None and chat.get_num_tokens_from_messages(talk) == usage["input_tokens"]
    assert chat.get_num_tokens("one two") == len(chat.get_token_ids("one two")) > 0


def test_importing_and_making_one_loads_no_torch() -> None:
    code = "import sys, langchain_agent_memory as l; l.ChatAgentMemory(); l.AgentMemoryLLM(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
