"""Asking about the inventory: with memory, and the same model without.

Knows Sessions, questions and the stock model; does not know how the Session was filled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..evaluate.haystack import Needle
from ..evaluate.task import share_named
from ..runtime import Runtime
from ..session import Session
from ..types import RecalledTurn
from .inventory import Question
from .window_only import ANSWER_TOKENS, BRIEF_TOKENS, WindowOnly

IN_WINDOW_TOKENS = 1024
"""How much of the history the model is shown when its own rate is measured: the turn with the record, and what came before it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, what was answered, and where that came from.

    ``tokens_ago`` counts from the end of the turn that held the record when the question was asked. ``in_window_right`` says whether the
    model is right when the record stands in its window; None where that was not tried.
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
        plain: answers are sentences that contain the value, and the model's own rate is measured, too; otherwise they are the value.
    """

    def __init__(self, runtime: Runtime, session: Session, plain: bool) -> None:
        self._runtime, self._session, self._plain = runtime, session, plain
        self._longest = BRIEF_TOKENS if plain else ANSWER_TOKENS
        self._alone = self._window_only(session.tokens, runtime.window)

    def ask(self, question: Question, holder_stop: int) -> Asked:
        """Ask one question, with memory and without.

        Args:
            question: what to ask.
            holder_stop: token index after the turn that holds the record.
        """
        plain, known = self._alone.answer(question.text), self._known(question, holder_stop) if self._plain else None
        ago = self._session.tokens - holder_stop
        started = time.perf_counter()
        said = self._session.reply(question.text, max_new_tokens=self._longest)
        seconds = time.perf_counter() - started
        recalled = self._session.last_recall.turns if self._session.last_recall is not None else ()
        return Asked(question, said, self._right(question, said), ago, seconds, recalled[:3], plain, self._right(question, plain), known)

    def _known(self, question: Question, holder_stop: int) -> bool:
        """Whether the model is right with the record in front of it."""
        return self._right(question, self._window_only(holder_stop, IN_WINDOW_TOKENS).answer(question.text))

    def _window_only(self, stop: int, tokens: int) -> WindowOnly:
        """The model alone over so many ``tokens`` of the history before ``stop``."""
        return WindowOnly(self._runtime, self._session.timeline.tokens(max(0, stop - tokens), stop).tolist(), self._longest)

    def _right(self, question: Question, said: str) -> bool:
        return contains(question, said) if self._plain else is_right(question, said)


def is_right(question: Question, said: str) -> bool:
    """Whether an answer equals what the machine says."""
    return Needle(question.package, question.field, question.value, 0.0).found_in(said)


def contains(question: Question, said: str) -> bool:
    """Whether an answer contains what the machine says, not as part of a longer word or number."""
    return share_named(said, [question.value], "", "exact") == 1
