"""How far a history and a Session agree, by the hashes of their conversations.

Knows chains of hashes and turns; opens and changes nothing. Two conversations whose hashes agree at a turn agree on all before it, so
how far they do is found by halving.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_memory.chat.hashing import what_counts
from agent_memory.errors import InvalidHistory
from agent_memory.turns import to_message
from agent_memory.types import Message, Turn

Turns = Callable[[int, int], list[Turn]]
"""Turns ``[start, stop)`` of a Session, clipped to those there are."""

SEEN_AFTER = 8
"""Messages after the first that differs which tell a rewritten history from another one."""


@dataclass(frozen=True, slots=True)
class History:
    """A conversation as a client sent it.

    Attributes:
        system: system prompt.
        tools: tool schemas.
        messages: the rest.
        chain: hashes of the conversation before the first message, and after each.
    """

    system: str | None
    tools: Sequence[Mapping[str, Any]]
    messages: Sequence[Message]
    chain: Sequence[str]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a Session agrees with a history.

    Attributes:
        name: of the Session.
        rooted: it has the history's system prompt and tools.
        head: 1 if its first turn is a head, else 0.
        shared: turns that agree, from the first on; the head counts.
        turns: turns there are.
    """

    name: str
    rooted: bool
    head: int
    shared: int
    turns: int

    @property
    def goes_on(self) -> bool:
        """The history begins with all the Session holds."""
        return self.shared == self.turns

    @property
    def messages(self) -> int:
        """Messages that agree."""
        return max(0, self.shared - self.head)


def split_head(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """(system prompt, the rest): leading system messages are one prompt."""
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    return ("\n\n".join(message.content for message in leading) or None), list(messages[len(leading) :])


def agreement(name: str, count: int, turns: Turns, history: History, empty_root: str) -> Agreement:
    """How the Session of that name, which has ``count`` turns, agrees with a history.

    Args:
        name: of the Session.
        count: its turns.
        turns: reads them.
        history: the client's.
        empty_root: hash of a conversation without system prompt and tools, which Sessions without a head begin with.
    """
    first = turns(0, 1) if count else []
    head = 1 if first and first[0].meta.get("head") else 0
    root = first[0].chain if head else empty_root
    if count and root != history.chain[0]:
        return Agreement(name, False, head, 0, count)
    low, high = 0, min(count - head, len(history.messages))  # messages that agree are at least low and at most high
    while low < high:
        middle = (low + high + 1) // 2
        at = head + middle - 1
        if turns(at, at + 1)[0].chain == history.chain[middle]:
            low = middle
        else:
            high = middle - 1
    return Agreement(name, True, head, head + low if count else 0, count)


def overlap(history: History, found: Agreement, turns: Turns) -> int:
    """Messages at the beginning of a history that are the newest turns of a Session, an answer among them; 0 if none are.

    That is a history whose beginning was trimmed.
    """
    messages = [what_counts(message) for message in history.messages]
    newest = [what_counts(to_message(turn)) for turn in turns(max(found.head, found.turns - len(messages)), found.turns)]
    for size in range(min(len(messages) - 1, len(newest)), 0, -1):
        if newest[len(newest) - size :] == messages[:size] and any(key[0] == "assistant" for key in messages[:size]):
            return size
    return 0


def rewritten(history: History, found: Agreement, turns: Turns) -> str | None:
    """What was changed of a history whose later messages are the Session's: its head, or one message; None if it is just another one."""
    start = found.head + found.messages
    stands = [what_counts(to_message(turn)) for turn in turns(start, start + 1 + SEEN_AFTER)]
    given = [what_counts(message) for message in history.messages[found.messages : found.messages + 1 + SEEN_AFTER]]
    if not found.rooted:
        return "the system prompt or the tools" if len(given) > 1 and stands[:2] == given[:2] else None
    same = [one == other for one, other in zip(stands, given, strict=False)]
    return f"message {found.messages + 1} ({history.messages[found.messages].role})" if any(same[1:]) else None


def check_results(messages: Sequence[Message], new: int, recent: Sequence[Turn]) -> None:
    """Raise InvalidHistory if one of the last ``new`` messages is the result of a call that neither the messages nor recent turns make."""
    known = {call.id for turn in recent for call in to_message(turn).tool_calls}
    for number, message in enumerate(messages):
        known |= {call.id for call in message.tool_calls}
        if message.role == "tool" and number >= len(messages) - new and message.tool_call_id not in known:
            who = f" of tool {message.name!r}" if message.name else ""
            raise InvalidHistory(
                f"message {number + 1} is the result{who} of the call {message.tool_call_id!r}, which no message before it makes; "
                f"send the assistant's message with that call too"
            )
