"""What is measured: documents that become memory, and what is asked about them with its gold answer.

Knows texts and token ids; does not know models, Sessions or methods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

from ...errors import ConfigError
from ...types import Role

Encode = Callable[[str], list[int]]
"""Token ids of a text, without special tokens."""


@dataclass(frozen=True, slots=True)
class BenchmarkMetric:
    """A public benchmark's own metric of a reply, and what it reads beside it (see ``benchmarks.base.Item``)."""

    benchmark: str
    name: str
    answers: tuple[str, ...]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One question, asked in a user message on a fork of its own.

    Attributes:
        text: as it is asked.
        answer: the gold answer, whose tokens' losses are compared.
        prefix: what a reply says before the answer (RULER's answer prefix); it is forced too, but not counted.
        expected: texts that a right reply contains, all of them; of benchmarks none.
        max_new_tokens: longest free reply.
        depth: where in the document the first fact it asks for lies, from 0 to 1; None where that is not known.
        metric: judges the reply; None judges it by ``expected``.
    """

    text: str
    answer: str
    prefix: str = ""
    expected: tuple[str, ...] = ()
    max_new_tokens: int = 48
    depth: float | None = None
    metric: BenchmarkMetric | None = None

    @property
    def whole(self) -> str:
        """Prefix and answer, as one reply."""
        return f"{self.prefix} {self.answer}" if self.prefix else self.answer

    def tokens(self, encode: Encode) -> tuple[list[int], int]:
        """Ids of the reply that is forced, and how many of the first ones are the prefix's.

        Raises:
            ConfigError: the answer has no tokens.
        """
        ids = encode(self.whole)
        first = len(commonprefix([ids, encode(self.prefix)])) if self.prefix else 0
        if first >= len(ids):
            raise ConfigError(f"the gold answer {self.answer!r} has no tokens")
        return ids, first

    def contained_in(self, said: str) -> bool:
        """Whether a reply contains every expected text, upper and lower case aside."""
        return all(text.casefold() in said.casefold() for text in self.expected)

    @property
    def key(self) -> str:
        """A digest of all that a reply to it depends on, beside the document."""
        facts = asdict(self)
        facts.pop("depth")
        return digest(facts)


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a text goes on after a document of plain text: token ids, each scored after all before it.

    Attributes:
        ids: the first of them is not scored: it is the last that is read before.
    """

    ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """A digest of it."""
        return digest(self.ids)


@dataclass(frozen=True, slots=True)
class Document:
    """What becomes memory, and what is asked about it.

    Attributes:
        name: for people.
        messages: role and text of each, in order.
        questions: each asked on a fork of its own.
        system: system prompt; None is the template's own.
        ids: token ids of plain text, instead of messages.
    """

    name: str
    messages: tuple[tuple[Role, str], ...] = ()
    questions: tuple[Question | Continuation, ...] = ()
    system: str | None = None
    ids: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """A digest of its text; what is asked about it does not change the memory."""
        return digest([self.system, self.messages, self.ids])


def digest(facts: Any) -> str:
    """A short name for JSON facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode(errors="replace")).hexdigest()[:16]
