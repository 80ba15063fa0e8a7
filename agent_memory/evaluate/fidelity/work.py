"""How much work there is to measure documents, in tokens of prefill.

Knows documents and numbers. What is taken from a file or a cache is no work, so that the time that is left can be estimated.
"""

from __future__ import annotations

from .documents import Continuation, Document, Question

REPLY_WORK = 20
"""A decoded token takes about as long as so many tokens of prefill."""


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
