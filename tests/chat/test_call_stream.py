"""Calls while they are being written: however their text arrives, the same calls come of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.chat import split_stream
from agent_memory.chat.call_form import COMMON
from agent_memory.chat.call_stream import CallStream
from agent_memory.chat.reply import silent_ids
from agent_memory.model.text import TextStream
from tests.chat.builders import CHATML
from tests.model.constrained import marked

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text('ab{}[]"\\/, é👩\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k{"\\', max_size=3), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.text('ab "\\é', min_size=1, max_size=5), st.dictionaries(st.text("k}", max_size=2), VALUES, max_size=3)), max_size=3
)


def gathered(pieces: list[str]) -> list[tuple[str, str]]:
    """(name, text of the arguments) of each call, as they came; each begins with its name, and only then."""
    stream, found = CallStream(), list[list[str]]()
    for piece in pieces:
        for index, name, text in stream.push(piece):
            if name is not None:
                assert index == len(found)
                found.append([name, ""])
            assert index == len(found) - 1
            found[index][1] += text
    return [(name, text) for name, text in found]


def cut(text: str, at: list[int]) -> list[str]:
    places = [0, *sorted({place % (len(text) + 1) for place in at}), len(text)]
    return [text[start:stop] for start, stop in zip(places, places[1:], strict=False)]


@given(CALLS, st.lists(st.integers(0, 10**6), max_size=12), st.sampled_from([None, 1, (", ", ":")]), st.sampled_from(["", "\n"]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_pieces_give_the_same_calls(calls: list[tuple[str, Any]], at: list[int], style: Any, space: str) -> None:
    options: dict[str, Any] = {"indent": style} if style == 1 else {"separators": style} if style else {}
    text = "".join(f"{space}{json.dumps({'name': name, 'arguments': made}, **options)}{space}" for name, made in calls)
    expected = [(name, made) for name, made in calls]
    for pieces in (cut(text, at), list(text), [text]):
        assert [(name, json.loads(arguments)) for name, arguments in gathered(pieces)] == expected


@given(CALLS, st.lists(st.integers(0, 10**6), max_size=12))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_streamed_reply_gives_the_calls_it_was_written_with(calls: list[tuple[str, Any]], at: list[int]) -> None:
    text = "So: " + COMMON.write(*[(json.dumps(name)[1:-1], json.dumps(made)) for name, made in calls]) if calls else "So: "
    said = list(split_stream(cut(text, at)))
    found = gathered([piece for kind, piece in said if kind == "call"])
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert "".join(piece for kind, piece in said if kind == "text") == "So: "


def test_arguments_come_as_they_are_written() -> None:
    stream = CallStream()
    assert list(stream.push('\n{"name": "add", "argu')) == []
    assert list(stream.push('ments": ')) == []
    assert list(stream.push('{"a')) == [(0, "add", ""), (0, None, '{"a')]
    assert list(stream.push('": "}\\')) == [(0, None, '": "}\\')]
    assert list(stream.push('"]"')) == [(0, None, '"]"')]
    assert list(stream.push("}")) == [(0, None, "}")] and list(stream.push("")) == []
    assert list(stream.push("}\n")) == [] and list(stream.push(' {"name":"b","parameters":{}}')) == [(1, "b", ""), (1, None, "{}")]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "{}"}',
        '{"name": "add"}',
        '{"name": 5, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "a\\q", "arguments": {}}',
        '{"name": "a\\u12", "arguments": {}}',
        "the fox",
        "{}",
        "",
    ],
)
def test_what_is_no_call_with_an_object_gives_nothing(text: str) -> None:
    assert gathered(list(text)) == gathered([text]) == []


def test_names_may_be_escaped() -> None:
    assert gathered(list('{"name": "a\\u00e9\\"\\\\\\n\tb", "arguments": {}}')) == [('aé"\\\n\tb', "{}")]


@pytest.mark.parametrize("markup", ["special", "added", "plain"])
def test_marks_of_calls_and_thoughts_are_part_of_the_text(markup: str) -> None:
    tokenizer = marked(CHATML, "<|im_end|>", markup).tokenizer
    said = '<think>hm</think><tool_call>{"name": "a", "arguments": {}}</tool_call>'
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(f"{said}<|im_end|><s>", add_special_tokens=False)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == said
    assert silent_ids(tokenizer).isdisjoint(tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>", "<think>", "</think>"]))
    assert tokenizer.eos_token_id in silent_ids(tokenizer)
