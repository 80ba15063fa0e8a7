"""Many calls at once through LangChain: nothing mixes, nothing waits for itself, and the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from agent_memory.errors import SessionBusy
from agent_memory.pocket import data
from langchain_agent_memory import ChatAgentMemory
from tests.integrations.records import records

ONE = [HumanMessage("one")]


@pytest.fixture
def chat(tiny_model: str) -> Iterator[ChatAgentMemory]:
    made = ChatAgentMemory(model=tiny_model, store="memory", max_tokens=4, options={"window": 1024})
    yield made
    made.close()


def config(thread: str = "t") -> Any:
    return {"configurable": {"thread_id": thread}}


def test_many_at_once_on_their_own_threads_do_not_mix(chat: ChatAgentMemory) -> None:
    async def run() -> list[AIMessage]:
        return await asyncio.gather(*(chat.ainvoke([HumanMessage(f"canary {number}")], config(f"t{number}")) for number in range(8)))

    asyncio.run(run())
    for number in range(8):
        asked, answered = chat.thread_messages(f"t{number}")
        assert asked.content == f"canary {number}" and isinstance(answered, AIMessage)
    alone = [chat.invoke([HumanMessage(f"canary {number}")], config(f"alone{number}")) for number in range(8)]
    assert [message.content for message in alone] == [chat.thread_messages(f"t{number}")[1].content for number in range(8)]


@pytest.mark.parametrize("device", ["10MiB", "64MiB"], ids=["room for one", "room for all"])
def test_long_memories_side_by_side_answer_as_one_after_the_other(device: str, tmp_path: Path) -> None:
    """Beyond the window, with and without room on the device for what all of them want."""
    known = records(40)
    chats = [ChatAgentMemory(store=str(tmp_path / name), max_tokens=24, options={"device": device, "threads": 1}) for name in ("a", "b")]

    def asked(number: int) -> list[BaseMessage]:
        told = [HumanMessage("\n".join(data.render(record, "lines") for record in known[number * 10 : number * 10 + 10])) for _ in range(4)]
        record = known[number * 10]
        return [*told, HumanMessage(data.question(record.name, next(iter(record.fields))))]

    async def together() -> list[AIMessage]:
        return await asyncio.gather(*(chats[0].ainvoke(asked(number), config(f"t{number}")) for number in range(4)))

    side_by_side = asyncio.run(together())
    alone = [chats[1].invoke(asked(number), config(f"t{number}")) for number in range(4)]
    for chat in chats:
        chat.close()
    assert [answer.content for answer in side_by_side] == [answer.content for answer in alone]
    recalled = [answer.response_metadata["agent_memory"]["recalled"] for answer in alone]
    assert all(recalled) and [answer.response_metadata["agent_memory"]["recalled"] for answer in side_by_side] == recalled


def test_many_at_once_on_one_thread_queue_and_fork(chat: ChatAgentMemory) -> None:
    async def run() -> list[AIMessage]:
        return await asyncio.gather(*(chat.ainvoke([HumanMessage(f"canary {number}")], config()) for number in range(8)))

    answers = asyncio.run(run())
    branches = [answer.response_metadata["agent_memory"]["session"] for answer in answers]
    assert sorted(branches) == ["t", *(f"t/{number}" for number in range(1, 8))]
    for number, branch in enumerate(branches):
        asked, answered = chat.thread_messages("t", branch=branch)
        assert (asked.content, answered.content) == (f"canary {number}", answers[number].content)


def test_the_event_loop_goes_on_meanwhile(chat: ChatAgentMemory) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def run() -> int:
        heart = asyncio.create_task(beat())
        await asyncio.gather(*(chat.ainvoke([HumanMessage("x")], config(f"t{number}"), max_tokens=16) for number in range(4)))
        heart.cancel()
        return beats

    assert asyncio.run(run()) > 100  # the loop would turn once or twice for a reply if it were blocked


def test_a_cancelled_call_leaves_the_question_only(chat: ChatAgentMemory) -> None:
    async def leave() -> None:
        stream = chat.astream(ONE, config(), max_tokens=200)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert [message.content for message in chat.thread_messages("t")] == ["one"]


def test_a_call_that_waits_can_be_cancelled(chat: ChatAgentMemory) -> None:
    stream = chat.stream(ONE, config(), max_tokens=200)
    next(stream)

    async def wait() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.ainvoke([HumanMessage("two")], config()), 0.2)

    asyncio.run(wait())
    stream.close()  # type: ignore[attr-defined]
    assert [message.content for message in chat.thread_messages("t")] == ["one"]


def test_a_stream_that_this_thread_reads_is_not_waited_for(chat: ChatAgentMemory) -> None:
    stream = chat.stream(ONE, config(), max_tokens=200)
    next(stream)
    with pytest.raises(SessionBusy, match="still streaming"):
        chat.invoke(ONE, config())
    assert chat.invoke(ONE, config("other")).usage_metadata
    stream.close()  # type: ignore[attr-defined]


def test_no_thread_is_left_behind(chat: ChatAgentMemory) -> None:
    asyncio.run(chat.ainvoke(ONE, config()))
    left = [thread for thread in threading.enumerate() if thread.name == "agent_memory"]
    for thread in left:  # it ends by itself, but may have given its answer just before
        thread.join(30)
    assert not any(thread.is_alive() for thread in left)
