"""Tasks that ask for facts hidden in hay: one, one among many, several of one name, several in turn, near-duplicates, replaced ones.

They are RULER's niah family (arXiv 2404.06654, table 2) told as records. Knows facts and where they lie; does not know models or methods.
"""

from __future__ import annotations

import random
import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..pocket import data, values
from .haystack import PIECE_LINES, Needle, Pile, hay, make_haystack, new_name, new_needle, no_file, pile
from .task import CountTokens, Document, Match, Question, same, share_named

SEVERAL = 4
"""Values of one name (multi-value), and names asked one after another (multi-query), as RULER has them."""

NEIGHBOURS = 3
"""Facts about other names directly around each one that is asked about (multi-key), as RULER's first multi-key task has them."""

NEAR_DUPLICATES = 6
"""Names near each asked one that are told too."""

ALL_VALUES = "Which {field} does {name} have? Tell all."
"""How several values of one name are asked for."""


class _OneAnswer:
    """Tasks whose questions have one right answer each."""

    alone: ClassVar[bool] = False

    def score(self, question: Question, said: str, match: Match) -> float:
        """1 if the answer is the value asked for, else 0."""
        return float(any(same(said, answer, question.stem, match) for answer in question.answers))


def _asking(needle: Needle, *outdated: str) -> Question:
    return Question(needle.question, (needle.value,), needle.depth, needle.stem, outdated)


def _one_by_one(made: Pile, questions: Sequence[Question]) -> Document:
    return Document(tuple(made.pieces), tuple((question,) for question in questions))


@dataclass(frozen=True, slots=True)
class SingleNeedle(_OneAnswer):
    """One fact at each depth, in hay whose own facts have other names."""

    name: ClassVar[str] = "needle"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with a needle at each depth."""
        stack = make_haystack(rng, length, depths, count_tokens, file)
        return Document(stack.pieces, tuple((_asking(needle),) for needle in stack.needles))


@dataclass(frozen=True, slots=True)
class MultiKey(_OneAnswer):
    """Facts of the same form about other names in every piece of hay, and directly around each fact that is asked about."""

    name: ClassVar[str] = "multi-key"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with one distractor in every piece, and ``NEIGHBOURS`` more around each needle."""
        taken: set[str] = set()
        needles = [new_needle(rng, depth, taken) for depth in depths]
        made = pile(self._crowded(rng, file, needles, taken), length, count_tokens)
        for needle in needles:
            lines = [_other(rng, needle, taken).line(rng) for _ in range(NEIGHBOURS)]
            lines.insert(rng.randrange(1, NEIGHBOURS), needle.line(rng))
            at = made.at(needle.depth)
            made.put(at, made.spot(rng, at), "\n".join(lines))
        return _one_by_one(made, [_asking(needle) for needle in needles])

    def _crowded(self, rng: random.Random, file: Path | None, needles: Sequence[Needle], taken: set[str]) -> Iterator[str]:
        for piece in hay(rng, file):
            lines = piece.split("\n")
            lines.insert(rng.randrange(len(lines) + 1), _other(rng, rng.choice(needles), taken).line(rng))
            yield "\n".join(lines)


def _other(rng: random.Random, needle: Needle, taken: set[str]) -> Needle:
    """A fact on the same field about a name that is not taken yet; takes it."""
    return replace(needle, name=new_name(rng, taken), value=_other_value(rng, needle.field, (needle.value,)))


def _other_value(rng: random.Random, field: str, told: Collection[str], apart: bool = False) -> str:
    """A value of the field that was not told; with ``apart``, one that also contains none of those told and is contained in none."""
    while True:
        value = values.value(rng, field)
        if value not in told and not (apart and any(value in other or other in value for other in told)):
            return value


