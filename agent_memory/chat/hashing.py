"""The hash of a conversation, message by message.

Knows which parts of a message count; it does not know templates or token ids. Call ids, usage numbers and the like never count,
so a history that went through a client and came back still matches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.chat.text import clean_text
from agent_memory.types import Message


def root(namespace: str, model: str, template: str, system: str | None, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """h_0: the hash of an empty conversation.

    Args:
        namespace: tenant.
        model: fingerprint of the model, as text.
        template: hash of the chat template and its arguments (`ChatFormat.template_hash`).
        system: system prompt.
        tools: tool schemas.
    """
    return _digest("root", [namespace, model, template, system, list(tools)])


def link(previous: str, message: Message, *, with_name: bool) -> str:
    """h_i: the hash of a conversation that is `previous` and then `message`.

    `with_name` says whether the template shows a tool's name. Outer white space of an assistant's text does not count: clients strip it.
    """
    name = message.name if with_name and message.role == "tool" else None
    return _digest(previous, [*what_counts(message), name])


def what_counts(message: Message) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """(role, text, calls) by which messages are the same: clients strip an assistant's text, and give ids of their own to calls."""
    text = clean_text(message.content)
    calls = [(call.name, dict(call.arguments)) for call in message.tool_calls]
    return message.role, text.strip() if message.role == "assistant" else text, calls


def _digest(previous: str, value: Any) -> str:
    text = json.dumps([previous, value], ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)
