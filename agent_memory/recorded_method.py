"""The method a Session's memory was made with: written with its first turn, and kept for as long as it lives.

Knows methods and how they are written on a line; nothing of Stores or engines. Keys and values of a later layer are made of what an earlier
layer attended to, so memory made by one method and continued by another would be neither's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .attention.methods import Method
from .types import BLOCK_TOKENS, GROUP_TOKENS

FIRST_VERSION_ATTENDED = 8192
"""Tokens the first version attended to at most; it wrote no method down."""


def what_is_recorded(method: Method, window: int, border: int | None) -> dict[str, Any]:
    """What a new Session writes down; nothing of a method that cannot be written on a line."""
    facts = {"method": method.spec, "window": window if method.spec else None, "border": border}
    return {name: value for name, value in facts.items() if value is not None}


def method_of(
    session: str, recorded: Mapping[str, Any], mine: Method, window: int, make: Callable[[str, int], Method], *, reinterpret: bool = False
) -> Method:
    """The method of a Session, with its border.

    Args:
        session: its name, for the warning.
        recorded: what it wrote down; without a method, the first version's.
        mine: the method of the Runtime.
        window: the Runtime's.
        make: ``make(spec, window)`` makes a method for the model and the Session's head.
        reinterpret: take ``mine``, whatever was written down: to measure how a method reads what another one made.
    """
    method = mine
    if mine.spec is not None and not reinterpret:
        before = int(recorded.get("window", window))
        written = make(str(recorded.get("method") or _first_version(before)), before)
        if (written.spec, before) != (mine.spec, window):
            method = written
            logging.getLogger(__name__).warning(
                "session %r keeps the method its memory was made with, %s (window %s), and is not read with %s (window %s); "
                "only a new session takes that",
                session, written.spec, f"{before:,}", mine.spec, f"{window:,}",
            )  # fmt: skip
    border = recorded.get("border")
    if border is not None and method.attended is not None:
        method = replace(method, border=max(int(border), method.attended))
    return method


def _first_version(window: int) -> str:
    """The only default the first version had, for a window: seven sixteenths recalled, the rest local."""
    attended = min(window, FIRST_VERSION_ATTENDED) // BLOCK_TOKENS * BLOCK_TOKENS
    recalled = attended * 7 // 16 // BLOCK_TOKENS * BLOCK_TOKENS
    return f"recall:score=max:attended={attended}:local={attended - BLOCK_TOKENS - recalled - GROUP_TOKENS}"
