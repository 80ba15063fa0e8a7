"""Needles in prose in RULER's words (arXiv 2404.06654; GitHub NVIDIA/RULER, ``scripts/data/synthetic``, task ``niah``).

A document is a slice of a text with facts between its lines, told in one user message; questions follow in messages of their own. Knows
texts; does not know models or methods.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ..haystack import FILLER
from .documents import Document, Question
from .keys import read_keys
from .texts import texts_of

CountTokens = Callable[[str], int]

KINDS = ("single", "multi-key", "multi-value", "multi-query")
"""RULER's kinds: one fact; facts of the same form about other keys; several values of a key; several keys in one question."""

SEVERAL = 4
"""Values of one key (multi-value), and keys in one question (multi-query), as RULER has them."""

DIGITS = 7
"""Of a value, as RULER has them."""

LONGEST_LINE = 400
"""Characters; a line of more is cut at the ends of its sentences, so that facts can stand between them."""

NEEDLE = "One of the special magic numbers for {key} is: {value}."
ONE_HIDDEN = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards."
)
SOME_HIDDEN = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards."
)
ASK_ONE = "What is the special magic number for {keys} mentioned in the provided text?"
ASK_ALL = "What are all the special magic numbers for {keys} mentioned in the provided text?"
PREFIX_ONE = "The special magic number for {keys} mentioned in the provided text is"
PREFIX_ALL = "The special magic numbers for {keys} mentioned in the provided text are"


@dataclass(frozen=True, slots=True)
class NeedleOptions:
    """How documents are made.

    Attributes:
        kind: of :data:`KINDS`.
        length: tokens of a document, questions not counted.
        facts: in one document; with ``single`` always one.
        haystack: file the prose is from, text or ``.jsonl``; None repeats RULER's noise sentences.
        keys: as :func:`.keys.read_keys` takes them.
        max_new_tokens: longest reply of one value; further values have room beside it.
        seed: of everything random; document ``i`` depends on it and on ``i`` alone.
    """

    kind: str = "multi-key"
    length: int = 6000
    facts: int = 8
    haystack: Path | None = None
    keys: str = "cities"
    max_new_tokens: int = 48
    seed: int = 0

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be."""
        if self.kind not in KINDS:
            raise ConfigError(f"kind={self.kind!r} is no kind of needle; choose one of {', '.join(KINDS)}")
        several = self.kind in ("multi-value", "multi-query")
        if self.facts < 1 or (several and self.facts % SEVERAL):
            raise ConfigError(f"{self.facts} facts cannot be used; it must be {f'a multiple of {SEVERAL}' if several else 'at least 1'}")


class NeedleDocuments:
    """Makes documents by number.

    Args:
        options: how.
        count_tokens: tokens of a text as the model counts them.

    Raises:
        ConfigError: an option that cannot be, or a file that cannot be read.
    """

    def __init__(self, options: NeedleOptions, count_tokens: CountTokens) -> None:
        options.check()
        self._options, self._count = options, count_tokens
        self._facts = 1 if options.kind == "single" else options.facts
        self._keys = read_keys(options.keys, self._facts)
        self._lines = [FILLER] if options.haystack is None else prose_lines(options.haystack)
        self._sizes = [count_tokens(line + "\n") for line in self._lines]

    def make(self, number: int) -> Document:
        """The document of that number, the same for the same options.

        Raises:
            ConfigError: the length has no room for the facts.
        """
        options = self._options
        rng = random.Random(f"{options.seed} {options.kind} {number}")  # noqa: S311 - reproducible, not secret
        values_each = SEVERAL if options.kind == "multi-value" else 1
        keys = [key for key in rng.sample(self._keys, self._facts // values_each) for _ in range(values_each)]
        facts = list(zip(keys, _values(rng, len(keys)), strict=True))
        rng.shuffle(facts)
        text, depths = self._hidden(rng, facts)
        questions = self._questions(rng, facts, depths)
        return Document(f"{options.kind} {number}", (("user", text),), questions)

    def _hidden(self, rng: random.Random, facts: Sequence[tuple[str, str]]) -> tuple[str, list[float]]:
        """The message with the facts between its lines, in this order, and how deep each lies."""
        opening = ONE_HIDDEN if self._options.kind in ("single", "multi-key") else SOME_HIDDEN
        needles = [NEEDLE.format(key=key, value=value) for key, value in facts]
        room = self._options.length - self._count(opening) - sum(self._count(needle + "\n") for needle in needles)
        if room < self._options.length // 2:
            raise ConfigError(
                f"a document of {self._options.length} tokens has no room for {len(needles)} facts; take fewer, or longer ones"
            )
        at, taken, sizes = rng.randrange(len(self._lines)), list[str](), list[int]()
        while room >= (size := self._sizes[at % len(self._lines)]):
            taken.append(self._lines[at % len(self._lines)])
            sizes.append(size)
            room, at = room - size, at + 1
        places = sorted(rng.randrange(len(taken) + 1) for _ in needles)
        depths = [sum(sizes[:place]) / max(1, sum(sizes)) for place in places]
        for place, needle in reversed(list(zip(places, needles, strict=True))):
            taken.insert(place, needle)
        return "\n".join([opening, *taken]), depths

    def _questions(self, rng: random.Random, facts: Sequence[tuple[str, str]], depths: Sequence[float]) -> tuple[Question, ...]:
        """What is asked, in random order: every key by itself, or several at once."""
        told: dict[str, list[str]] = {}
        first: dict[str, float] = {}
        for (key, value), depth in zip(facts, depths, strict=True):
            told.setdefault(key, []).append(value)
            first.setdefault(key, depth)
        keys = list(told)
        rng.shuffle(keys)
        at_once = SEVERAL if self._options.kind == "multi-query" else 1
        asked = [keys[at : at + at_once] for at in range(0, len(keys), at_once)]
        return tuple(self._question(group, [value for key in group for value in told[key]], first[group[0]]) for group in asked)

    def _question(self, keys: Sequence[str], values: Sequence[str], depth: float) -> Question:
        ask, prefix = (ASK_ONE, PREFIX_ONE) if len(values) == 1 else (ASK_ALL, PREFIX_ALL)
        named, longest = enumerated(keys), self._options.max_new_tokens + sum(self._count(value) + 2 for value in values[1:])
        answer = enumerated(values)
        return Question(ask.format(keys=named), answer, prefix.format(keys=named), tuple(values), longest, depth)


def enumerated(words: Sequence[str]) -> str:
    """``a``, or ``a, b, and c``, as RULER writes several."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + ", and " + words[-1]


def _values(rng: random.Random, count: int) -> list[str]:
    """Different numbers."""
    return [str(number) for number in rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)]


def prose_lines(file: Path) -> list[str]:
    """Lines of the texts of a file that are not empty, long ones sentence by sentence.

    Raises:
        ConfigError: the file cannot be read, or has no text.
    """
    lines = [line.strip() for _, text in texts_of(file) for line in text.splitlines() if line.strip()]
    cut = [part for line in lines for part in ([line] if len(line) <= LONGEST_LINE else re.split(r"(?<=[.!?])\s+", line))]
    if not cut:
        raise ConfigError(f"the haystack file {file} has no text in it")
    return cut
