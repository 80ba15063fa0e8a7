"""Passkey retrieval: a five-digit key somewhere in the same five sentences again and again.

The prose form is that of arXiv 2305.16300 as LongLM's repository gives it, with one key a document; the record form tells a key for each
of several names, as a record. Knows words; does not know models or methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

from .haystack import Needle, filler, new_name, pile
from .task import CountTokens, Document, Match, Question, Style, same

HEADER = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
STEM = "The pass key is"
FIELD = "passkey"
"""Field of the record form."""


@dataclass(frozen=True, slots=True)
class Passkey:
    """Find the key."""

    style: Style = "record"
    name: ClassVar[str] = "passkey"

    @property
    def alone(self) -> bool:
        """The prose form speaks of *the* key, so there can be one only."""
        return self.style == "prose"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Filler with a key at each depth."""
        if self.style == "prose":
            return self._prose(rng, length, depths[0], count_tokens, file)
        made, taken, questions = pile(filler(rng, file), length, count_tokens), set[str](), []
        for depth in depths:
            needle, at = Needle(new_name(rng, taken), FIELD, _key(rng), depth), made.at(depth)
            made.put(at, made.spot(rng, at), needle.line(rng))
            questions.append((Question(needle.question, (needle.value,), depth, needle.stem),))
        return Document(tuple(made.pieces), tuple(questions))

    def _prose(self, rng: random.Random, length: int, depth: float, count_tokens: CountTokens, file: Path | None) -> Document:
        made, key = pile(chain([HEADER], filler(rng, file)), length, count_tokens), _key(rng)
        at = max(made.at(depth), min(1, len(made.pieces) - 1))
        made.put(at, made.spot(rng, at), KEY.format(key=key))
        return Document(tuple(made.pieces), ((Question(QUESTION, (key,), depth, STEM),),))

    def score(self, question: Question, said: str, match: Match) -> float:
        """1 if the answer is the key, else 0."""
        return float(same(said, question.answers[0], question.stem, match))


def _key(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))
