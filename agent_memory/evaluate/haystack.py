"""Haystacks of generated text with facts hidden in them, for any tokenizer.

Knows text, tokens and facts; does not know tasks, models or methods.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..pocket import data
from .task import CountTokens, Match, same

PIECE_LINES = 10
"""Lines of one tool output of hay."""

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The line that the hay of passkey retrieval (arXiv 2305.16300) and of RULER's variable tracking is made of."""

FILLER_LINES = 3
"""Lines of one tool output of filler, which are twice as long."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A fact that was hidden, and how to ask for it."""

    name: str
    field: str
    value: str
    depth: float

    @property
    def question(self) -> str:
        """The question, the canonical way."""
        return data.question(self.name, self.field)

    @property
    def stem(self) -> str:
        """What an answer may restate before the value."""
        return f"{self.name} {self.field}:"

    def line(self, rng: random.Random) -> str:
        """The fact as a line, in any layout."""
        return data.render_fact(self.name, self.field, self.value, rng.choice(data.LAYOUTS))

    def found_in(self, answer: str, match: Match = "exact") -> bool:
        """Whether an answer is right: equal to the value once a restated ``<name> <field>:`` and a final period are removed.

        Args:
            answer: what the model said.
            match: ``exact``, or ``contains`` for models that answer in sentences.
        """
        return same(answer, self.value, self.stem, match)


@dataclass(frozen=True, slots=True)
class Haystack:
    """Pieces of text, each one tool output, with a needle in some of them."""

    pieces: tuple[str, ...]
    needles: tuple[Needle, ...]


@dataclass(slots=True)
class Pile:
    """Hay that facts are being hidden in.

    Attributes:
        pieces: texts, each one tool output.
        sizes: tokens of each piece before anything was hidden in it.
    """

    pieces: list[str]
    sizes: list[int]

    def at(self, depth: float) -> int:
        """The piece at a depth from 0 to 1."""
        token, seen = depth * sum(self.sizes), 0
        for index, size in enumerate(self.sizes):
            seen += size
            if token < seen:
                return index
        return len(self.sizes) - 1

    def spot(self, rng: random.Random, at: int, after: int = 0) -> int:
        """A random place between the lines of a piece, behind at least ``after`` of them."""
        return after + rng.randrange(self.pieces[at].count("\n") + 2 - after)

    def put(self, at: int, spot: int, text: str) -> None:
        """Insert a line, or several, at a place of a piece."""
        lines = self.pieces[at].split("\n")
        lines.insert(spot, text)
        self.pieces[at] = "\n".join(lines)


def pile(pieces: Iterable[str], length: int, count_tokens: CountTokens) -> Pile:
    """At least ``length`` tokens of pieces, or all there are."""
    made = Pile([], [])
    total = 0
    for piece in pieces:
        if total >= length:
            break
        made.pieces.append(piece)
        made.sizes.append(count_tokens(piece))
        total += made.sizes[-1]
    return made


def hay(rng: random.Random, file: Path | None) -> Iterator[str]:
    """Endless pieces of text: generated records and noise, or consecutive lines of a file, from a random place, again and again.

    Raises:
        ConfigError: the file cannot be read, or has no text.
    """
    if file is not None:
        yield from _lines_of(rng, file)
    while True:
        record = data.make_record(rng, n_fields=2)
        yield data.render(record, rng.choice(data.LAYOUTS)) + "\n" + data.noise(rng, PIECE_LINES - 2)


def filler(rng: random.Random, file: Path | None) -> Iterator[str]:
    """Endless pieces of :data:`FILLER`, or of a file as :func:`hay`."""
    if file is not None:
        yield from _lines_of(rng, file)
    while True:
        yield "\n".join([FILLER] * FILLER_LINES)


def _lines_of(rng: random.Random, file: Path) -> Iterator[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"the haystack file cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"the haystack file {file} has no text in it")
    at = rng.randrange(len(lines))
    while True:
        yield "\n".join(lines[(at + i) % len(lines)] for i in range(min(PIECE_LINES, len(lines))))
        at += PIECE_LINES


def no_file(name: str, file: Path | None) -> None:
    """Refuse a haystack file for a task whose hay is part of the task.

    Raises:
        ConfigError: there is one.
    """
    if file is not None:
        raise ConfigError(f"the task {name} makes its own hay, so the haystack file {file} cannot be used; leave it out")


def new_name(rng: random.Random, taken: set[str], like: str | None = None) -> str:
    """A name that is not taken yet, a near-duplicate of ``like`` if given; takes it."""
    name = data.make_name(rng, like=like)
    while name in taken:
        name = data.make_name(rng, like=like)
    taken.add(name)
    return name


def new_needle(rng: random.Random, depth: float, taken: set[str]) -> Needle:
    """A fact about a name that is not taken yet; takes it."""
    record = data.make_record(rng, n_fields=1)
    while record.name in taken:
        record = data.make_record(rng, n_fields=1)
    taken.add(record.name)
    field, value = next(iter(record.fields.items()))
    return Needle(record.name, field, value, depth)


def make_haystack(
    rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None = None
) -> Haystack:
    """Hay of at least ``length`` tokens with a needle at each depth (0 is the beginning, 1 the end).

    What ``rng`` is asked for, and in which order, is part of what figures mean: the same seed gives the same hay.

    Args:
        rng: source of everything random.
        length: tokens.
        depths: where needles lie.
        count_tokens: tokens of a text as the model counts them.
        file: hay from a file instead of the generator.
    """
    made = pile(hay(rng, file), length, count_tokens)
    needles: list[Needle] = []
    taken: set[str] = set()
    for depth in depths:
        needle = new_needle(rng, depth, taken)
        needles.append(needle)
        at = made.at(depth)
        made.put(at, made.spot(rng, at), needle.line(rng))
    return Haystack(tuple(made.pieces), tuple(needles))
