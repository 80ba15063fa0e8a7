"""Turns and messages: what of a message a Turn keeps, and the message a Turn was made from.

Knows the two records only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import StoreCorrupt
from .types import Message, ToolCall, Turn


def to_message(turn: Turn) -> Message:
    """The message a turn was made from; StoreCorrupt if what is kept with it is no message's."""
    try:
        calls = tuple(ToolCall(call["id"], call["name"], dict(call["arguments"])) for call in turn.meta.get("tool_calls", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(turn) from error
    return Message(turn.role, turn.text, turn.name, calls, turn.meta.get("tool_call_id"))


def meta_of(message: Message) -> dict[str, Any]:
    """What a Turn keeps of a message beside role, name and text."""
    meta: dict[str, Any] = {"tool_calls": calls_to_json(message.tool_calls)} if message.tool_calls else {}
    return meta if message.tool_call_id is None else {**meta, "tool_call_id": message.tool_call_id}


def calls_to_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls as plain JSON types."""
    return [{"id": call.id, "name": call.name, "arguments": dict(call.arguments)} for call in calls]


def head_of(turns: Sequence[Turn]) -> tuple[str | None, list[Mapping[str, Any]]]:
    """System prompt and tools that the first of ``turns`` holds; (None, []) if it is no head."""
    if not turns or not turns[0].meta.get("head"):
        return None, []
    tools = turns[0].meta.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise _corrupt(turns[0])
    return turns[0].text or None, list(tools)


def _corrupt(turn: Turn) -> StoreCorrupt:
    return StoreCorrupt(f"what the store keeps with turn {turn.index} is not what belongs there; restore the session from an export")
