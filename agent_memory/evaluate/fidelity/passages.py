"""Passages of text files, whose last tokens are scored after all before them.

Knows files and token ids; does not know models or methods.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .documents import Continuation, Document, Encode
from .texts import texts_of

CHARACTERS = 12
"""Characters of a text that are read for each token wanted."""

TRIES = 8
"""Draws for each passage that is wanted: the same one does not count twice."""


@dataclass(frozen=True, slots=True)
class PassageOptions:
    """Which passages.

    Attributes:
        files: UTF-8 text, each one text; or ``.jsonl`` with a text a line.
        length: tokens of a passage, the scored ones with them.
        scored: last tokens of each that are scored.
        passages: how many, from texts in turn, each from a random line on; fewer where texts have no more lines to begin at.
        seed: of everything random.
    """

    files: tuple[Path, ...]
    length: int
    scored: int = 1024
    passages: int = 8
    seed: int = 0


def passages(options: PassageOptions, encode: Encode, lead: tuple[int, ...] = ()) -> list[Document]:
    """Documents of plain text with one continuation each.

    Args:
        options: which.
        encode: token ids of a text.
        lead: ids the tokenizer puts before any text.

    Raises:
        ConfigError: no file, one that cannot be read, none that is long enough, or an option out of its bounds.
    """
    if not options.files:
        raise ConfigError("eval fidelity on loss reads text files: name them with --file PATH, once for each")
    if not 1 <= options.scored < options.length:
        raise ConfigError(f"{options.scored} scored tokens cannot be used; it must be between 1 and {options.length - 1}")
    texts = [(name, text) for file in options.files for name, text in texts_of(file)]
    long_enough = [(name, text) for name, text in texts if len(encode(text[: CHARACTERS * options.length])) >= options.length]
    if not long_enough:
        raise ConfigError(f"none of {len(texts)} texts has {options.length} tokens")
    rng = random.Random(options.seed)  # noqa: S311 - reproducible, not secret
    rng.shuffle(long_enough)
    found: dict[tuple[int, ...], Document] = {}
    for number in range(TRIES * options.passages):
        name, text = long_enough[number % len(long_enough)]
        start, ids = _slice(text, options.length - len(lead), encode, rng)
        whole = (*lead, *ids)
        at = len(whole) - options.scored - 1
        found.setdefault(whole, Document(f"{name} from {start}", questions=(Continuation(whole[at:]),), ids=whole[:at]))
        if len(found) == options.passages:
            break
    return list(found.values())


def lead_of(tokenizer: Any) -> tuple[int, ...]:
    """Ids that a tokenizer puts before any text: its BOS, or nothing."""
    return tuple(token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id)[:1]


def _slice(text: str, length: int, encode: Encode, rng: random.Random) -> tuple[int, list[int]]:
    """So many tokens from a random line on, and the character they begin at; from the beginning where no other line has enough."""
    starts = [0, *(at + 1 for at, letter in enumerate(text) if letter == "\n")]
    while True:
        start = rng.choice(starts)
        ids = encode(text[start : start + CHARACTERS * length])
        if len(ids) >= length or not start:
            return start, ids[:length]
        starts = [other for other in starts if other < start]
