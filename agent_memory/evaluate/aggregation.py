"""Aggregation (RULER's common words extraction, arXiv 2404.06654): which words come up most often in the whole document.

No place of the document holds the answer, so a method that reads some of it can only answer by chance. The prose form is RULER's numbered
list; the record form tells each word as a value of a record. Knows words; does not know models or methods.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

from ..pocket import data, values
from .haystack import PIECE_LINES, no_file
from .task import CountTokens, Document, Match, Question, Style, share_named

OFTEN, SELDOM, LEAST = 30, 3, 2
"""How often a wanted word and any other word come up, as in RULER; in a document that is too short for it ``LEAST`` times and once."""

FIELD = "section"
"""Field of the record form."""

QUESTIONS: dict[Style, str] = {
    "record": "What are the {count} most common {field} values?",
    "prose": "What are the {count} most common words in the list?",
}


@dataclass(frozen=True, slots=True)
class Aggregation:
    """Name the most common words.

    Attributes:
        style: ``prose`` as in RULER, ``record`` as values of records.
        wanted: how many words.
    """

    style: Style = "record"
    wanted: int = 10
    name: ClassVar[str] = "aggregation"
    alone: ClassVar[bool] = False

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """A shuffled list of words with one question about all of it; it lies at no depth."""
        no_file(self.name, file)
        words, told, total = _new_words(rng), list[str](), 0
        common = [next(words) for _ in range(self.wanted)]
        size = sum(count_tokens(self._listed(self._told(rng, word), 1)) for word in common)
        often = max(LEAST, min(OFTEN, length // (2 * max(1, size))))
        seldom = max(1, often * SELDOM // OFTEN)
        for word in chain(common, words):
            if word not in common and total >= length:
                break
            lines = [self._told(rng, word) for _ in range(often if word in common else seldom)]
            told += lines
            total += sum(count_tokens(self._listed(line, 1)) for line in lines)
        rng.shuffle(told)
        listed = [self._listed(line, number) for number, line in enumerate(told, 1)]
        pieces = tuple("\n".join(listed[i : i + PIECE_LINES]) for i in range(0, len(listed), PIECE_LINES))
        text = QUESTIONS[self.style].format(count=self.wanted, field=FIELD)
        return Document(pieces, ((Question(text, tuple(common)),),))

    def _told(self, rng: random.Random, word: str) -> str:
        if self.style == "prose":
            return word
        return data.render_fact(data.make_name(rng), FIELD, word, rng.choice(data.LAYOUTS))

    def _listed(self, line: str, number: int) -> str:
        return f"{number}. {line}" if self.style == "prose" else line

    def score(self, question: Question, said: str, match: Match) -> float:
        """Share of the wanted words that are named."""
        return share_named(said, question.answers, question.stem, match)


def _new_words(rng: random.Random) -> Iterator[str]:
    """Words, each a different one; short runs of letters are left out, which are in other words."""
    told: set[str] = set()
    while True:
        word = values.word(rng)
        if len(word) > 3 and word not in told:
            told.add(word)
            yield word