@dataclass(frozen=True, slots=True)
class MultiValue:
    """One name and field has several values, told at several places from its depth on; all are wanted."""

    several: int = SEVERAL
    name: ClassVar[str] = "multi-value"
    alone: ClassVar[bool] = False

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with ``several`` facts a question: the first at its depth, the others at random places behind."""
        made, taken, questions = pile(hay(rng, file), length, count_tokens), set[str](), []
        for depth in depths:
            needle = new_needle(rng, depth, taken)
            told = [needle.value]
            while len(told) < self.several:
                told.append(_other_value(rng, needle.field, told, apart=True))
            hide_in_order(rng, made, depth, [replace(needle, value=value).line(rng) for value in told])
            text = ALL_VALUES.format(name=needle.name, field=needle.field)
            questions.append(Question(text, tuple(told), depth, needle.stem))
        return _one_by_one(made, questions)

    def score(self, question: Question, said: str, match: Match) -> float:
        """Share of the values that are named."""
        return share_named(said, question.answers, question.stem, match)


def hide_in_order(rng: random.Random, made: Pile, depth: float, lines: Sequence[str]) -> None:
    """Hide the first line at a depth and the others at random places behind it, in this order."""
    last, spot = -1, 0
    for place in [depth, *sorted(rng.uniform(depth, 1) for _ in lines[1:])]:
        at = made.at(place)
        spot = made.spot(rng, at, spot + 1 if at == last else 0)
        made.put(at, spot, lines[0])
        last, lines = at, lines[1:]


@dataclass(frozen=True, slots=True)
class MultiQuery(_OneAnswer):
    """Several names are asked one after another, in turns of one fork, in random order."""

    several: int = SEVERAL
    name: ClassVar[str] = "multi-query"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with a needle at each depth; with fewer than ``several``, needles at random places that have no depth of their own."""
        more = [rng.random() for _ in range(self.several - len(depths))]
        stack = make_haystack(rng, length, [*depths, *more], count_tokens, file)
        questions = [_asking(needle) for needle in stack.needles]
        questions = questions[: len(depths)] + [replace(question, depth=None) for question in questions[len(depths) :]]
        rng.shuffle(questions)
        forks = -(-len(questions) // self.several)
        return Document(stack.pieces, tuple(tuple(questions[fork::forks]) for fork in range(forks)))


@dataclass(frozen=True, slots=True)
class NearDuplicate(_OneAnswer):
    """Every line is a fact on the same field, as in RULER's third multi-key task, and ``near`` of them, anywhere, are about names that
    differ from the asked one in a piece. Their number does not grow with the length, so that a window and a long history are equally hard.
    """

    near: int = NEAR_DUPLICATES
    name: ClassVar[str] = "near-duplicate"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Lines of facts only: each asked one at its depth, its near-duplicates at random places."""
        no_file(self.name, file)
        taken, told, field = set[str](), set[str](), rng.choice(data.FIELDS)

        def fact(name: str, depth: float = 0.0) -> Needle:
            value = _other_value(rng, field, told)
            told.add(value)
            return Needle(name, field, value, depth)

        def others() -> Iterator[str]:
            while True:
                yield "\n".join(fact(new_name(rng, taken)).line(rng) for _ in range(PIECE_LINES))

        needles = [fact(new_name(rng, taken), depth) for depth in depths]
        made = pile(others(), length, count_tokens)
        for needle in needles:
            for _ in range(self.near):
                at = made.at(rng.random())
                made.put(at, made.spot(rng, at), fact(new_name(rng, taken, like=needle.name)).line(rng))
            at = made.at(needle.depth)
            made.put(at, made.spot(rng, at), needle.line(rng))
        return _one_by_one(made, [_asking(needle) for needle in needles])


@dataclass(frozen=True, slots=True)
class Crowd(_OneAnswer):
    """Every line is a fact on the same field, and all names are near-duplicates of one another: the longer, the more of them."""

    name: ClassVar[str] = "crowd"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Lines of facts only, one of the asked names at each depth."""
        no_file(self.name, file)
        field, first = rng.choice(data.FIELDS), data.make_name(rng)
        taken, told = {first}, set[str]()
        needles: list[Needle] = []
        for depth in depths:
            name = near_name(rng, first, taken) if needles else first
            value = _other_value(rng, field, told)
            told.add(value)
            needles.append(Needle(name, field, value, depth))
        made = pile(self._facts(rng, needles, taken, told), length, count_tokens)
        for needle in needles:
            at = made.at(needle.depth)
            made.put(at, made.spot(rng, at), needle.line(rng))
        return _one_by_one(made, [_asking(needle) for needle in needles])

    def _facts(self, rng: random.Random, needles: Sequence[Needle], taken: set[str], told: set[str]) -> Iterator[str]:
        while True:
            lines = []
            for _ in range(PIECE_LINES):
                needle = rng.choice(needles)
                name = near_name(rng, needle.name, taken)
                lines.append(replace(needle, name=name, value=_other_value(rng, needle.field, told)).line(rng))
            yield "\n".join(lines)


def near_name(rng: random.Random, name: str, taken: set[str]) -> str:
    """A name that differs from another in one piece, one character or the number at its end, and is not taken yet; takes it."""
    while True:
        kind = rng.randrange(3)
        if kind == 0:
            near = data.make_name(rng, like=name)
        elif kind == 1:
            at = rng.randrange(len(name))
            letter = rng.choice(string.digits if name[at].isdigit() else string.ascii_lowercase)
            near = name[:at] + letter + name[at + 1 :] if name[at].isalnum() else name
        else:
            near = name.rstrip(string.digits) + values.integer(rng)
        if near not in taken and not data.is_real_name(near):
            taken.add(near)
            return near


@dataclass(frozen=True, slots=True)
class Updated(_OneAnswer):
    """A fact is told again with another value; the newest is right. Answers with the older value are counted too."""

    name: ClassVar[str] = "updated"

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with each fact twice: the newest at its depth, the older at a random place before it."""
        made, taken, questions = pile(hay(rng, file), length, count_tokens), set[str](), []
        for depth in depths:
            newest = new_needle(rng, depth, taken)
            older = replace(newest, value=_other_value(rng, newest.field, (newest.value,), apart=True))
            first, at = made.at(rng.uniform(0, depth)), made.at(depth)
            spot = made.spot(rng, first)
            made.put(first, spot, older.line(rng))
            made.put(at, made.spot(rng, at, spot + 1 if at == first else 0), newest.line(rng))
            questions.append(_asking(newest, older.value))
        return _one_by_one(made, questions)
