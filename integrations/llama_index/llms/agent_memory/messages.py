"""LlamaIndex's messages to ours, and ours to LlamaIndex's. Knows both shapes; nothing of models or Sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from agent_memory.errors import ConfigError
from agent_memory.types import Message, Role, ToolCall

NO_OUTPUT = "(no output)"
"""What the model reads of a tool that returned blank text."""

_ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_LLAMA_INDEX_ROLES: dict[Role, MessageRole] = {
    "system": MessageRole.SYSTEM,
    "user": MessageRole.USER,
    "assistant": MessageRole.ASSISTANT,
    "tool": MessageRole.TOOL,
}


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Ours for LlamaIndex's. Thoughts and cache points are left out; a result that names no call is of the first open one.

    Raises:
        ConfigError: a role there is not, a block that is not text, or a call whose arguments cannot be read.
    """
    found: list[Message] = []
    unanswered: list[ToolCall] = []
    for message in messages:
        role, text = _role(message), "\n".join(_texts(message.blocks))
        calls = _calls(message, sum(len(one.tool_calls) for one in found)) if role == "assistant" else ()
        unanswered += calls
        found.append(_result(message, text, unanswered) if role == "tool" else Message(role, text, None, calls))
    return found


def _role(message: ChatMessage) -> Role:
    role = _ROLES.get(message.role)
    if role is None:  # of a message that was made without validation
        raise ConfigError(f"a message with the role {message.role!r} cannot be remembered; it is one of {', '.join(_ROLES)}")
    return role


def from_messages(messages: Sequence[Message]) -> list[ChatMessage]:
    """LlamaIndex's for ours."""
    return [_from_message(message) for message in messages]


def answer(text: str, calls: Sequence[ToolCallBlock] = (), thought: str = "") -> ChatMessage:
    """An assistant's message. Its calls stand in blocks, and again in ``additional_kwargs``, where programs of LlamaIndex look for them."""
    blocks: list[ContentBlock] = [ThinkingBlock(content=thought)] if thought else []
    if text or not calls:
        blocks.append(TextBlock(text=text))
    kwargs = {"tool_calls": [_in_openai_form(call) for call in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *calls], additional_kwargs=kwargs)


def call_blocks(calls: Sequence[ToolCall]) -> list[ToolCallBlock]:
    """Blocks of calls that are whole."""
    return [ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments)) for call in calls]


def _from_message(message: Message) -> ChatMessage:
    if message.role == "assistant":
        return answer(message.content, call_blocks(message.tool_calls))
    kwargs = {"tool_call_id": message.tool_call_id, "name": message.name} if message.role == "tool" else {}
    given = {name: value for name, value in kwargs.items() if value is not None}
    return ChatMessage(role=_LLAMA_INDEX_ROLES[message.role], content=message.content, additional_kwargs=given)


def _result(message: ChatMessage, text: str, unanswered: list[ToolCall]) -> Message:
    """A tool's message, with its tool's name; without any call to answer it is what the user says (a ReAct agent's observation)."""
    answered = message.additional_kwargs.get("tool_call_id")
    call = next((call for call in unanswered if answered in (None, "", call.id)), None)
    text = text if text.strip() else NO_OUTPUT
    if call is not None:
        unanswered.remove(call)
        return Message("tool", text, call.name, (), call.id)
    return Message("tool", text, message.additional_kwargs.get("name"), (), answered) if answered else Message("user", text)


def _texts(blocks: Sequence[Any]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, CitableBlock | CitationBlock):
            yield from _texts(block.nested_blocks)
        elif not isinstance(block, CachePoint | ThinkingBlock | ToolCallBlock):
            raise ConfigError(
                f"a block of type {block.block_type!r} cannot be remembered: the model reads text only; send what it says as text"
            )


def _calls(message: ChatMessage, before: int) -> tuple[ToolCall, ...]:
    """Calls in the blocks of an assistant's message, or in its ``additional_kwargs``, where older histories have them alone."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    given = [(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks] or [
        (call.get("id"), call["function"]["name"], call["function"].get("arguments") or {})
        for call in message.additional_kwargs.get("tool_calls") or ()
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)
    ]
    return tuple(
        ToolCall(id or f"call{before + number:05d}", name, _arguments(name, arguments))
        for number, (id, name, arguments) in enumerate(given)
    )


def _arguments(name: str, given: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    try:
        found = json.loads(given or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"the arguments of a call of {name!r} are no JSON object: {given!r}")
    return found


def _in_openai_form(call: ToolCallBlock) -> dict[str, Any]:
    arguments = call.tool_kwargs if isinstance(call.tool_kwargs, str) else json.dumps(call.tool_kwargs)
    return {"id": call.tool_call_id, "type": "function", "function": {"name": call.tool_name, "arguments": arguments}}
