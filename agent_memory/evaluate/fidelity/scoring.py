"""How right a reply is: what it contains, or what a benchmark's own metric says.

Knows questions and metrics; does not know models.
"""

from __future__ import annotations

from ..benchmarks.base import Item
from ..benchmarks.run import BENCHMARKS
from .documents import Question


def score(question: Question, said: str) -> float:
    """From 0 to 1: the benchmark's metric (the mean of its parts), or the share of the expected texts that the reply contains."""
    if question.metric is None:
        return sum(text.casefold() in said.casefold() for text in question.expected) / len(question.expected)
    given = question.metric
    item = Item("", "", (), question.text, tuple(given["answers"]), given["name"], question.max_new_tokens, meta=given["meta"])
    parts = BENCHMARKS[given["benchmark"]].metrics[item.metric](said, item)
    return sum(parts) / len(parts)
