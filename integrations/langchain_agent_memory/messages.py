"""LangChain messages to ours, and replies of ours to LangChain's. Knows both shapes; nothing of models or Sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from agent_memory.errors import ConfigError
from agent_memory.history import Delta, Reply
from agent_memory.types import Message, Role, ToolCall

_ROLES: dict[type[BaseMessage], Role] = {HumanMessage: "user", SystemMessage: "system", AIMessage: "assistant", ToolMessage: "tool"}
_ROLE_NAMES: dict[str, Role] = {
    "user": "user", "human": "user", "system": "system", "developer": "system", "assistant": "assistant", "ai": "assistant", "tool": "tool",
}  # fmt: skip
_TEXTS = {"text", "text-plain"}
_SILENT_BLOCKS = {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking", "redacted_thinking"}
"""Blocks of an assistant's message that are not part of its text."""

NO_OUTPUT = "(no output)"
"""What the model reads of a tool that returned blank text."""


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Ours for LangChain's.

    Raises:
        ConfigError: a message that is not text, or of a kind no model here can read.
    """
    return [_to_message(message) for message in messages]


def from_messages(messages: Sequence[Message]) -> list[BaseMessage]:
    """LangChain's for ours."""
    return [_from_message(message) for message in messages]


def _from_message(message: Message) -> BaseMessage:
    if message.role == "tool":
        return ToolMessage(message.content, tool_call_id=message.tool_call_id or "", name=message.name)
    if message.role == "assistant":
        calls = [tool_call(name=call.name, args=dict(call.arguments), id=call.id) for call in message.tool_calls]
        return AIMessage(message.content, tool_calls=calls)
    return SystemMessage(message.content) if message.role == "system" else HumanMessage(message.content)


def _to_message(message: BaseMessage) -> Message:
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)
    if isinstance(message, ChatMessage):
        role = _ROLE_NAMES.get(message.role.lower())
    if role is None:
        raise ConfigError(f"a {type(message).__name__} cannot be remembered; use human, system, AI or tool messages")
    calls: tuple[ToolCall, ...] = ()
    if isinstance(message, AIMessage):
        calls = tuple(ToolCall(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls)
    answered = message.tool_call_id if isinstance(message, ToolMessage) else None
    text = _text(message)
    return Message(role, NO_OUTPUT if role == "tool" and not text.strip() else text, message.name, calls, answered)


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(block) for block in message.content)


def _block_text(block: str | Mapping[str, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind in _TEXTS:
        return str(block["text"])
    if kind in _SILENT_BLOCKS:
        return ""
    raise ConfigError(f"content of type {kind!r} cannot be remembered: the model reads text only; send what it says as text")


class ReplyChunks:
    """Makes LangChain's chunks of a reply.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._written: dict[int, str] = {}

    def of(self, delta: Delta | Reply) -> ChatGenerationChunk:
        """The chunk of one piece; the last piece is the Reply. Thoughts are what LangChain reads as reasoning blocks."""
        if isinstance(delta, Reply):
            return self._last(delta)
        if delta.kind == "text":
            message = AIMessageChunk(content=delta.text)
        elif delta.kind == "thought":
            message = AIMessageChunk(content="", additional_kwargs={"reasoning_content": delta.text})
        else:
            self._written[delta.index] = self._written.get(delta.index, "") + delta.text
            chunk = tool_call_chunk(name=delta.name, args=delta.text, id=None, index=delta.index)
            message = AIMessageChunk(content="", tool_call_chunks=[chunk])
        return ChatGenerationChunk(message=message)

    def _last(self, reply: Reply) -> ChatGenerationChunk:
        """The last chunk: ids of the calls, usage, and where the reply stands."""
        reason = "tool_calls" if reply.message.tool_calls else str(reply.turn.meta.get("finish_reason", "stop"))
        message = AIMessageChunk(
            content="",
            tool_call_chunks=list(self._rest(reply.message.tool_calls)),
            usage_metadata=usage(reply),
            response_metadata={"model_name": self._model, "model_provider": "agent_memory", "agent_memory": reply.facts()},
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info={"finish_reason": reason})

    def _rest(self, calls: Sequence[ToolCall]) -> Iterator[ToolCallChunk]:
        for number, call in enumerate(calls):
            if number in self._written:
                yield tool_call_chunk(name=None, args="", id=call.id, index=number)
            else:
                yield tool_call_chunk(name=call.name, args=json.dumps(dict(call.arguments)), id=call.id, index=number)


def usage(reply: Reply) -> UsageMetadata:
    """Tokens of a reply: ``cache_read`` are those that were in memory already, ``cache_creation`` those appended now."""
    details = InputTokenDetails(cache_read=reply.known, cache_creation=reply.added)
    read = reply.known + reply.added
    return UsageMetadata(input_tokens=read, output_tokens=reply.generated, total_tokens=read + reply.generated, input_token_details=details)
