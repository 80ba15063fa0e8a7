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

Mode = Literal["read", "made"]
"""``read``: memory made by full attention, and only read by the method. ``made``: made through the method, as in a real Session."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question under one method, beside the truth.

    Attributes:
        nll: negative log-likelihood of the gold answer's tokens, nats.
        nll_full: the same under full attention.
        kl: KL divergence of the next-token distributions, KL(full || method), of each of these tokens, nats.
        right, right_full: whether the reply contains all that is expected.
        score, score_full: a benchmark's own metric of the reply, from 0 to 1; of needles the share of values that it contains.
        reply: what was said.
        depth: where in the document the fact lies.
    """

    nll: Sequence[float]
    nll_full: Sequence[float]
    kl: Sequence[float]
    right: bool
    right_full: bool
    score: float
    score_full: float
    reply: str
    depth: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One document under one method in one mode."""

    document: str
    tokens: int
    outcomes: tuple[Outcome, ...]
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
        self._lines = JsonLines(
            file, self._take, "this is no row of eval fidelity; name a file that it wrote, or one that does not exist yet"
        )

    def _take(self, line: Any) -> None:
        outcomes = tuple(_outcome(given) for given in line["outcomes"])
        self._rows[_mark(line["key"])] = Row(str(line["document"]), int(line["tokens"]), outcomes, float(line["seconds"]))

    def get(self, key: Mapping[str, Any]) -> Row | None:
        """The row of that key."""
        return self._rows.get(_mark(key))

    def keep(self, key: Mapping[str, Any], row: Row) -> None:
        """Add a row, written through at once."""
        self._rows[_mark(key)] = row
        self._lines.add({"key": dict(key), **asdict(row)})


def _mark(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _outcome(given: Mapping[str, Any]) -> Outcome:
    found = Outcome(**given)
    rows = (found.nll, found.nll_full, found.kl)
    if len({len(row) for row in rows}) != 1 or not all(isinstance(value, float) and math.isfinite(value) for row in rows for value in row):
        raise ValueError("losses that are no numbers")
    return found
