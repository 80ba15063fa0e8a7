"""How many tokens a conversation takes. Knows messages and how they are written; nothing of Sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.chat import ChatFormat
from agent_memory.conversation import HISTORY_SEEN
from agent_memory.history.matching import split_head
from agent_memory.types import Message


def count_tokens(chat: ChatFormat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Tokens of a conversation as a Session of it would hold them; leading system messages are its head."""
    system, rest = split_head(messages)
    counts = (
        len(chat.append(message, previous=rest[max(0, at - HISTORY_SEEN) : at], system=system, tools=tools))
        for at, message in enumerate(rest)
    )
    return len(chat.head(system, tools)) + sum(counts)
