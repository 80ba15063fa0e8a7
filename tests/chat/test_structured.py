"""From what is asked of a reply to what holds it to that, and what is said where nothing can."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from agent_memory.chat import ChatFormat
from agent_memory.errors import ConfigError
from agent_memory.model import constrain
from agent_memory.model.constrain import Grammars
from agent_memory.structured import StructuredReplies
from agent_memory.types import ReplyFormat
from tests.chat.builders import CHATML, byte_level, make
from tests.model.constrained import Said, fits, marked, small

ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
GET = {"type": "object", "properties": {"key": {"enum": ["fox", "dog"]}}, "required": ["key"]}
ANSWER = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
SET = {"type": "object", "properties": {"all": {"type": "array", "uniqueItems": True}}, "required": ["all"]}


def tool(name: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Do.", "parameters": parameters}}


TOOLS = [tool("add", ADD), tool("get", GET)]
BAD = [
    ({"type": "object", "properties": {"x": {"not": {"type": "string"}}}}, 'Unimplemented keys: ["not"]'),
    (SET, 'Unimplemented keys: ["uniqueItems"]'),
    ({"type": "object", "properties": {"x": {"type": "string", "pattern": "(?<!a)b"}}}, "look-around"),
]


@cache
def structured() -> StructuredReplies:
    return StructuredReplies(small().chat, small().grammars)


Called = list[tuple[str, dict[str, Any]]]


def reply(wanted: ReplyFormat, seed: int = 0, budget: int = 90, tools: Any = TOOLS, **liked: float) -> tuple[Called, str, Said]:
    """(calls of a random reply, its text, itself)"""
    held = structured().processor(wanted, tools, budget)
    assert held is not None
    said = small().say(held, small().noise(seed, liked), budget)
    parsed = small().chat.parse(said.ids, said.text)
    return [(call.name, dict(call.arguments)) for call in parsed.tool_calls], parsed.content, said


@pytest.mark.parametrize("seed", range(3))
def test_required_is_calls_and_nothing_else(seed: int) -> None:
    calls, text, _ = reply(ReplyFormat("required"), seed, 130, **{"\n": 30.0})
    assert calls and not text
    assert all(fits({"add": ADD, "get": GET}[name], arguments) for name, arguments in calls)


def test_parallel_is_asked_for() -> None:
    counts = {parallel: len(reply(ReplyFormat("required", parallel=parallel), 0, 130, **{"\n": 30.0})[0]) for parallel in (True, False)}
    assert counts[False] == 1 < counts[True]


@pytest.mark.parametrize("name", ["add", "get"])
def test_a_name_is_one_call_of_that_tool(name: str) -> None:
    calls, text, _ = reply(ReplyFormat(name), 1, 130, **{"\n": 30.0})
    assert [called for called, _ in calls] == [name] and not text


@pytest.mark.parametrize("seed", range(2))
def test_none_is_text(seed: int) -> None:
    calls, text, said = reply(ReplyFormat("none"), seed, 40, **{"<tool_call>": 60.0, "{": 9.0})
    assert not calls and text == said.text and "<tool_call>" not in text


def test_auto_is_text_or_calls_or_both() -> None:
    calls, text, said = reply(ReplyFormat(), 0, 30, tool=-60.0)
    assert not calls and text == said.text
    calls, text, _ = reply(ReplyFormat(), 0, 90, **{"<tool_call>": 60.0})
    assert calls and not text
    held = structured().processor(ReplyFormat(), TOOLS, 90)
    assert held is not None
    said = small().say(held, small().script("the fox. <tool_call> and"), 90)
    assert said.text.startswith("the fox. <tool_call>\n{")
    parsed = small().chat.parse(said.ids, said.text)
    assert parsed.content == "the fox." and len(parsed.tool_calls) == 1


def test_a_schema_is_what_is_said_instead_of_text() -> None:
    for choice, tools in (("none", TOOLS), ("auto", []), ("none", [])):
        calls, text, _ = reply(ReplyFormat(choice, schema=ANSWER), 2, 60, tools)
        assert not calls and fits(ANSWER, json.loads(text))
    calls, text, _ = reply(ReplyFormat(schema=ANSWER), 2, 90, **{"{": 30.0})
    assert not calls and text.startswith('{"answer": ')
    calls, text, _ = reply(ReplyFormat(schema=ANSWER), 2, 90, **{"<tool_call>": 60.0})
    assert calls and not text


@pytest.mark.parametrize(
    "wanted",
    [ReplyFormat(), ReplyFormat("none"), ReplyFormat(strict=True), ReplyFormat("none", parallel=False)],
)
def test_nothing_has_to_be_held_where_nothing_can_be_called(wanted: ReplyFormat) -> None:
    assert structured().processor(wanted, [], 10) is None


def test_tools_may_be_described_in_other_shapes() -> None:
    flat = {"name": "add", "description": "Add.", "parameters": ADD}
    calls, _, _ = reply(ReplyFormat("required", parallel=False), 0, 90, [flat])
    assert calls[0][0] == "add" and fits(ADD, calls[0][1])
    for any_object in (tool("any", None), tool("any", {})):
        held = structured().processor(ReplyFormat("any"), [any_object], 90)
        assert held is not None
        said = small().say(held, small().script('<tool_call>\n{"name": "any", "arguments": {"x": [1]}}\n</tool_call>'), 90)
        assert [dict(call.arguments) for call in small().chat.parse(said.ids).tool_calls] == [{"x": [1]}]


@pytest.mark.parametrize("choice", ["required", "add"])
def test_a_choice_without_tools_is_refused(choice: str) -> None:
    with pytest.raises(ConfigError, match=f"tool_choice='{choice}' needs tools, and this session has none"):
        structured().processor(ReplyFormat(choice), [], 50)


def test_an_unknown_tool_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigError, match="tool_choice='sub' is not a tool of this session; its tools are: add, get"):
        structured().processor(ReplyFormat("sub"), TOOLS, 50)


def test_too_few_tokens_are_refused() -> None:
    for wanted in (ReplyFormat("required"), ReplyFormat("add"), ReplyFormat("none", schema=ANSWER)):
        with pytest.raises(ConfigError, match="max_new_tokens=3 cannot hold the shortest such reply, which takes [0-9]+ tokens; raise it"):
            structured().processor(wanted, TOOLS, 3)
    assert structured().processor(ReplyFormat(), TOOLS, 1) is not None


@pytest.mark.parametrize(("schema", "why"), BAD)
def test_a_schema_that_cannot_be_enforced_is_an_error_where_it_has_to_be(schema: dict[str, Any], why: str) -> None:
    tools = [tool("add", ADD), tool("odd", schema)]
    for wanted in (ReplyFormat("required"), ReplyFormat("odd"), ReplyFormat(strict=True)):
        with pytest.raises(ConfigError, match="the arguments of tool 'odd' cannot be held to their schema: ") as caught:
            structured().processor(wanted, tools, 50)
        assert why in str(caught.value)
    for wanted in (ReplyFormat(schema=schema), ReplyFormat("none", schema=schema)):
        with pytest.raises(ConfigError, match="the schema of the reply cannot be enforced: ") as caught:
            structured().processor(wanted, tools, 50)
        assert why in str(caught.value)
    calls, _, _ = reply(ReplyFormat("add"), 0, 90, tools)
    assert calls[0][0] == "add"


def test_by_default_the_arguments_of_such_a_tool_are_any_object() -> None:
    tools = [tool("add", ADD), tool("odd", SET)]
    with pytest.warns(UserWarning, match="tool 'odd' cannot be held to their schema: .*uniqueItems.*; they are any JSON object"):
        held = structured().processor(ReplyFormat(), tools, 90)
    assert held is not None
    said = small().say(held, small().script('<tool_call>\n{"name": "odd", "arguments": {"any": "thing"}}\n</tool_call>'), 90)
    assert [dict(call.arguments) for call in small().chat.parse(said.ids).tool_calls] == [{"any": "thing"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = [call for seed in range(3) for call in reply(ReplyFormat(), seed, 90, tools, **{"<tool_call>": 60.0})[0]]
    assert all(fits(ADD, arguments) for name, arguments in calls if name == "add")


def test_without_llguidance_only_what_has_to_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "find_spec", lambda name: None)
    for wanted in (ReplyFormat(), ReplyFormat("none"), ReplyFormat(parallel=False)):
        assert structured().processor(wanted, TOOLS, 50) is None
    for wanted in (ReplyFormat("required"), ReplyFormat("add"), ReplyFormat(strict=True), ReplyFormat("none", schema=ANSWER)):
        with pytest.raises(ConfigError, match="pip install 'agent-kv-memory\\[structured\\]'"):
            structured().processor(wanted, TOOLS, 50)


def test_a_slow_tokenizer_is_refused() -> None:
    tokenizer = make(byte_level, CHATML, "<|im_end|>")

    class Slow:
        is_fast = False

        def __len__(self) -> int:
            return len(tokenizer)

    held = StructuredReplies(ChatFormat(tokenizer), Grammars(Slow(), 9, [1]))  # type: ignore[arg-type]
    assert held.processor(ReplyFormat(), TOOLS, 50) is None
    with pytest.raises(ConfigError, match="needs a fast tokenizer"):
        held.processor(ReplyFormat("required"), TOOLS, 50)


def test_a_form_that_cannot_be_read_back_holds_nothing() -> None:
    model = marked(CHATML, "<|im_end|>", "added")
    vars(model.chat)["call_form"] = None
    held = StructuredReplies(model.chat, model.grammars)
    assert held.processor(ReplyFormat(), TOOLS, 50) is None
    with pytest.raises(ConfigError, match="in a form that cannot be read back"):
        held.processor(ReplyFormat("required"), TOOLS, 50)
    assert held.processor(ReplyFormat("none", schema=ANSWER), TOOLS, 50) is not None
