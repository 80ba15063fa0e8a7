"""LlamaIndex's memory in a Session: it never trims, is there again after a restart, and says what is not."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import FunctionTool
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryBuffer, AgentMemoryCustomLLM

from agent_memory.errors import ConfigError
from tests.integrations.llama_index_probes import user


@pytest.fixture
def memory(llm: AgentMemory) -> AgentMemoryBuffer:
    return AgentMemoryBuffer.from_defaults(llm)


def texts(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


def again(memory: AgentMemoryBuffer) -> AgentMemoryBuffer:
    """The memory as another process finds it."""
    memory.llm.close()
    return AgentMemoryBuffer.from_defaults(llm=AgentMemory(store=memory.llm.store), session_id=memory.session_id)


def talk(memory: AgentMemoryBuffer, *questions: str) -> None:
    for question in questions:
        memory.put(user(question))
        memory.put(memory.llm.chat(memory.get()).message)


def test_it_holds_whatever_is_put(memory: AgentMemoryBuffer) -> None:
    for number in range(300):
        memory.put(user(f"{number} " + "word " * 100))
    assert len(memory.get()) == len(memory.get(input="a question", initial_token_count=10**6)) == len(memory.get_all()) == 300


async def test_the_async_ways_are_the_sync_ones(memory: AgentMemoryBuffer) -> None:
    await memory.aput(user("one"))
    await memory.aput_messages([user("two"), user("three")])
    memory.put_messages([user("four")])
    assert texts(await memory.aget()) == texts(await memory.aget_all()) == texts(memory.get()) == ["one", "two", "three", "four"]
    await memory.aset([user("five")])
    assert texts(memory.get()) == ["five"]
    await memory.areset()
    assert memory.get() == []
    for name in ("get", "get_all", "put", "put_messages", "set", "reset"):
        assert inspect.iscoroutinefunction(getattr(memory, f"a{name}")) and callable(getattr(BaseMemory, name))


def test_what_comes_out_is_what_went_in_and_the_list_is_a_copy(memory: AgentMemoryBuffer) -> None:
    message = user("one")
    memory.put(message)
    memory.get().append(user("two"))
    assert memory.get_all()[0] is message and len(memory.get()) == 1


def test_it_is_there_after_a_restart(memory: AgentMemoryBuffer) -> None:
    talk(memory, "Note: a-tool version: 4.1.7", "What is the version of a-tool?")
    found = again(memory)
    assert texts(found.get()) == texts(memory.get()) and [message.role for message in found.get()] == [
        MessageRole.USER, MessageRole.ASSISTANT, MessageRole.USER, MessageRole.ASSISTANT,
    ]  # fmt: skip
    talk(found, "What is the version of a-tool?")
    assert found.get()[-1].content == "a-tool version: 4.1.7"
    assert found.llm._open()[0].branches(found.session_id) == [found.session_id]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_the_tools_of_an_agent_are_there_after_a_restart(memory: AgentMemoryBuffer) -> None:
    tool = FunctionTool.from_defaults(lambda name: f"{name} version: 4.1.7", name="lookup", description="Look up a record.")
    await FunctionAgent(tools=[tool], llm=memory.llm).run("Look up inventory-sync.", memory=memory)
    found = again(memory)
    assert [(message.role, message.content) for message in found.get()] == [(message.role, message.content) for message in memory.get()]
    calls = [[block for block in message.blocks if isinstance(block, ToolCallBlock)] for message in (memory.get()[1], found.get()[1])]
    assert calls[0] == calls[1] and found.get()[2].additional_kwargs["tool_call_id"] == calls[1][0].tool_call_id
    output: Any = await FunctionAgent(tools=[tool], llm=found.llm).run("What is the version of inventory-sync?", memory=found)
    assert output.response.content == "inventory-sync version: 4.1.7"
    assert found.llm._open()[0].branches(found.session_id) == [found.session_id]


def test_what_no_model_was_asked_about_is_not(memory: AgentMemoryBuffer) -> None:
    talk(memory, "one")
    memory.put(user("two"))
    assert texts(again(memory).get()) == texts(memory.get())[:2]


def test_a_reply_that_was_cut_off_leaves_the_question(memory: AgentMemoryBuffer) -> None:
    memory.put(user("What is the version of inventory-sync?"))
    reply = memory.llm.stream_chat(memory.get())
    next(reply)
    reply.close()
    assert texts(again(memory).get()) == ["What is the version of inventory-sync?"]


def test_put_before_get_goes_on_with_what_is_there(memory: AgentMemoryBuffer) -> None:
    talk(memory, "one")
    found = again(memory)
    found.put(user("two"))
    assert texts(found.get()) == [*texts(memory.get()), "two"]


def test_other_messages_are_a_branch_and_the_longest_is_found_again(memory: AgentMemoryBuffer) -> None:
    talk(memory, "one", "two")
    memory.set([user("other")])
    talk(memory, "another", "and another")
    assert memory.llm._open()[0].branches(memory.session_id) == [memory.session_id, f"{memory.session_id}/1"]
    assert texts(again(memory).get()) == texts(memory.get())


def test_reset_forgets_the_session_with_its_branches(memory: AgentMemoryBuffer) -> None:
    other = AgentMemoryBuffer.from_defaults(memory.llm, session_id=f"{memory.session_id}-other")
    talk(other, "mine")
    talk(memory, "one")
    memory.set([])
    talk(memory, "two")
    memory.reset()
    assert memory.get() == [] and again(memory).get() == []
    assert memory.llm._open()[0].branches(memory.session_id) == [] and texts(again(other).get())[0] == "mine"
    talk(memory, "three")
    assert len(again(memory).get()) == 2


def test_sessions_and_namespaces_are_apart(llm: AgentMemory) -> None:
    memories = [AgentMemoryBuffer.from_defaults(llm, namespace=tenant) for tenant in ("a", "b")]
    memories.append(AgentMemoryBuffer.from_defaults(llm, session_id=f"{llm.session_id}-c", namespace="a"))
    for number, memory in enumerate(memories):
        talk(memory, f"canary {number}")
        assert (memory.llm.session_id, memory.llm.namespace) == (memory.session_id, memory.namespace)
    found = [AgentMemoryBuffer.from_defaults(llm, session_id=one.session_id, namespace=one.namespace).get() for one in memories]
    assert [texts(messages)[0] for messages in found] == ["canary 0", "canary 1", "canary 2"] and {len(messages) for messages in found} == {
        2
    }


def test_a_history_may_be_given(llm: AgentMemory) -> None:
    talk(AgentMemoryBuffer.from_defaults(llm), "one")
    assert texts(AgentMemoryBuffer.from_defaults(llm, chat_history=[user("two")]).get()) == ["two"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AgentMemoryBuffer.from_defaults(AgentMemory()), "needs a session_id"),
        (lambda: AgentMemoryBuffer.from_defaults(MockLLM(), session_id="s"), "not MockLLM"),
        (lambda: AgentMemoryBuffer.from_defaults(AgentMemory(session_id="s"), token_limit=3), "no 'token_limit'"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_what_the_model_cannot_read_does_not_get_in(memory: AgentMemoryBuffer) -> None:
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="http://localhost/x.png")])
    for put in (memory.put, lambda message: memory.set([message])):
        with pytest.raises(ConfigError, match="image"):
            put(picture)
    assert memory.get() == []


@pytest.mark.parametrize("kind", [AgentMemory, AgentMemoryCustomLLM])
def test_its_configuration_finds_it_again(kind: type[AgentMemory], pocket: AgentMemory, own_folder: Path) -> None:
    memory = AgentMemoryBuffer.from_defaults(kind(store=pocket.store), session_id=own_folder.name)
    talk(memory, "one")
    for found in (AgentMemoryBuffer.from_dict(json.loads(memory.to_json())), copy.deepcopy(memory)):
        assert type(found.llm) is kind and found.to_dict() == memory.to_dict() and texts(found.get()) == texts(memory.get())
    assert set(memory.to_dict()) == {"class_name", "llm", "session_id", "namespace"}


async def test_two_that_read_it_first_at_once_lose_nothing(memory: AgentMemoryBuffer) -> None:
    talk(memory, "one")
    found = again(memory)
    await asyncio.gather(*(found.aput(user(f"put {number}")) for number in range(8)))
    assert texts(found.get())[:2] == texts(memory.get()) and sorted(map(str, texts(found.get())[2:])) == [
        f"put {number}" for number in range(8)
    ]


def test_a_chat_engine_talks_with_it(memory: AgentMemoryBuffer) -> None:
    engine = SimpleChatEngine.from_defaults(llm=memory.llm, memory=memory)
    engine.chat("Note: a-tool version: 4.1.7")
    assert str(engine.chat("What is the version of a-tool?")) == "a-tool version: 4.1.7"
    assert "".join(engine.stream_chat("What is the version of a-tool?").response_gen) == "a-tool version: 4.1.7"
    assert len(memory.get()) == 6 and memory.llm._open()[0].branches(memory.session_id) == [memory.session_id]
    engine.reset()
    assert memory.llm.session_messages() == []
