"""What a question can be answered from without memory: passages of its context that fit the window, found by BM25 or named as evidence.

Knows texts and counts of tokens; does not know models or Sessions. Memory is compared with these: evidence alone is the most that finding
the right passages could bring, and BM25 is text retrieval with as many tokens as a memory attends to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ..packages import package
from .base import Context, Item, Section

TOKENS = 2048
"""Of passages that BM25 finds, by default: what ``recall`` attends to."""

PASSAGE_CHARACTERS = 400
"""Lines of a context without passages are put together up to so many."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a context is shown with a question.

    Attributes:
        name: ``evidence``, or ``bm25``.
        tokens: of the passages that BM25 finds.
    """

    name: str
    tokens: int = TOKENS

    def passages(self, item: Item, count_tokens: CountTokens) -> tuple[str, ...]:
        """Pieces of context with only the passages that are shown, in their order, under the headings over them.

        Raises:
            ConfigError: the question names no evidence, or the package ``bm25s`` is missing.
        """
        context = item.context or by_lines(item.pieces)
        if self.name == "evidence":
            if not has_evidence(item):
                raise ConfigError(f"{item.id} does not say which passages it can be answered from")
            return context.pieces({number for number, (name, _) in enumerate(context.passages) if name in item.evidence})
        return context.pieces(set(self._fitting(context, ranked(item.query or item.question, context), count_tokens)))

    def check(self) -> None:
        """Raise ``ConfigError`` for a package that is missing."""
        if self.name == "bm25":
            package("bm25s", "bm25s", "finding passages by BM25")

    def _fitting(self, context: Context, numbers: Iterable[int], count_tokens: CountTokens) -> Iterator[int]:
        """The first passages that have room together, headings included."""
        over = [section.heading for section in context.sections for _ in section.passages]
        left, headings = self.tokens - count_tokens(context.opening), set[str]()
        texts = [text for _, text in context.passages]
        for number in numbers:
            size = count_tokens(texts[number]) + (0 if over[number] in headings else count_tokens(over[number]))
            if size > left:
                return
            left -= size
            headings.add(over[number])
            yield number


def shown_by(spec: str) -> Shown | None:
    """What ``evidence``, ``bm25`` or ``bm25:tokens=N`` name; None for everything else.

    Raises:
        ConfigError: one of them with an option it does not have.
    """
    name, _, options = spec.partition(":")
    if name not in ("evidence", "bm25"):
        return None
    found = re.fullmatch(r"tokens=(\d{1,6})", options)
    if options and (found is None or name == "evidence" or not int(found[1])):
        raise ConfigError(f"{spec!r}: write evidence, bm25, or bm25:tokens=N, N at least 1")
    return Shown(name, TOKENS if found is None else int(found[1]))


def has_evidence(item: Item) -> bool:
    """Whether a question names passages it can be answered from, all of which are in its context."""
    return item.context is not None and bool(item.evidence) and set(item.evidence) <= {name for name, _ in item.context.passages}


def ranked(query: str, context: Context) -> list[int]:
    """Numbers of the passages that share a word with a query, the best first, by BM25 (Robertson and Zaragoza 2009) as ``bm25s`` counts it.

    Raises:
        ConfigError: the package is missing.
    """
    bm25s = package("bm25s", "bm25s", "finding passages by BM25")
    texts = [text for _, text in context.passages]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    asked = bm25s.tokenize([query], stopwords="en", show_progress=False)
    numbers, scores = index.retrieve(asked, k=len(texts), show_progress=False)
    return [int(number) for number, score in zip(numbers[0], scores[0], strict=True) if score > 0]


def by_lines(pieces: Sequence[str]) -> Context:
    """A context whose authors tell no passages apart: whole lines, put together up to ``PASSAGE_CHARACTERS``."""
    return Context("", tuple(Section("", tuple(("", text) for text in _passages(piece))) for piece in pieces))


def _passages(text: str) -> Iterator[str]:
    held = ""
    for line in text.splitlines(keepends=True):
        if held and len(held) + len(line) > PASSAGE_CHARACTERS:
            yield held
            held = ""
        held += line
    if held:
        yield held
