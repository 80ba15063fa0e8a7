"""Conversations with questions: LoCoMo cut around the evidence, and L-Eval's documents without their middle.

Questions whose evidence fits one cut share it, so that its memory is made once for them. Knows the readers of ``benchmarks``; does not
know models or methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...types import Role
from ..benchmarks import leval, locomo
from ..benchmarks.base import Item
from ..benchmarks.locomo import Conversation
from ..benchmarks.run import cut_middle
from .documents import BenchmarkMetric, Document, Question
from .scoring import score

CATEGORIES = (1, 2, 4)
"""LoCoMo's multi-hop, temporal and single-hop questions: those whose answer is in the conversation."""

FOLLOWING = "A"
"""Begins the line after another."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ConversationOptions:
    """What is asked.

    Attributes:
        files: of the benchmark.
        length: tokens of a cut.
        questions: how many in all, chosen by the seed.
        seed: of the choice, and of where in its cut evidence lies.
        max_new_tokens: longest reply; None is the benchmark's own.
    """

    files: tuple[Path, ...]
    length: int
    questions: int = 32
    seed: int = 0
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question whose evidence lies in turns ``[first, last]`` of a conversation."""

    item: Item
    first: int
    last: int


def locomo_documents(options: ConversationOptions, count_tokens: CountTokens) -> list[Document]:
    """Cuts of LoCoMo's conversations with the questions whose evidence they hold.

    Args:
        options: what is asked; questions whose evidence does not fit a cut are not chosen from.
        count_tokens: tokens of a text as the model counts them.

    Raises:
        ConfigError: no file, one of another format, or no question that fits.
    """
    cutters = [_Cutter(talk, options, count_tokens) for file in _files(options, "locomo") for talk in locomo.conversations(file)]
    fitting = [(number, asked) for number, cutter in enumerate(cutters) for asked in cutter.fitting()]
    if not fitting:
        raise ConfigError(f"no question of categories 1, 2 and 4 has evidence that fits {options.length} tokens of its conversation")
    chosen = _drawn(fitting, options)
    found: list[Document] = []
    for number, cutter in enumerate(cutters):
        found += cutter.documents([asked for place, asked in chosen if place == number])
    return found


def leval_documents(options: ConversationOptions, tokenizer: Any) -> list[Document]:
    """Documents of L-Eval, of longer ones the first and the last half of ``length`` tokens, in random order, with all their questions
    until there are enough.

    Raises:
        ConfigError: no file, or one of another format.
    """
    items = [item for file in _files(options, "leval") for item in leval.read(file) if item.pieces]
    groups = [list(group) for _, group in groupby(items, key=lambda item: (item.system, item.pieces))]
    random.Random(options.seed).shuffle(groups)  # noqa: S311 - reproducible, not secret
    found: list[Document] = []
    left = options.questions
    for group in groups:
        asked, first = group[:left], group[0]
        if not asked:
            break
        pieces = cut_middle(first.pieces, [item.question for item in asked], tokenizer, options.length)
        questions = tuple(_question(item, "leval", options, None) for item in asked)
        name = first.id.rpartition("/")[0]
        found.append(Document(name, as_user(pieces), questions, first.system))
        left -= len(asked)
    return found


class _Cutter:
    """Cuts one conversation around the evidence of questions."""

    def __init__(self, talk: Conversation, options: ConversationOptions, count_tokens: CountTokens) -> None:
        self._talk, self._options = talk, options
        days, passages = talk.context.sections, talk.context.passages
        self._headings = [day.heading for day in days]
        self._headings[0] = talk.context.opening + self._headings[0]
        self._lines = [(day, text) for day, held in enumerate(days) for _, text in held.passages]
        self._numbers = {name: number for number, (name, _) in enumerate(passages)}
        followed = count_tokens(FOLLOWING)  # how line ends become tokens depends on what follows them
        self._sizes = [count_tokens(text + FOLLOWING) - followed for _, text in self._lines]
        self._heading_sizes = [count_tokens(heading + FOLLOWING) - followed for heading in self._headings]

    def fitting(self) -> Iterator[_Asked]:
        """The questions that can be asked about a cut."""
        for item in self._talk.items:
            turns = [self._numbers[name] for name in item.evidence if name in self._numbers]
            if item.meta["category"] in CATEGORIES and turns and len(turns) == len(item.evidence):
                asked = _Asked(item, min(turns), max(turns))
                if self._tokens(asked.first, asked.last) <= self._options.length:
                    yield asked

    def documents(self, asked: Sequence[_Asked]) -> list[Document]:
        """As few cuts as a walk from the beginning finds, each with the questions it holds."""
        found: list[Document] = []
        group: list[_Asked] = []
        for one in sorted(asked, key=lambda one: (one.first, one.last)):
            last = max([one.last, *(other.last for other in group)])
            if group and self._tokens(group[0].first, last) > self._options.length:
                found.append(self._document(group))
                group = []
            group.append(one)
        return [*found, self._document(group)] if group else found

    def _document(self, group: Sequence[_Asked]) -> Document:
        first, last = group[0].first, max(one.last for one in group)
        first, stop = self._widened(first, last)
        days: dict[int, str] = {}
        for day, text in self._lines[first:stop]:
            days[day] = days.get(day, self._headings[day]) + text
        messages = as_user(days.values())
        inside = sum(self._sizes[first:stop])
        questions = tuple(
            _question(one.item, "locomo", self._options, sum(self._sizes[first : one.first]) / max(1, inside)) for one in group
        )
        return Document(f"{self._talk.name} turns {first} to {stop}", messages, questions)

    def _widened(self, first: int, last: int) -> tuple[int, int]:
        """Turns ``[first, stop)`` as long as may be, evidence at a random place."""
        rng = random.Random(f"{self._options.seed} {self._talk.name} {first} {last}")  # noqa: S311 - reproducible, not secret
        before = rng.random() * (self._options.length - self._tokens(first, last))
        start, stop = first, last + 1
        while start and self._tokens(start - 1, last) - self._tokens(first, last) <= before:
            start -= 1
        while stop < len(self._lines) and self._tokens(start, stop) <= self._options.length:
            stop += 1
        while start and self._tokens(start - 1, stop - 1) <= self._options.length:
            start -= 1
        return start, stop

    def _tokens(self, first: int, last: int) -> int:
        """Of turns ``[first, last]``, with the headings of their days."""
        days = range(self._lines[first][0], self._lines[last][0] + 1)
        return sum(self._sizes[first : last + 1]) + sum(self._heading_sizes[day] for day in days)


def _question(item: Item, benchmark: str, options: ConversationOptions, depth: float | None) -> Question:
    metric = BenchmarkMetric(benchmark, item.metric, item.answers, item.meta)
    question = Question(
        item.question, item.answers[0], max_new_tokens=options.max_new_tokens or item.max_new_tokens, depth=depth, metric=metric
    )
    score(question, "")  # a package that is missing is better missed now than after hours
    return question


def as_user(texts: Iterable[str]) -> tuple[tuple[Role, str], ...]:
    """Texts as messages of the user."""
    user: Role = "user"
    return tuple((user, text) for text in texts)


def _drawn(fitting: list[tuple[int, _Asked]], options: ConversationOptions) -> list[tuple[int, _Asked]]:
    random.Random(options.seed).shuffle(fitting)  # noqa: S311 - reproducible, not secret
    return fitting[: options.questions]


def _files(options: ConversationOptions, name: str) -> tuple[Path, ...]:
    if not options.files:
        raise ConfigError(f"eval fidelity on {name} reads its files: name them with --file PATH, once for each")
    return options.files
