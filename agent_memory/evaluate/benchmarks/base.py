"""What a benchmark is here: questions read from a user's files, and the metrics that judge their answers.

Knows the shape of a question and how a file in the wrong format is refused; does not know any data set, model or Session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError

JSON_TYPES = {str: "a string", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Section:
    """One piece of a context.

    Attributes:
        heading: stands before its passages.
        passages: name and text of each, in order; evidence goes by names.
    """

    heading: str
    passages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Context:
    """A context by its passages.

    Attributes:
        opening: stands before everything.
        sections: its pieces, in order.
    """

    opening: str
    sections: tuple[Section, ...]

    @property
    def passages(self) -> list[tuple[str, str]]:
        """Name and text of each, in order."""
        return [passage for section in self.sections for passage in section.passages]

    def pieces(self, shown: Container[int] | None = None) -> tuple[str, ...]:
        """Its text, a piece each section: all of it, or of some passages, by their numbers, with the headings over them."""
        found, number = list[str](), 0
        for section in self.sections:
            texts = [text for at, (_, text) in enumerate(section.passages, number) if shown is None or at in shown]
            number += len(section.passages)
            if texts:
                found.append((self.opening if not found else "") + section.heading + "".join(texts))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: file, line and place on the line; unique within a run.
        dataset: what its score counts towards.
        pieces: the context, one user message each; none for a question without context.
        question: the user message that is asked after them.
        answers: the right answers, in the form the metric reads.
        metric: its name among the benchmark's metrics.
        max_new_tokens: tokens an answer may have, as the benchmark's authors set it.
        system: the authors' system prompt, if they use one.
        stop: strings that end an answer.
        meta: what else the metric reads; plain JSON types.
        context: the pieces by passages, where the benchmark's authors tell them apart.
        evidence: names of the passages that a question can be answered from, where they say so.
        query: the question without what the prompt says around it.
    """

    id: str
    dataset: str
    pieces: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    metric: str
    max_new_tokens: int
    system: str | None = None
    stop: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    context: Context | None = None
    evidence: tuple[str, ...] = ()
    query: str = ""


Reader = Callable[[Path], Iterator[Item]]

Metric = Callable[[str, Item], tuple[float, ...]]
"""Judges one answer: one part from 0 to 1, or several, whose means over a data set are combined as their geometric mean."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How the files of one benchmark are read and its answers judged."""

    read: Reader
    metrics: Mapping[str, Metric]


def best(score: Callable[[str, str], float]) -> Metric:
    """The metric that gives an answer its score against the right answer it is nearest to."""
    return lambda said, item: (max((float(score(said, answer)) for answer in item.answers), default=0.0),)


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file. Its methods refuse what is not there.

    Attributes:
        place: where it stands, for people.
        number: its line, from 1 (in a list: its place, from 1).
        format: name of the benchmark the file is read as.
        data: the object.
    """

    place: str
    number: int
    format: str
    data: Mapping[str, Any]

    def get(self, key: str, *kinds: type) -> Any:
        """The value of a key.

        Raises:
            ConfigError: it is missing, or none of ``kinds``.
        """
        if key not in self.data:
            raise self.wrong(f"key {key!r} is missing; found are {', '.join(sorted(self.data)) or 'no keys'}")
        value = self.data[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(dict.fromkeys(JSON_TYPES[kind] for kind in kinds))
            raise self.wrong(f"key {key!r} must be {wanted}, not {JSON_TYPES.get(type(value), 'null')}")
        return value

    def text(self, key: str) -> str:
        """A string."""
        return str(self.get(key, str))

    def texts(self, key: str, *, nested: bool = False) -> tuple[str, ...]:
        """A list of strings or numbers, or one of them alone; ``nested``: it may be the first of a list of lists."""
        value = self.get(key, list, str, int, float)
        found = value if isinstance(value, list) else [value]
        found = found[0] if nested and found and isinstance(found[0], list) else found
        if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in found):
            raise self.wrong(f"key {key!r} must hold strings or numbers only")
        return tuple(str(one) for one in found)

    def rows(self, key: str) -> Iterator[Row]:
        """A list of objects."""
        for number, value in enumerate(self.get(key, list), 1):
            yield row_of(value, f"{self.place}, {key} {number}", number, self.format)

    def wrong(self, why: str) -> ConfigError:
        """The error that names the place."""
        return ConfigError(f"{self.place}: {why}; this is not the {self.format} format")


def row_of(value: Any, place: str, number: int, format: str) -> Row:
    """A Row, if ``value`` is a JSON object."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: must be an object, not {JSON_TYPES.get(type(value), 'null')}; this is not the {format} format")
    return Row(place, number, format, value)


def jsonl(path: Path, format: str) -> Iterator[Row]:
    """The objects of a file with one JSON object a line, read line by line; empty lines are skipped.

    Raises:
        ConfigError: the file cannot be read, or a line is no JSON object; names file and line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(line, f"{path}, line {number}", number, format)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _row(line: str, place: str, number: int, format: str) -> Row:
    try:
        return row_of(json.loads(line), place, number, format)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: {error.msg}; {format} files hold one JSON object a line") from error


def around_context(template: str, **values: str) -> tuple[str, str]:
    """The text of a prompt template before and after its ``{context}``, the other fields filled in."""
    before, after = template.split("{context}")
    return before.format(**values), after.format(**values)
