"""Scores of answers, summed up while they are given.

Knows the parts of scores, and losses; does not know who gave them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..statistics import bootstrap_ratio
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


class Losses:
    """Negative log-likelihoods of right answers, nats an answer, by method, data set and context."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str, float]]] = {}

    def add(self, method: str, dataset: str, context: str, loss: float) -> None:
        """Add one; questions about one context are not independent of each other."""
        self._found.setdefault(method, []).append((dataset, context, loss))

    def means(self) -> dict[str, dict[str, float]]:
        """Method to data set to mean loss, and that of all as ``all``."""
        return {
            method: {
                name: round(_mean([loss for dataset, _, loss in rows if name in (dataset, "all")]), 5)
                for name in (*dict.fromkeys(dataset for dataset, _, _ in rows), "all")
            }
            for method, rows in self._found.items()
        }

    def against(self, base: str) -> dict[str, dict[str, Any]]:
        """Of every other method: mean difference of its losses to those of ``base``, and its 95 % interval, contexts being drawn with
        replacement; None where there is one context only."""
        return {method: self._against(method, base) for method in self._found if method != base}

    def _against(self, method: str, base: str) -> dict[str, Any]:
        sums, counts = dict[str, float](), Counter[str]()
        for (_, context, mine), (_, _, theirs) in zip(self._found[method], self._found[base], strict=True):
            sums[context] = sums.get(context, 0.0) + mine - theirs
            counts[context] += 1
        interval = None if len(sums) < 2 else bootstrap_ratio(list(sums.values()), [counts[context] for context in sums])
        return {"difference": sum(sums.values()) / counts.total(), "interval": interval, "contexts": len(sums)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
