"""LangChain messages to ours and back. Knows both shapes; nothing of models or Sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from agent_memory.errors import ConfigError
from agent_memory.history import Reply
from agent_memory.types import Message, Role, ToolCall

_ROLES: dict[type[BaseMessage], Role] = {HumanMessage: "user", SystemMessage: "system", AIMessage: "assistant", ToolMessage: "tool"}
_SILENT_BLOCKS = {"tool_use", "tool_call", "reasoning", "thinking"}
"""Blocks of an assistant's message that are not part of its text."""


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Ours for LangChain's.

    Raises:
        ConfigError: a message that is not text, or of a kind no model here can read.
    """
    return [_to_message(message) for message in messages]


def _to_message(message: BaseMessage) -> Message:
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)
    if isinstance(message, ChatMessage) and message.role in ("user", "system", "assistant", "tool"):
        role = message.role  # type: ignore[assignment]
    if role is None:
        raise ConfigError(f"a {type(message).__name__} cannot be remembered; use human, system, AI or tool messages")
    calls: tuple[ToolCall, ...] = ()
    if isinstance(message, AIMessage):
        calls = tuple(ToolCall(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls)
    answered = message.tool_call_id if isinstance(message, ToolMessage) else None
    return Message(role, _text(message), message.name, calls, answered)


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block["text"]))
        elif block.get("type") not in _SILENT_BLOCKS:
            raise ConfigError(f"content of type {block.get('type')!r} cannot be remembered; only text can")
    return "".join(parts)


def tool_chunks(reply: Reply) -> list[ToolCallChunk]:
    """The tool calls of a reply, as one streamed piece each."""
    from json import dumps

    calls: Sequence[ToolCall] = reply.message.tool_calls
    return [tool_call_chunk(name=call.name, args=dumps(dict(call.arguments)), id=call.id, index=n) for n, call in enumerate(calls)]


def usage(reply: Reply) -> UsageMetadata:
    """Tokens of a reply: ``cache_read`` are those that were in memory already, ``cache_creation`` those appended now."""
    details = InputTokenDetails(cache_read=reply.known, cache_creation=reply.added)
    read = reply.known + reply.added
    return UsageMetadata(input_tokens=read, output_tokens=reply.generated, total_tokens=read + reply.generated, input_token_details=details)


def facts(reply: Reply, model: str) -> dict[str, Any]:
    """Response metadata: where the reply stands, and what was recalled for it."""
    recall = [{"turn": hit.turn, "role": hit.role, "tokens_ago": hit.tokens_ago, "score": hit.score} for hit in reply.recall.turns]
    return {
        "model_name": model,
        "model_provider": "agent-memory",
        "finish_reason": reply.turn.meta.get("finish_reason", "stop"),
        "agent_memory": {"session": reply.session, "turn": reply.turn.index, "recalled": recall, "exact": reply.recall.exact},
    }
