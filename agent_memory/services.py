"""What a Session asks of whoever opened it. Knows the questions, not the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .repair import OpenEngine

if TYPE_CHECKING:
    from .session import Session
    from .structured import StructuredReplies


@dataclass(frozen=True, slots=True)
class Services:
    """What a Runtime does for a Session.

    Attributes:
        open_engine: takes up the Session's keys and values from disk.
        branch: makes a child of that name with the first turns of a Session, as a branch of a conversation if one is given.
        damaged: Blocks of the Session that ``verify`` finds damaged.
        structured: what holds replies to formats.
        later: makes a call when what is in memory is used next; waits for nothing, so that a finalizer may ask for it.
    """

    open_engine: OpenEngine
    branch: Callable[[Session, str, int | None, str | None], Session]
    damaged: Callable[[], set[int]]
    structured: StructuredReplies
    later: Callable[[Callable[[], None]], None]
