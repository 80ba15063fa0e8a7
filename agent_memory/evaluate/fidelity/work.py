"""How far a measurement is: work done of all there is, in tokens of prefill.

Knows numbers only. What is taken from a file or a cache is no work, so that the time that is left can be estimated.
"""

from __future__ import annotations

from collections.abc import Callable

from .documents import Continuation, Document, Question

Progress = Callable[[int, int, str], None]

REPLY_WORK = 20
"""A decoded token takes about as long as so many tokens of prefill."""


class Work:
    """Adds up work.

    Args:
        tell: told the work that is done, all there is, and what is being done.
        total: all there is.
    """

    def __init__(self, tell: Progress | None = None, total: int = 0) -> None:
        self._tell, self._total, self._done, self._size, self._filled, self._asked, self._what = tell, total, 0, 0, 0, 0, ""

    def begin(self, size: int, what: str) -> None:
        """A part of so much work."""
        self._size, self._filled, self._asked, self._what = size, 0, 0, what
        self._show()

    def filled(self, tokens: int) -> None:
        """So many tokens of the part are prefilled."""
        self._filled = tokens
        self._show()

    def asked(self, work: int) -> None:
        """One more question is answered, which took so much work."""
        self._asked += work
        self._show()

    def end(self) -> None:
        """The part is done, whether it took as much as was thought or not."""
        self._done, self._size, self._filled, self._asked = self._done + self._size, 0, 0, 0
        self._show()

    def _show(self) -> None:
        if self._tell is not None:
            self._tell(min(self._total, self._done + min(self._size, self._filled + self._asked)), self._total, self._what)


def asking_work(question: Question | Continuation) -> int:
    """Of the forced and the free reply to a question, or of scoring a text."""
    if isinstance(question, Continuation):
        return REPLY_WORK * len(question.ids)
    return REPLY_WORK * (len(question.whole) // 3 + question.max_new_tokens // 2)


def document_work(document: Document, tokens: int, made: bool) -> int:
    """Of asking every question about a document, and of making its memory before."""
    return sum(map(asking_work, document.questions)) + (tokens if made else 0)


def mass_work(document: Document) -> int:
    """Of weighing choices; about as much as asking."""
    return sum(map(asking_work, document.questions[:2]))
