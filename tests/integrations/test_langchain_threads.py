"""A configuration's thread names the Session, on every path through LangChain; threads do not mix, and can be copied and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from agent_memory.errors import HistoryRewritten, InvalidHistory, SessionBusy, SessionExists
from agent_memory.store.store import Store
from langchain_agent_memory import AgentMemoryLLM, ChatAgentMemory

ONE = [HumanMessage("one")]


@pytest.fixture
def chat(tiny_model: str) -> Iterator[ChatAgentMemory]:
    made = ChatAgentMemory(model=tiny_model, store="memory", max_tokens=4, options={"window": 1024})
    yield made
    made.close()


def names(namespace: str = "default") -> list[str]:
    with Store.open("memory") as store:
        return [info.name for info in store.sessions(namespace, branches=True)]


def config(thread: str = "t") -> Any:
    return {"configurable": {"thread_id": thread}}


def count(name: str) -> int:
    """Count things."""
    return len(name)


def _graph(chat: ChatAgentMemory) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [chat.invoke(state["messages"])]})
    graph.add_edge(START, "model")
    return graph.compile(checkpointer=InMemorySaver())


async def _all(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


async def _events_v3(chat: ChatAgentMemory) -> Any:
    return await (await chat.astream_events(ONE, config(), version="v3")).output


def _agent(chat: ChatAgentMemory) -> Any:
    return create_agent(chat, [count], checkpointer=InMemorySaver())


PATHS: dict[str, Callable[[ChatAgentMemory], Any]] = {
    "invoke": lambda chat: chat.invoke(ONE, config()),
    "stream": lambda chat: list(chat.stream(ONE, config())),
    "batch": lambda chat: chat.batch([ONE], config()),
    "ainvoke": lambda chat: asyncio.run(chat.ainvoke(ONE, config())),
    "astream": lambda chat: asyncio.run(_all(chat.astream(ONE, config()))),
    "abatch": lambda chat: asyncio.run(chat.abatch([ONE], config())),
    "bound tools": lambda chat: chat.bind_tools([count]).invoke(ONE, config()),
    "bound options": lambda chat: chat.bind(temperature=0.0).invoke(ONE, config()),
    "with_config": lambda chat: chat.with_config(config()).invoke(ONE),
    "with_retry": lambda chat: chat.with_retry().invoke(ONE, config()),
    "with_structured_output": lambda chat: chat.with_structured_output(
        {"title": "T", "type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}, max_tokens=20
    ).invoke(ONE, config()),
    "configurable fields": lambda chat: chat.configurable_fields(max_tokens=ConfigurableField(id="most")).invoke(ONE, config()),
    "prompt | model": lambda chat: (ChatPromptTemplate.from_messages([("human", "{x}")]) | chat).invoke({"x": "one"}, config()),
    "inside a function": lambda chat: _function(chat).invoke("one", config()),
    "events v2": lambda chat: asyncio.run(_all(chat.astream_events(ONE, config(), version="v2"))),
    "events v3": lambda chat: chat.stream_events(ONE, config(), version="v3").output,
    "async events v3": lambda chat: asyncio.run(_events_v3(chat)),
    "graph node": lambda chat: _graph(chat).invoke({"messages": ONE}, config()),
    "agent": lambda chat: _agent(chat).invoke({"messages": ONE}, config()),
    "agent, async": lambda chat: asyncio.run(_agent(chat).ainvoke({"messages": ONE}, config())),
    "agent, streamed": lambda chat: list(_agent(chat).stream({"messages": ONE}, config())),
    "plain model": lambda chat: _plain(chat).invoke("one", config()),
    "plain model, batch": lambda chat: _plain(chat).batch(["one"], [config()]),
    "plain model, async": lambda chat: asyncio.run(_plain(chat).ainvoke("one", config())),
    "plain model, streamed": lambda chat: list(_plain(chat).stream("one", config())),
}


def _function(chat: ChatAgentMemory) -> RunnableLambda[str, AIMessage]:
    return RunnableLambda(lambda text: chat.invoke([HumanMessage(str(text))]))


def _plain(chat: ChatAgentMemory) -> AgentMemoryLLM:
    return AgentMemoryLLM(model=chat.model, store="memory", max_tokens=4, options=chat.options)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("path", PATHS)
def test_the_thread_reaches_the_model(path: str, chat: ChatAgentMemory) -> None:
    PATHS[path](chat)
    chat.close()
    assert names() == ["t"]


def test_what_names_the_session_first(chat: ChatAgentMemory) -> None:
    chat = chat.model_copy(update={"session_id": "field"})
    both: Any = {"configurable": {"thread_id": "thread", "memory_session": "memory"}}
    assert chat.invoke(ONE).response_metadata["agent_memory"]["session"] == "field"
    chat.invoke(ONE, config("thread"))
    chat.invoke(ONE, both)
    chat.invoke(ONE, both, session_id="call")
    chat.close()
    assert names() == ["call", "field", "memory", "thread"]


def test_a_configuration_names_the_namespace_too(chat: ChatAgentMemory) -> None:
    chat.invoke(ONE, {"configurable": {"thread_id": "t", "memory_namespace": "alice"}})
    chat.invoke(ONE, config())
    chat.close()
    assert (names("alice"), names()) == (["t"], ["t"])


def test_an_agent_may_be_copied_and_still_shares_its_model(chat: ChatAgentMemory, tiny_model: str) -> None:
    other = ChatAgentMemory(model=tiny_model, store="./memory", max_tokens=2, options={"window": 1024})
    first = chat.invoke(ONE, config())
    second = other.invoke([*ONE, first, HumanMessage("two")], config())
    assert second.response_metadata["agent_memory"]["session"] == "t"
    assert chat._open()[0] is other._open()[0] is chat.model_copy()._open()[0]


def test_titles_and_sub_agents_on_the_same_thread_are_branches(chat: ChatAgentMemory) -> None:
    talk: list[BaseMessage] = [*ONE]
    for text in ("two", "three"):
        talk.append(chat.invoke(talk, config()))
        title = chat.invoke([SystemMessage("Write a title."), HumanMessage(f"About {text}")], config())
        assert title.response_metadata["agent_memory"]["session"].startswith("t/")
        talk.append(HumanMessage(text))
    answer = chat.invoke(talk, config())
    assert answer.response_metadata["agent_memory"]["session"] == "t"
    assert answer.usage_metadata is not None and answer.usage_metadata["input_token_details"]["cache_read"] > 0


def _talk(chat: ChatAgentMemory, turns: int) -> list[BaseMessage]:
    talk: list[BaseMessage] = []
    for number in range(turns):
        talk.append(HumanMessage(f"message {number}"))
        talk.append(chat.invoke(talk, config()))
    return talk


def test_a_trimmed_history_goes_on(chat: ChatAgentMemory) -> None:
    talk = _talk(chat, 4)
    last = talk[-1].response_metadata["agent_memory"]
    answer = chat.invoke([*talk[-3:], HumanMessage("next")], config())
    facts, usage = answer.response_metadata["agent_memory"], answer.usage_metadata
    assert facts["session"] == "t" and usage is not None
    assert usage["input_token_details"]["cache_read"] == last["tokens"]


def test_a_trimmed_history_may_be_a_branch_or_refused(chat: ChatAgentMemory) -> None:
    talk = [*_talk(chat, 4)[-3:], HumanMessage("next")]
    with pytest.raises(InvalidHistory, match="the beginning of what session 't' holds is missing"):
        chat.model_copy(update={"on_trim": "error"}).invoke(talk, config())
    answer = chat.model_copy(update={"on_trim": "fork"}).invoke(talk, config())
    assert answer.response_metadata["agent_memory"]["session"] == "t/1"


def test_a_rewritten_history_is_a_branch_and_is_told(chat: ChatAgentMemory) -> None:
    talk = _talk(chat, 3)
    cleared = [*talk[:2], HumanMessage("[cleared]"), *talk[3:], HumanMessage("next")]
    with pytest.warns(HistoryRewritten, match=r"message 3 \(user\) of the history of session 't' changed"):
        answer = chat.invoke(cleared, config())
    assert answer.response_metadata["agent_memory"]["session"] == "t/1"


def test_a_head_that_keeps_changing_is_told(chat: ChatAgentMemory) -> None:
    """Agents that hand over to each other have heads of their own; one that is new at every step reads everything again each time."""
    talk = _talk(chat, 2)
    for number in range(2):
        chat.invoke([SystemMessage(f"Agent {number}."), *talk, HumanMessage("next")], config())
    with pytest.warns(HistoryRewritten, match="the system prompt or the tools of the history of session"):
        chat.invoke([SystemMessage("Agent 2."), *talk, HumanMessage("next")], config())


def test_a_result_without_its_call_is_refused_by_name(chat: ChatAgentMemory) -> None:
    lost = ToolMessage("4", tool_call_id="c7", name="count")
    with pytest.raises(InvalidHistory, match="message 2 is the result of tool 'count' of the call 'c7', which no message before it makes"):
        chat.invoke([HumanMessage("one"), lost], config())
    call = AIMessage("", tool_calls=[{"name": "count", "args": {"name": "x"}, "id": "c7"}])
    assert chat.invoke([HumanMessage("one"), call, lost], config()).usage_metadata
    with pytest.raises(ValueError, match="c7"):
        chat.invoke([lost], config("other"))


def test_what_was_written_before_a_crash_of_the_client_is_a_branch(chat: ChatAgentMemory) -> None:
    talk = _talk(chat, 2)
    again = chat.invoke(talk[:-1], config())  # the answer never reached the checkpointer
    assert again.response_metadata["agent_memory"]["session"] == "t/1"
    assert again.content == talk[-1].content


def test_threads_are_forgotten_copied_and_pruned(chat: ChatAgentMemory) -> None:
    talk = _talk(chat, 2)
    chat.invoke([*talk[:2], HumanMessage("another way")], config())
    chat.copy_thread("t", "copy")
    with pytest.raises(SessionExists):
        chat.copy_thread("t", "copy")
    answer = chat.invoke([*talk, HumanMessage("next")], config("copy"))
    assert answer.response_metadata["agent_memory"]["session"] == "copy"
    assert answer.usage_metadata is not None and answer.usage_metadata["input_token_details"]["cache_read"] > 0
    chat.prune(["t", "nobody"])
    asyncio.run(chat.adelete_thread("nobody"))
    assert chat.branches("t") == ["t/1"] and chat.branches("copy") == ["copy", "copy/1"]
    asyncio.run(chat.aprune(["copy"], strategy="delete"))
    chat.delete_thread("t")
    chat.copy_thread("nobody", "nothing")
    chat.close()
    assert names() == []


def test_a_thread_can_be_read_and_an_unknown_one_is_empty(chat: ChatAgentMemory) -> None:
    talk = _talk(chat, 1)
    assert [message.content for message in chat.thread_messages("t")] == [message.content for message in talk]
    assert chat.thread_messages("nobody") == []


def test_prune_goes_on_past_a_thread_that_is_in_use_elsewhere(chat: ChatAgentMemory) -> None:
    for thread in ("a", "b", "c"):
        chat.invoke(ONE, config(thread))
    runtime = chat._open()[0].runtime
    chat.close()
    with Store.open("memory") as store:
        with closing(store.session("b", model=runtime.model_id, layout=runtime.layout)):
            with pytest.raises(SessionBusy, match="'default/b' is in use by process"):
                chat.prune(["a", "b", "c"], strategy="delete")
        assert [info.name for info in store.sessions("default", branches=True)] == ["b"]
