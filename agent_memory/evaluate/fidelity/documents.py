"""What is measured: documents, and questions about them with their gold answers.

Knows texts and token ids; does not know models, Sessions or methods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from os.path import commonprefix
from typing import Any

from ...errors import ConfigError
from ...types import Role

Encode = Callable[[str], list[int]]
"""Token ids of a text, without special tokens."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, asked in a user message on a fork of its own.

    Attributes:
        text: as it is asked.
        answer: the gold answer, whose tokens' losses are compared.
        prefix: what a reply says before the answer (RULER's answer prefix); it is forced too, but not counted.
        expected: texts that a right reply contains, all of them.
        max_new_tokens: longest free reply.
        depth: where in the document the first fact it asks for lies, from 0 to 1; None where that means nothing.
        metric: a benchmark's metric and what it reads, as ``Item`` has them; None counts ``expected`` only.
    """

    text: str
    answer: str
    prefix: str = ""
    expected: tuple[str, ...] = ()
    max_new_tokens: int = 48
    depth: float | None = None
    metric: Mapping[str, Any] | None = None

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
class Document:
    """A text that becomes memory, and what is asked about it.

    Attributes:
        name: for people.
        pieces: role and text of each message, in order.
        questions: about it.
        system: system prompt; None is the template's own.
    """

    name: str
    pieces: tuple[tuple[Role, str], ...]
    questions: tuple[Question, ...] = field(default=())
    system: str | None = None

    @property
    def key(self) -> str:
        """A digest of its text; what is asked about it does not change the memory."""
        return digest([self.system, self.pieces])


def digest(facts: Any) -> str:
    """A short name for JSON facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode(errors="replace")).hexdigest()[:16]
