"""What a Session asks of whoever opened it. Knows the questions, not the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .repair import OpenEngine
from .types import ReplyFormat

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True, slots=True)
class Services:
    """What a Runtime does for a Session.

    Attributes:
        open_engine: takes up the Session's keys and values from disk.
        branch: makes a child with the first turns of a Session.
        damaged: Blocks of the Session that ``verify`` finds damaged.
        hold: what holds a reply of at most so many tokens to a format, given the tools; None if nothing has to.
    """

    open_engine: OpenEngine
    branch: Callable[[Session, str, int | None], Session]
    damaged: Callable[[], set[int]]
    hold: Callable[[ReplyFormat, Sequence[Mapping[str, Any]], int], Any]
