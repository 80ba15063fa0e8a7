"""What was measured: one row a model, document, method and mode, kept in a file of JSON lines so that a run that was stopped goes on.

Knows rows and what makes one valid; does not know Sessions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..json_lines import JsonLines

FIGURES = ("queries", "available", "chosen", "oracle")
"""What is summed of mass; see ``MassTally``."""

Mode = Literal["read", "made"]
"""``read``: memory made by full attention, and only read by the method. ``made``: made through the method, as in a real Session."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What is replied to one question.

    Attributes:
        right, right_full: whether the method's reply is right, and full attention's; without free replies, whether each token of the
            gold answer is the most likely one.
        score, score_full: a benchmark's own metric, from 0 to 1; of needles the share of values that a reply contains; without free
            replies as ``right``.
        reply: the method's; None without free replies.
    """

    right: bool
    right_full: bool
    score: float
    score_full: float
    reply: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question, or one continuation of a text, under one method, beside full attention.

    Attributes:
        nll: negative log-likelihood of each gold token, nats.
        nll_full: the same under full attention.
        kl: KL divergence of the next-token distributions, KL(full || method), at each gold token, nats.
        depth: where in the document the first fact lies that is asked for; None where that is not known.
        answers: what is replied; None of a continuation.
    """

    nll: Sequence[float]
    nll_full: Sequence[float]
    kl: Sequence[float]
    depth: float | None
    answers: Answers | None

    @property
    def nll_change(self) -> float:
        """How much less likely the gold tokens became, in nats, summed over them."""
        return math.fsum(self.nll) - math.fsum(self.nll_full)


@dataclass(frozen=True, slots=True)
class Row:
    """One document under one method in one mode."""

    document: str
    tokens: int
    outcomes: tuple[Outcome, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class MassRow:
    """How much of full attention's mass a method's choices hold in one document: ``MassTally.to_dict``; None where there are none."""

    document: str
    mass: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] | None
    seconds: float


class Rows:
    """Rows by key.

    Args:
        file: where they are kept; None keeps none.

    Raises:
        ConfigError: the file is something else; it stays as it is.
    """

    def __init__(self, file: Path | None) -> None:
        self._rows: dict[str, Row] = {}
        self._mass: dict[str, MassRow] = {}
        self._lines = JsonLines(
            file, self._take, "this is no row of eval fidelity; name a file that it wrote, or one that does not exist yet"
        )

    def _take(self, line: Any) -> None:
        if "mass" in line:
            self._mass[_mark(line["key"])] = MassRow(str(line["document"]), _mass(line["mass"]), float(line["seconds"]))
            return
        outcomes = tuple(_outcome(given) for given in line["outcomes"])
        self._rows[_mark(line["key"])] = Row(str(line["document"]), int(line["tokens"]), outcomes, float(line["seconds"]))

    def get(self, key: Mapping[str, Any]) -> Row | None:
        """The row of that key."""
        return self._rows.get(_mark(key))

    def mass(self, key: Mapping[str, Any]) -> MassRow | None:
        """The masses of that key."""
        return self._mass.get(_mark(key))

    def keep(self, key: Mapping[str, Any], row: Row | MassRow) -> None:
        """Add a row, written through at once."""
        if isinstance(row, Row):
            self._rows[_mark(key)] = row
        else:
            self._mass[_mark(key)] = row
        self._lines.add({"key": dict(key), **asdict(row)})


def _mark(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _outcome(given: Mapping[str, Any]) -> Outcome:
    answers = given["answers"]
    found = Outcome(**{**given, "answers": None if answers is None else Answers(**answers)})
    rows = (found.nll, found.nll_full, found.kl)
    if len({len(row) for row in rows}) != 1 or not all(isinstance(value, float) and math.isfinite(value) for row in rows for value in row):
        raise ValueError("losses that are no numbers")
    return found


def _mass(given: Any) -> Any:
    """Masses as they were kept."""
    if given is not None:
        for figures in given.values():
            numbers = [value for rows in figures.values() for row in rows for value in row]
            if set(figures) != set(FIGURES) or not all(isinstance(value, float) and math.isfinite(value) for value in numbers):
                raise ValueError("masses that are no numbers")
    return given
