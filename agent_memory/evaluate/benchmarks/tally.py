"""Scores of answers, summed up while they are given.

Knows the parts of scores; does not know who gave them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..work import Progress


class Tally:
    """Sums of the parts of scores.

    Args:
        total: answers to give.
        tell: told answers given, answers to give, and what is being done.
    """

    def __init__(self, total: int, tell: Progress | None) -> None:
        self._total, self._tell = total, tell
        self._given: Counter[tuple[str, str]] = Counter()
        self._sums: dict[str, dict[str, list[float]]] = {}

    def add(self, method: str, dataset: str, parts: Sequence[float]) -> None:
        """Add one answer's parts, each from 0 to 1."""
        sums = self._sums.setdefault(method, {}).setdefault(dataset, [0.0] * len(parts))
        sums[:] = [old + new for old, new in zip(sums, parts, strict=True)]
        self._given[method, dataset] += 1
        if self._tell is not None:
            self._tell(self._given.total(), self._total, f"{method}, {dataset}")

    def summary(self) -> dict[str, dict[str, float]]:
        """Method to data set to score, 0 to 100: the geometric mean of the means of its parts."""
        return {
            method: {
                name: round(100 * math.prod(part / self._given[method, name] for part in sums) ** (1 / len(sums)), 4)
                for name, sums in sets.items()
            }
            for method, sets in self._sums.items()
        }

    def said_of(self, method: str) -> str:
        """One line of a method's scores so far."""
        scores = self.summary().get(method, {})
        return f"{method}: " + ", ".join(f"{name} {score:.1f} after {self._given[method, name]}" for name, score in scores.items())
