"""How right a reply is: what it contains, or what a benchmark's own metric says.

Knows questions and metrics; does not know models.
"""

from __future__ import annotations

from ..benchmarks.base import Item
from ..benchmarks.run import BENCHMARKS
from .documents import Question

RIGHT = 0.5
"""A reply that a benchmark's metric gives at least so much counts as right."""


def score(question: Question, said: str) -> float:
    """From 0 to 1: the benchmark's metric (the mean of its parts), or the share of the expected texts that the reply contains."""
    metric = question.metric
    if metric is None:
        return sum(text.casefold() in said.casefold() for text in question.expected) / len(question.expected)
    item = Item("", "", (), question.text, metric.answers, metric.name, question.max_new_tokens, meta=metric.meta)
    parts = BENCHMARKS[metric.benchmark].metrics[metric.name](said, item)
    return sum(parts) / len(parts)


def right(question: Question, said: str) -> bool:
    """Whether a reply counts as right: it contains everything expected, or its metric is at least :data:`RIGHT`."""
    return score(question, said) >= (1.0 if question.metric is None else RIGHT)
