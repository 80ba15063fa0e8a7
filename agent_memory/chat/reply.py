"""What a model wrote, taken apart: text, reasoning, tool calls.

Knows the common written forms (`<tool_call>{json}</tool_call>`, `<think>..</think>`) and what a tokenizer's own response parser
returns; it does not know templates. Nothing is lost: what cannot be read as a call stays in the text.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_memory.chat.text import clean_text
from agent_memory.given import json_problem
from agent_memory.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_THINK, _END_THINK = "<think>", "</think>"
_BLANK, _CLOSING = re.compile(r"\s*"), re.compile(rf"\s*(?:{_CLOSE}|\Z)")


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    """The number nearest to ``digits``: JSON has numbers that a float has not, and what is infinite could not be kept."""
    return min(max(float(digits), -sys.float_info.max), sys.float_info.max)


_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_no_number)
MARKUP = (_OPEN, _CLOSE, _THINK, _END_THINK)
"""Texts the fallback parser reads; a tokenizer may have them as special tokens."""


def silent_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens that are no part of a reply's visible text: all but those of `MARKUP`."""
    return set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(list(MARKUP)))


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A reply taken apart.

    Attributes:
        content: text for the user.
        reasoning: what was thought before it.
        tool_calls: calls in the order they were written; several are parallel calls.
    """

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def parse_text(text: str, *, thinking: bool = False) -> ParsedReply:
    """Take `text` apart by the common written forms.

    Args:
        text: the reply.
        thinking: the prompt ended inside an open `<think>`.
    """
    reasoning, text = split_reasoning(text, thinking=thinking)
    content, calls = _split_calls(text)
    return ParsedReply(content.strip() if calls or reasoning else content, reasoning, calls)


def split_reasoning(text: str, *, thinking: bool = False) -> tuple[str, str]:
    """(reasoning, rest) of `text`; reasoning that was never closed takes all of it."""
    begun = text.lstrip().startswith(_THINK)
    if begun:
        text = text.lstrip()[len(_THINK) :]
    before, closed, after = text.partition(_END_THINK)
    if closed and (begun or thinking or _THINK not in before):
        return before.strip(), after.lstrip("\n")
    return (text.strip(), "") if begun or thinking else ("", text)


def parse_fields(fields: Mapping[str, Any]) -> ParsedReply:
    """A ParsedReply of the message dict that `tokenizer.parse_response` returns."""
    reasoning = fields.get("reasoning_content") or fields.get("reasoning") or fields.get("thinking") or ""
    calls = tuple(call for item in fields.get("tool_calls") or () if (call := _as_call(item.get("function", item))) is not None)
    if len(calls) != len(fields.get("tool_calls") or ()):
        raise ValueError("a tool call without a name or with arguments that are no object")
    return ParsedReply(str(fields.get("content") or ""), str(reasoning), calls)


def _split_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    kept: list[str] = []
    calls: list[ToolCall] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        found = _call_at(text, start + len(_OPEN))
        stop = found[1] if found else start + len(_OPEN)
        kept.append(text[position : start if found else stop])
        if found:
            calls.append(found[0])
        position = stop
    kept.append(text[position:])
    return "".join(kept), tuple(calls)


def _call_at(text: str, start: int) -> tuple[ToolCall, int] | None:
    """The call whose JSON begins at `start`, and the index after its closing tag, which the very end of `text` stands in for."""
    try:
        value, stop = _DECODER.raw_decode(text, _BLANK.match(text, start).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None
    call = _as_call(value)
    closing = _CLOSING.match(text, stop)
    return (call, closing.end()) if call and closing else None


def _as_call(value: Any) -> ToolCall | None:
    """A ToolCall of `{"name": .., "arguments": {..}}`, its arguments perhaps as a JSON string or under `parameters`."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, Mapping) or json_problem(arguments):  # what is no JSON could not be kept with the turn
        return None
    return ToolCall(uuid.uuid4().hex[:9], clean_text(value["name"]), dict(arguments))  # nine: the length Mistral's templates insist on
