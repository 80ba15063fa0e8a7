"""Haystacks of generated text with facts hidden in them, for any tokenizer.

Knows text, tokens and facts; does not know models or methods.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..pocket import data

PIECE_LINES = 10
"""Lines of one tool output of hay."""


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

    def found_in(self, answer: str, match: str = "exact") -> bool:
        """Whether an answer is right: equal to the value once a restated ``<name> <field>:`` and a final period are removed.

        Args:
            answer: what the model said.
            match: ``exact``, or ``contains`` for models that answer in sentences.
        """
        said, value = _plain(answer), _plain(self.value)
        if match == "contains":
            return value in said
        return _plain(said.removeprefix(_plain(f"{self.name} {self.field}:"))).removesuffix(".") == value.removesuffix(".")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


@dataclass(frozen=True, slots=True)
class Haystack:
    """Pieces of text, each one tool output, with a needle in some of them."""

    pieces: tuple[str, ...]
    needles: tuple[Needle, ...]


def hay(rng: random.Random, file: Path | None) -> Iterator[str]:
    """Endless pieces of text: generated records and noise, or consecutive lines of a file, from a random place, again and again."""
    if file is None:
        while True:
            record = data.make_record(rng, n_fields=2)
            yield data.render(record, rng.choice(data.LAYOUTS)) + "\n" + data.noise(rng, PIECE_LINES - 2)
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


def make_haystack(
    rng: random.Random, length: int, depths: list[float], count_tokens: Callable[[str], int], file: Path | None = None
) -> Haystack:
    """Hay of at least ``length`` tokens with a needle at each depth (0 is the beginning, 1 the end).

    Args:
        rng: source of everything random.
        length: tokens.
        depths: where needles lie.
        count_tokens: tokens of a text as the model counts them.
        file: hay from a file instead of the generator.
    """
    pieces: list[str] = []
    sizes: list[int] = []
    for piece in hay(rng, file):
        if sum(sizes) >= length:
            break
        pieces.append(piece)
        sizes.append(count_tokens(piece))
    needles: list[Needle] = []
    taken: set[str] = set()
    for depth in depths:
        at = _piece_at(sizes, depth * sum(sizes))
        record = data.make_record(rng, n_fields=1)
        while record.name in taken:
            record = data.make_record(rng, n_fields=1)
        taken.add(record.name)
        field, value = next(iter(record.fields.items()))
        needles.append(Needle(record.name, field, value, depth))
        lines = pieces[at].split("\n")
        lines.insert(rng.randrange(len(lines) + 1), data.render_fact(record.name, field, value, rng.choice(data.LAYOUTS)))
        pieces[at] = "\n".join(lines)
    return Haystack(tuple(pieces), tuple(needles))


def _piece_at(sizes: list[int], token: float) -> int:
    seen = 0
    for index, size in enumerate(sizes):
        seen += size
        if token < seen:
            return index
    return len(sizes) - 1
