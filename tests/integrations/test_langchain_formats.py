"""What replies can be held to through LangChain: tools in every form, schemas in every form, and how they are streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import add_ai_message_chunks
from pydantic import BaseModel, Field

from agent_memory.errors import ConfigError
from langchain_agent_memory import ChatAgentMemory
from langchain_agent_memory.formats import reply_format, tool_choice

ASK = [HumanMessage("Look up gate-keeper.")]


def lookup(name: str) -> str:
    """Look up a record."""
    return f"{name} version: 4.1"


def weigh(item: str, grams: int) -> str:
    """Weigh an item."""
    return f"{item}: {grams}"


class Card(BaseModel):
    """A card."""

    title: str = Field(description="What it says on top.")
    count: int
    open: bool


class CardDict(TypedDict):
    """A card."""

    title: str
    count: int


@pytest.fixture
def chat() -> Iterator[ChatAgentMemory]:
    made = ChatAgentMemory(store="memory", max_tokens=48, options={"window": 1024, "threads": 1})
    yield made
    made.close()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, "auto"), (False, "auto"), ("auto", "auto"), ("none", "none"), ("any", "required"), ("required", "required"),
        (True, "required"), ("lookup", "lookup"), ({"type": "function", "function": {"name": "lookup"}}, "lookup"),
        ({"type": "tool", "name": "lookup"}, "lookup"), ({"type": "any"}, "required"), ({"type": "auto"}, "auto"),
        ({"name": "lookup"}, "lookup"),
    ],
)  # fmt: skip
def test_every_form_of_tool_choice(given: Any, wanted: str) -> None:
    assert tool_choice(given, ["lookup"]) == wanted


def test_a_tool_choice_that_cannot_be_read_is_refused() -> None:
    for given, said in (
        (3, "cannot be read"),
        ({"type": 3}, "cannot be read"),
        ("other", "names no tool that is bound; bound are: lookup"),
    ):
        with pytest.raises(ConfigError, match=said):
            tool_choice(given, ["lookup"])


def test_every_form_of_response_format() -> None:
    schema = {"type": "object", "properties": {}}
    assert reply_format({}).schema is None
    assert reply_format({"response_format": {"type": "text"}}).schema is None
    assert reply_format({"response_format": {"type": "json_object"}}).schema == {"type": "object"}
    assert reply_format({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}).schema == schema
    with pytest.raises(ConfigError, match="response_format='json' cannot be read"):
        reply_format({"response_format": "json"})


@pytest.mark.parametrize("choice", ["any", "required", True, "weigh", {"type": "function", "function": {"name": "weigh"}}])
def test_a_call_can_be_forced_and_is_valid(chat: ChatAgentMemory, choice: Any) -> None:
    answer = chat.bind_tools([lookup, weigh], tool_choice=choice).invoke([HumanMessage("Hello.")])
    assert answer.tool_calls and not answer.invalid_tool_calls
    call = answer.tool_calls[0]
    fields = {"lookup": {"name": str}, "weigh": {"item": str, "grams": int}}[call["name"]]
    assert {name: type(value) for name, value in call["args"].items()} == fields
    assert choice in ("any", "required", True) or [found["name"] for found in answer.tool_calls] == ["weigh"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_calls_can_be_left_to_the_model_or_forbidden(chat: ChatAgentMemory) -> None:
    assert [call["args"] for call in chat.bind_tools([lookup]).invoke(ASK).tool_calls] == [{"name": "gate-keeper"}]
    assert chat.bind_tools([lookup], tool_choice="none").invoke(ASK).tool_calls == []
    assert len(chat.bind_tools([lookup], tool_choice="any", parallel_tool_calls=False).invoke(ASK).tool_calls) == 1


def test_calls_are_streamed_piece_by_piece(chat: ChatAgentMemory) -> None:
    chunks = [chunk for chunk in chat.bind_tools([lookup]).stream(ASK) if isinstance(chunk, AIMessageChunk)]
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert len(pieces) > 3 and pieces[0]["name"] == "lookup"
    assert json.loads("".join(piece["args"] or "" for piece in pieces)) == {"name": "gate-keeper"}
    whole = add_ai_message_chunks(*chunks)
    assert [call["args"] for call in whole.tool_calls] == [{"name": "gate-keeper"}]
    assert whole.tool_calls[0]["id"] and whole.content == ""


def test_content_blocks_are_the_standard_ones(chat: ChatAgentMemory) -> None:
    v1 = chat.model_copy(update={"output_version": "v1"})
    called = v1.bind_tools([lookup]).invoke(ASK)
    assert [block["type"] for block in called.content_blocks] == ["tool_call"]
    history: list[BaseMessage] = [*ASK, called, ToolMessage(lookup("gate-keeper"), tool_call_id=str(called.tool_calls[0]["id"]))]
    answer = v1.bind_tools([lookup]).invoke([*history, HumanMessage("What is the version of gate-keeper?")], session_id="s")
    assert answer.content_blocks[0]["type"] == "text" and "4.1" in str(answer.content_blocks[0])
    again = v1.bind_tools([lookup]).invoke([*history, HumanMessage("What is the version of gate-keeper?"), answer, *ASK], session_id="s")
    assert again.response_metadata["agent_memory"]["session"] == "s"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Card, CardDict, Card.model_json_schema()], ids=["pydantic", "typed dict", "json schema"])
def test_replies_are_of_the_schema(chat: ChatAgentMemory, schema: Any, method: Any) -> None:
    found = chat.with_structured_output(schema, method=method).invoke("Make a card.")
    card = found if isinstance(found, dict) else found.model_dump()
    assert isinstance(card["title"], str) and isinstance(card["count"], int)
    assert isinstance(found, Card) == (schema is Card)


def test_the_raw_reply_comes_with_it(chat: ChatAgentMemory) -> None:
    found = chat.with_structured_output(Card, include_raw=True, strict=True).invoke("Make a card.")
    assert set(found) == {"raw", "parsed", "parsing_error"}
    assert isinstance(found["raw"], AIMessage) and isinstance(found["parsed"], Card) and found["parsing_error"] is None
    assert Card.model_validate_json(str(found["raw"].content)) == found["parsed"]
    assert isinstance(asyncio.run(chat.with_structured_output(Card).ainvoke("Make a card.")), Card)


def test_a_schema_does_not_change_what_is_remembered(chat: ChatAgentMemory) -> None:
    first = chat.invoke([HumanMessage("Note: gate colour is blue")], session_id="s")
    asked = [HumanMessage("Note: gate colour is blue"), first, HumanMessage("What is the colour of gate?")]
    raw = chat.with_structured_output(Card, include_raw=True).invoke(asked, {"configurable": {"thread_id": "s"}})["raw"]
    assert raw.response_metadata["agent_memory"]["session"] == "s"
    assert raw.usage_metadata["input_token_details"]["cache_read"] == first.response_metadata["agent_memory"]["tokens"]


def test_what_cannot_be_enforced_says_why(chat: ChatAgentMemory) -> None:
    hard = {"title": "hard", "type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "hard", "description": "H.", "parameters": hard}}
    with pytest.raises(ConfigError, match="the schema of the reply cannot be enforced: .*uniqueItems"):
        chat.with_structured_output(hard).invoke("x")
    with pytest.raises(ConfigError, match="the arguments of tool 'hard' cannot be held to their schema: .*uniqueItems"):
        chat.bind_tools([tool], tool_choice="any").invoke("x")
    with pytest.raises(ConfigError, match="method='yaml' cannot be used"):
        chat.with_structured_output(Card, method="yaml")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="the arguments of tool 'hard' .* they are any JSON object"):
        chat.bind_tools([tool]).invoke("x")


@pytest.mark.parametrize("strategy", [Card, ToolStrategy(Card), ProviderStrategy(Card)], ids=["auto", "tool", "provider"])
def test_an_agent_ends_in_a_schema(chat: ChatAgentMemory, strategy: Any) -> None:
    state = create_agent(chat, [], response_format=strategy).invoke({"messages": ASK})
    assert isinstance(state["structured_response"], Card)
