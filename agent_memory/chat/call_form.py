"""How a chat template writes tool calls: found by having it write two.

Knows rendered text only. What is found is what a reply can be held to, token by token, so that its calls can always be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent_memory.chat.text import CUT


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around names and JSON arguments of a reply's calls: ``opening NAME middle {..} (between NAME middle {..})* closing``."""

    opening: str
    middle: str
    between: str
    closing: str

    def write(self, *calls: tuple[str, str]) -> str:
        """The text of calls, each a name and its arguments as JSON."""
        return self.opening + self.between.join(f"{name}{self.middle}{arguments}" for name, arguments in calls) + self.closing


COMMON = CallForm(
    '<tool_call>{"name": "', '", "arguments": ', '}</tool_call><tool_call>{"name": "', "}</tool_call>"
)  # what every parser of ours reads, for templates that write calls otherwise, or not at all


def find_call_form(text: str, names: tuple[str, str], arguments: tuple[Any, Any], footer: str) -> CallForm | None:
    """The form in which ``text`` holds two calls, or None if it is not a name and then a JSON object, twice, or holds a cut control token.

    Args:
        text: what an assistant's turn with the two calls was rendered to, without its header.
        names: of the two calls; words that occur nowhere else.
        arguments: of the two calls.
        footer: what ends an assistant's turn.
    """
    if CUT in text:
        return None
    places = []
    for name, wanted in zip(names, arguments, strict=True):
        start = text.find(name)
        found = _object_after(text, start + len(name), wanted) if start >= 0 else None
        if found is None:
            return None
        places.append((start, start + len(name), *found))
    (first, first_end, object_start, object_end), (second, second_end, second_object, end) = places
    middle = text[first_end:object_start]
    if second < object_end or text[second_end:second_object] != middle:
        return None
    closing = text[end:].removesuffix(footer)
    return CallForm(text[:first].lstrip(), middle, text[object_end:second], closing)


def _object_after(text: str, start: int, wanted: Any) -> tuple[int, int] | None:
    """(start, stop) of the first JSON object from ``start`` on, if it is the one that is wanted."""
    at = text.find("{", start)
    if at < 0:
        return None
    try:
        value, stop = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None
    return (at, stop) if value == wanted else None
