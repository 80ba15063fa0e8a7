"""The LlamaIndex wrapper, on a tiny random model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.llms.agent_memory import AgentMemory

from agent_memory.errors import ConfigError
from agent_memory.store.store import Store
from agent_memory.types import Turn


@pytest.fixture
def llm(tiny_model: str) -> Iterator[AgentMemory]:
    made = AgentMemory(model=tiny_model, store="memory", session_id="s", max_tokens=4)
    yield made
    made.close()


def turns(name: str = "s") -> list[Turn]:
    with Store.open("memory") as store:
        return store.turns(name)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def test_chat_takes_a_whole_conversation(llm: AgentMemory) -> None:
    first = llm.chat([ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), user("one")])
    second = llm.chat([ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), user("one"), first.message, user("two")])
    assert first.additional_kwargs["cache_read_tokens"] == 0
    assert second.additional_kwargs["cache_read_tokens"] >= first.additional_kwargs["total_tokens"]
    assert second.additional_kwargs["completion_tokens"] > 0
    llm.close()
    assert [turn.role for turn in turns()] == ["system", "user", "assistant", "user", "assistant"]


def test_complete_takes_one_new_message(llm: AgentMemory) -> None:
    llm.complete("one")
    llm.complete("two")
    llm.close()
    assert [turn.text for turn in turns() if turn.role == "user"] == ["one", "two"]


def test_streaming_gives_the_same_text(llm: AgentMemory) -> None:
    whole = llm.chat([user("one")], session_id="a").message.content
    responses = list(llm.stream_chat([user("one")], session_id="b"))
    assert "".join(response.delta or "" for response in responses) == responses[-1].message.content == whole
    assert responses[-1].additional_kwargs["completion_tokens"] > 0
    assert list(llm.stream_complete("one", session_id="c"))[-1].text == whole


def test_async_gives_the_same_text(llm: AgentMemory) -> None:
    async def all_four() -> list[str | None]:
        texts = [(await llm.achat([user("one")], session_id="a")).message.content]
        texts.append((await llm.acomplete("one", session_id="b")).text)
        texts.append([part async for part in await llm.astream_chat([user("one")], session_id="c")][-1].message.content)
        texts.append([part async for part in await llm.astream_complete("one", session_id="d")][-1].text)
        return texts

    assert len(set(asyncio.run(all_four()))) == 1


def test_nothing_asks_llama_index_to_trim(llm: AgentMemory) -> None:
    assert llm.metadata.context_window >= 10**9
    assert llm.metadata.is_chat_model


def test_what_is_no_text_is_refused(llm: AgentMemory) -> None:
    with pytest.raises(ConfigError, match="cannot be remembered"):
        llm.chat([ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="http://localhost/x.png")])])


def test_importing_and_making_one_loads_no_torch() -> None:
    code = "import sys; from llama_index.llms.agent_memory import AgentMemory; AgentMemory(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
