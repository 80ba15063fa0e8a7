"""What a task is: a document told piece by piece, questions about it, and how right an answer to one is.

Knows texts and scores; does not know models or Sessions, nor how a document is generated.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..types import Role

Match = Literal["exact", "contains"]
"""When an answer is right: it is nothing else than the value, or the value is somewhere in it (for models that answer in sentences)."""

Style = Literal["record", "prose"]
"""How facts are told: as records, which any model reads that reads the haystacks, or in the words of the benchmark a task is from."""

CountTokens = Callable[[str], int]
"""Tokens of a text as the model counts them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question and what is expected.

    Attributes:
        text: as it is asked.
        answers: what is expected; the task says whether one of them is enough or all are wanted.
        depth: where in the document its fact lies, from 0 (beginning) to 1 (end); None where that means nothing.
        stem: what an answer may say before the value, such as ``<name> <field>:``.
        outdated: answers that were right before a newer fact.
        role: who asks.
    """

    text: str
    answers: tuple[str, ...]
    depth: float | None = None
    stem: str = ""
    outdated: tuple[str, ...] = ()
    role: Role = "user"


@dataclass(frozen=True, slots=True)
class Document:
    """What is told and what is asked.

    Attributes:
        pieces: texts, appended one by one as tool messages.
        questions: each entry on a fork of its own; the questions of one entry one after another, in turns of that fork.
    """

    pieces: tuple[str, ...]
    questions: tuple[tuple[Question, ...], ...]


class Task(Protocol):
    """One way to measure memory; its ``repr`` says everything it was made with."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def alone(self) -> bool:
        """Whether a document can hold the fact of one depth only, so that every depth needs a document of its own."""

    def make(self, rng: random.Random, length: int, depths: Sequence[float], count_tokens: CountTokens, file: Path | None) -> Document:
        """A document of at least ``length`` tokens with a question about each depth.

        Args:
            rng: source of everything random.
            length: tokens of hay.
            depths: where facts lie, from 0 to 1; one, if ``alone``.
            count_tokens: tokens of a text.
            file: hay from this file instead of the task's own.

        Raises:
            ConfigError: a file that cannot be read, or one given to a task whose hay is part of the task.
        """

    def score(self, question: Question, said: str, match: Match) -> float:
        """How right ``said`` is, from 0 to 1."""


def plain(text: str) -> str:
    """A text as it is compared: composed characters, no space around it."""
    return unicodedata.normalize("NFC", text).strip()


def same(said: str, value: str, stem: str, match: Match) -> bool:
    """Whether an answer is this value, once a restated ``stem`` and a final period are removed; or only contains it."""
    said, value = plain(said), plain(value)
    if match == "contains":
        return value in said
    return plain(said.removeprefix(plain(stem))).removesuffix(".") == value.removesuffix(".")


def share_named(said: str, wanted: Sequence[str], stem: str, match: Match) -> float:
    """Share of the wanted values that an answer names; ``exact`` wants each to stand for itself, not inside a longer word or number."""
    said = plain(said).removeprefix(plain(stem))
    return sum(_names(said, plain(value), match) for value in wanted) / len(wanted)


def _names(said: str, value: str, match: Match) -> bool:
    if match == "contains":
        return value in said
    joint = r"[\w+~/:@-]"
    return re.search(rf"(?<!{joint})(?<!\w\.){re.escape(value)}(?!{joint})(?!\.\w)", said) is not None
