"""Asking about the inventory: with memory, and the same model without.

Knows Sessions, questions and the stock model; does not know how the Session was filled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..evaluate.fork import asked_on_a_fork
from ..evaluate.haystack import Needle
from ..evaluate.task import share_named
from ..runtime import Runtime
from ..session import Session
from ..types import RecalledTurn
from .inventory import Question
from .window_only import ANSWER, ONE_LINE, ROOM, WindowOnly

RECORD_TOKENS = 1024
"""A turn with a record is no longer than this, about."""
SHOWN = 4
"""Recalled turns that are shown of each answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, what was answered, and where that came from.

    ``tokens_ago`` counts from the end of the turn that held the record when the question was asked. ``in_window_right`` says whether the
    model alone is right over as much of the history as its window holds, with the record in it; None where that was not tried.
    """

    question: Question
    answer: str
    right: bool
    tokens_ago: int
    seconds: float
    recalled: tuple[RecalledTurn, ...]
    plain_answer: str
    plain_right: bool
    in_window_right: bool | None = None


class Examiner:
    """Asks a filled Session, and the model alone.

    Args:
        runtime: of the Session.
        session: the filled Session.
        plain: answers are a line that contains the value, and the model's own rate is measured, too; otherwise they are the value.
    """

    def __init__(self, runtime: Runtime, session: Session, plain: bool) -> None:
        self._runtime, self._session, self._plain = runtime, session, plain
        self._span = runtime.window - ROOM
        self._filled = session.tokens
        self._last = max(0, self._filled - self._span)
        self._limits = ONE_LINE if plain else ANSWER
        self._turns, self._number = session.timeline.turn_count, 0
        self._windows: dict[int, WindowOnly] = {}

    def ask(self, question: Question, holder_stop: int) -> Asked:
        """Ask one question, with memory and without.

        Args:
            question: what to ask.
            holder_stop: token index after the turn that holds the record.
        """
        plain = self._window(self._last).answer(question.text)
        known = self._known(question, holder_stop, plain) if self._plain else None
        with self._asked() as session:
            ago, started = session.tokens - holder_stop, time.perf_counter()
            said = session.reply(question.text, max_new_tokens=self._limits.tokens, stop=self._limits.stop)
            seconds = time.perf_counter() - started
            recalled = session.last_recall.foremost(SHOWN) if session.last_recall is not None else ()
        return Asked(question, said, self._right(question, said), ago, seconds, recalled, plain, self._right(question, plain), known)

    @contextmanager
    def _asked(self) -> Iterator[Session]:
        """The Session; in plain sentences a fork of what was filled, from the second question on: a small model that sees answers it got
        wrong goes on like that."""
        self._number += 1
        if not self._plain or self._number == 1:
            yield self._session
            return
        with asked_on_a_fork(self._runtime, self._session, f"question {self._number}", self._turns) as child:
            yield child

    def _known(self, question: Question, holder_stop: int, plain: str) -> bool:
        """Whether the model is right with the record in its window: the last one, or one of those that follow each other from the start."""
        if holder_stop - RECORD_TOKENS >= self._last:
            return self._right(question, plain)
        start = (holder_stop - 1) // self._span * self._span
        if start and holder_stop - RECORD_TOKENS < start:
            start = holder_stop - self._span
        return self._right(question, self._window(start).answer(question.text))

    def _window(self, start: int) -> WindowOnly:
        """The model alone over a window of the history. Keys and values of the last one and of another are kept."""
        if start not in self._windows:
            for other in self._windows.keys() - {self._last}:
                del self._windows[other]
            history = self._session.timeline.tokens(start, min(start + self._span, self._filled)).tolist()
            self._windows[start] = WindowOnly(self._runtime, history, self._limits)
        return self._windows[start]

    def _right(self, question: Question, said: str) -> bool:
        return contains(question, said) if self._plain else is_right(question, said)


def is_right(question: Question, said: str) -> bool:
    """Whether an answer equals what the machine says."""
    return Needle(question.package, question.field, question.value, 0.0).found_in(said)


def contains(question: Question, said: str) -> bool:
    """Whether an answer contains what the machine says, not as part of a longer word or number."""
    return share_named(said, [question.value], "", "exact") == 1
