"""Replies are taken apart without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer

from agent_memory import pocket
from agent_memory.chat import ChatFormat, ParsedReply, split_stream
from agent_memory.chat.reply import parse_text

TokenizerOf = Callable[[str], Any]
ONE, TWO = '{"name": "add", "arguments": {"a": 1}}', '{"name": "get", "parameters": "{\\"b\\": [\\"x\\"]}"}'


def calls(reply: ParsedReply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for call in reply.tool_calls]


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "expected"),
    [
        ("Plain.", "Plain.", "", []),
        (" Plain.\n", " Plain.\n", "", []),
        (f"<tool_call>{ONE}</tool_call>", "", "", [("add", {"a": 1})]),
        (f"Hm.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{TWO}</tool_call>\n", "Hm.", "", [("add", {"a": 1}), ("get", {"b": ["x"]})]),
        (f"a <tool_call>{ONE}</tool_call> b", "a  b", "", [("add", {"a": 1})]),
        (f"<tool_call>{ONE}", "", "", [("add", {"a": 1})]),
        ('<tool_call>{"name": "now"}</tool_call>', "", "", [("now", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", "", [("f", {"a": "</tool_call>"})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "two\nlines"}}</tool_call>', "", "", [("f", {"a": "two\nlines"})]),
        ("<tool_call>{broken}</tool_call>", "<tool_call>{broken}</tool_call>", "", []),
        (f"<tool_call>{ONE} and</tool_call>", f"<tool_call>{ONE} and</tool_call>", "", []),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', "", []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "", []),
        ('<tool_call>{"name": "f", "arguments": "{"}</tool_call>', '<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "", []),
        (f"<tool_call>{{x</tool_call><tool_call>{ONE}</tool_call>", "<tool_call>{x</tool_call>", "", [("add", {"a": 1})]),
        ("<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, "", []),
        ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm.", []),
        ("Hm.\n</think>\n\nYes.", "Yes.", "Hm.", []),
        ("<think>\nHm", "", "Hm", []),
        (f"<think>Call <tool_call>?</think><tool_call>{ONE}</tool_call>", "", "Call <tool_call>?", [("add", {"a": 1})]),
        ("Say <think> aloud.", "Say <think> aloud.", "", []),
        ("", "", "", []),
    ],
)
def test_forms(text: str, content: str, reasoning: str, expected: list[Any]) -> None:
    reply = parse_text(text)
    assert (reply.content, reply.reasoning, calls(reply)) == (content, reasoning, expected)


def test_call_ids_differ_and_suit_strict_templates() -> None:
    ids = [call.id for _ in range(50) for call in parse_text(f"<tool_call>{ONE}</tool_call><tool_call>{ONE}</tool_call>").tool_calls]
    assert len(set(ids)) == 100 and all(len(item) == 9 and item.isalnum() for item in ids)


def test_ids_are_decoded_without_what_ends_them(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("chatml")
    chat = ChatFormat(tokenizer)
    ids = tokenizer.encode(f"Hm.<tool_call>{ONE}</tool_call><|im_end|>", add_special_tokens=False)
    assert calls(chat.parse(ids)) == calls(chat.parse(ids[:-1])) == [("add", {"a": 1})] and chat.parse(ids).content == "Hm."
    plain = tokenizer.encode("It is 42.<s><|im_end|>", add_special_tokens=False)
    assert chat.parse(plain).content.strip() == "It is 42."


def test_a_stop_string_cuts_what_is_read(custom: Any) -> None:
    from tests.chat.builders import CHATML

    tokenizer = custom(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>", "<|im_start|>"]})
    chat = ChatFormat(tokenizer)
    ids = tokenizer.encode(f"Hm.<tool_call>{ONE}</tool_call> and more.", add_special_tokens=False)
    call = f"<tool_call>{ONE}</tool_call>"
    visible = f"Hm.{call} and more."
    for text, content, count in ((visible, "Hm. and more.", 1), (f"Hm.{call} and", "Hm. and", 1), ("Hm.", "Hm.", 0), ("Other", "Other", 0)):
        reply = chat.parse(ids, text)
        assert (reply.content, len(reply.tool_calls)) == (content, count)
    plain = tokenizer.encode("It returns 42, not found.", add_special_tokens=False)
    for size in range(len("It returns 42, not found.")):
        assert chat.parse(plain, "It returns 42, not found."[:size]).content == "It returns 42, not found."[:size]


def test_what_was_appended_is_what_is_parsed(tokenizer_of: TokenizerOf) -> None:
    for name in ("chatml", "llama3"):
        tokenizer = tokenizer_of(name)
        chat = ChatFormat(tokenizer)
        generated = tokenizer.encode("It is 42.", add_special_tokens=False)
        assert chat.parse(generated + chat.closing(generated)).content.strip() == "It is 42."


RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<<", "close": ">>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}  # fmt: skip


def test_the_tokenizers_own_parser_comes_first(custom: Any) -> None:
    from tests.chat.builders import CHATML

    tokenizer = custom(CHATML)
    tokenizer.response_template = RESPONSE_TEMPLATE
    chat = ChatFormat(tokenizer)
    tools = [
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    ]  # fmt: skip
    ids = tokenizer.encode(f"<think>Hm.</think>Let me see.<<{ONE}>>\n<<{ONE}>><|im_end|>", add_special_tokens=False)
    reply = chat.parse(ids, tools=tools)
    assert (reply.content, reply.reasoning, calls(reply)) == ("Let me see.", "Hm.", [("add", {"a": 1})] * 2)
    broken = chat.parse(tokenizer.encode("Hm. <<{broken>><|im_end|>", add_special_tokens=False))
    assert broken.content == "Hm. <<{broken>>" and not broken.tool_calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_streams_are_split_as_they_come(size: int) -> None:
    text = "<think>a < b</think>So <b>: <tool_call>{x}</tool_call> done <tool"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    joined: dict[str, str] = {}
    for kind, piece in split_stream(pieces):
        joined[kind] = joined.get(kind, "") + piece
    assert joined == {"thought": "a < b", "text": "So <b>:  done <tool", "call": "{x}"}


def test_a_stream_is_not_held_back() -> None:
    assert list(split_stream(["one ", "two <", "b> three"])) == [("text", "one "), ("text", "two "), ("text", "<b> three")]
    assert list(split_stream(["a</think>b"], thinking=True)) == [("thought", "a"), ("text", "b")]


def test_thoughts_are_read_where_the_tokenizers_own_parser_knows_none() -> None:
    chat = ChatFormat(AutoTokenizer.from_pretrained(str(pocket.path())))
    text = "<think>\nHm.\n</think>\n\nFour."
    reply = chat.parse(chat._encoder.encode(text), text)
    assert (reply.reasoning, reply.content) == ("Hm.", "Four.")
