"""LangChain's agents on the pocket model: only what is new is read, whatever happens to the thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver

from agent_memory.pocket import data
from langchain_agent_memory import ChatAgentMemory
from tests.integrations.records import lookup_tool, records

THREAD: Any = {"configurable": {"thread_id": "long"}}
GROUP = 16
"""Tokens that share a choice of Blocks: a group that is not whole is read again."""


@pytest.fixture
def chat() -> Iterator[ChatAgentMemory]:
    made = ChatAgentMemory(store="memory", max_tokens=64, options={"threads": 1})
    yield made
    made.close()


@pytest.mark.parametrize("steps", [12, pytest.param(200, marks=pytest.mark.campaign)])
def test_an_agent_of_many_tool_steps_reads_each_token_once(chat: ChatAgentMemory, steps: int) -> None:
    known = records(steps)
    answers: list[AIMessage] = []

    def open_agent() -> tuple[Any, SqliteSaver]:
        saver = SqliteSaver.from_conn_string("checkpoints.sqlite")
        opened = saver.__enter__()
        return create_agent(chat, [lookup_tool(known)], checkpointer=opened), saver  # type: ignore[return-value]

    agent, saver = open_agent()
    for number, record in enumerate(known):
        if number == steps // 2:  # a restart: nothing is left but what is on disk
            saver.__exit__(None, None, None)  # type: ignore[attr-defined]
            chat.close()
            agent, saver = open_agent()
        state = agent.invoke({"messages": [HumanMessage(data.lookup(record.name))]}, THREAD)
        answers += _new_answers(state["messages"])
    calls = [call for answer in answers for call in answer.tool_calls]
    assert sum(call["args"] == {"name": record.name} for call, record in zip(calls, known, strict=False)) >= 0.9 * steps
    _each_step_reads_what_is_new(answers)

    early = known[2]
    field, value = next(iter(early.fields.items()))
    state = agent.invoke({"messages": [HumanMessage(data.question(early.name, field))]}, THREAD)
    assert value in state["messages"][-1].content

    _time_travel_is_a_branch(agent, state, steps)
    saver.__exit__(None, None, None)  # type: ignore[attr-defined]


def _new_answers(messages: list[Any]) -> list[AIMessage]:
    last = max(at for at, message in enumerate(messages) if isinstance(message, HumanMessage))
    return [message for message in messages[last:] if isinstance(message, AIMessage)]


def _each_step_reads_what_is_new(answers: list[AIMessage]) -> None:
    """What is read is what was appended, the reply before (as part of the text), and what was left of a group."""
    tokens, reply = 0, 0
    for answer in answers:
        usage, facts = answer.usage_metadata, answer.response_metadata["agent_memory"]
        assert usage is not None and facts["session"] == "long"
        held, added = usage["input_token_details"]["cache_read"], usage["input_token_details"]["cache_creation"]
        assert held == tokens, "a message was appended twice, or to another branch"
        assert facts["prefilled"] <= added + reply + 2 * GROUP
        tokens, reply = facts["tokens"], facts["tokens"] - held - added


def _time_travel_is_a_branch(agent: Any, state: dict[str, Any], steps: int) -> None:
    past = [found for found in agent.get_state_history(THREAD) if len(found.values.get("messages", ())) == 8][0]
    again = agent.invoke({"messages": [HumanMessage("Note: gate colour is blue")]}, past.config)
    facts = _new_answers(again["messages"])[-1].response_metadata["agent_memory"]
    assert facts["session"] == "long/1"
    usage = again["messages"][-1].usage_metadata
    assert usage["input_token_details"]["cache_read"] < state["messages"][-1].usage_metadata["input_token_details"]["cache_read"]
    assert usage["input_token_details"]["cache_creation"] < 40
