"""Telling text, thoughts and tool calls apart while a reply is still being written.

Knows the written marks only; what a call means is read once the reply is whole (`ChatFormat.parse`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

Kind = Literal["text", "thought", "call"]

_OPENS: dict[str, Kind] = {"<think>": "thought", "<tool_call>": "call"}
_CLOSES: dict[Kind, str] = {"thought": "</think>", "call": "</tool_call>"}


def split_stream(pieces: Iterable[str], *, thinking: bool = False) -> Iterator[tuple[Kind, str]]:
    """(kind, text) of `pieces` as they come, marks left out; a piece waits only while it may be the beginning of a mark.

    Args:
        pieces: the reply.
        thinking: the prompt ended inside an open `<think>`.
    """
    kind: Kind = "thought" if thinking else "text"
    held = ""
    for piece in pieces:
        held += piece
        while True:
            marks = _OPENS if kind == "text" else {_CLOSES[kind]: "text"}
            at, mark = min(((held.find(mark), mark) for mark in marks if mark in held), default=(-1, ""))
            if at < 0:
                break
            if at:
                yield kind, held[:at]
            held, kind = held[at + len(mark) :], "text" if kind != "text" else _OPENS[mark]
        ready = len(held) - max(_overlap(held, mark) for mark in marks)
        if ready:
            yield kind, held[:ready]
            held = held[ready:]
    if held:
        yield kind, held


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that `mark` begins with."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
