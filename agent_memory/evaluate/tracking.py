"""Variable tracking (RULER, arXiv 2404.06654): a value is handed on along a chain of names that are told far from one another.

The prose form asks for all names that have the value, as RULER does, which a model answers if it follows the whole chain by itself. The
record form asks for each hop by itself, which a model answers that can only look things up. Knows words; does not know models or methods.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .haystack import Needle, filler, hay, new_name, pile
from .needle import hide_in_order
from .task import CountTokens, Document, Match, Question, Style, same

VARIABLE = re.compile(r"(?<!\w)[A-Z]{5}(?!\w)")
"""What names look like in the prose form."""

FIELD = "source"
"""Field of the record form."""

QUESTION = "Find all variables that are assigned the value {value}. There are {count}: answer with their names."


@dataclass(frozen=True, slots=True)
class Tracking:
    """Follow a chain.

    Attributes:
        style: ``prose`` as in RULER, ``record`` as facts whose values are names.
        hops: how often the value is handed on; a chain has one name more.
        chains: chains that are told for each one that is asked about.
    """

    style: Style = "record"
    hops: int = 4
    chains: int = 1
    name: ClassVar[str] = "variable-tracking"
    alone: ClassVar[bool] = False

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """Hay with a chain from each depth on: its first link lies there, the others at random places behind, in order."""
        source = filler if self.style == "prose" else hay
        made, taken, questions = pile(source(rng, file), length, count_tokens), set[str](), list[Question]()
        for depth in depths:
            for number in range(self.chains):
                names = [self._new_name(rng, taken) for _ in range(self.hops + 1)]
                value = _new(taken, lambda: str(rng.randrange(10_000, 100_000)))
                handed_on = [value, *names]
                hide_in_order(rng, made, depth, [self._line(rng, *link) for link in zip(names, handed_on, strict=False)])
                if number == 0:
                    questions += self._questions(depth, names, value)
        return Document(tuple(made.pieces), tuple((question,) for question in questions))

    def _new_name(self, rng: random.Random, taken: set[str]) -> str:
        if self.style == "record":
            return new_name(rng, taken)
        return _new(taken, lambda: "".join(rng.choice(string.ascii_uppercase) for _ in range(5)))

    def _line(self, rng: random.Random, name: str, value: str) -> str:
        if self.style == "record":
            return Needle(name, FIELD, value, 0).line(rng)
        return f"VAR {name} = {value}" if value.isdigit() else f"VAR {name} = VAR {value}"

    def _questions(self, depth: float, names: list[str], value: str) -> list[Question]:
        if self.style == "prose":
            return [Question(QUESTION.format(value=value, count=len(names)), tuple(names), depth)]
        hops = [Needle(name, FIELD, to, depth) for name, to in zip(names, [value, *names], strict=False)]
        return [Question(hop.question, (hop.value,), depth, hop.stem) for hop in hops]

    def score(self, question: Question, said: str, match: Match) -> float:
        """Prose: names that are right, of all that are wanted or were named, so that extra ones cost. Record: 1 if the hop is right."""
        if self.style == "record":
            return float(same(said, question.answers[0], question.stem, match))
        named, wanted = set(VARIABLE.findall(said)), set(question.answers)
        return len(named & wanted) / len(named | wanted)


def _new(taken: set[str], draw: Callable[[], str]) -> str:
    while (drawn := draw()) in taken:
        pass
    taken.add(drawn)
    return drawn
