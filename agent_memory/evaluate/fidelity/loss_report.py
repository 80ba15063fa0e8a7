"""What losses of text come to: by position, and how much of what a sliding window loses a method wins back.

Knows rows and numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..statistics import bootstrap_ratio
from .rows import Row

BUCKETS = 8
"""Parts of the scored tokens that are told apart."""

SLIDING_WINDOW = "streaming"
"""Methods whose spec begins so are what others are compared with."""

LOSS = 0.02
"""Nats a token that a sliding window has to lose on a text for there to be something to win back."""


def by_position(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Mean change of the loss, and KL divergence, of parts of the scored tokens, in nats a token.

    Returns:
        ``start`` and ``stop``, counted from the first scored token, ``nll_change`` and ``kl``.
    """
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    count = min(len(outcome.nll) for outcome in outcomes)
    change = np.mean([np.subtract(outcome.nll[:count], outcome.nll_full[:count]) for outcome in outcomes], axis=0)
    kl = np.mean([outcome.kl[:count] for outcome in outcomes], axis=0)
    edges = np.linspace(0, count, min(BUCKETS, count) + 1).astype(int).tolist()
    return [
        {"start": start, "stop": stop, "nll_change": float(change[start:stop].mean()), "kl": float(kl[start:stop].mean())}
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]


def gap_closed(rows: Sequence[Row], sliding: Mapping[str, Sequence[Row]], seed: int = 0) -> dict[str, Any]:
    """What share of what each sliding window loses, on texts where that is at least :data:`LOSS`, a method does not lose.

    Args:
        rows: the method's, a text each.
        sliding: rows of each sliding window, in the same order.
        seed: of the intervals.

    Returns:
        for each of them ``value``, ``interval`` and the number of ``texts``.
    """
    return {name: _closed(rows, others, seed) for name, others in sliding.items()}


def _closed(rows: Sequence[Row], sliding: Sequence[Row], seed: int) -> dict[str, Any]:
    pairs = [(_change(row), _change(other)) for row, other in zip(rows, sliding, strict=True)]
    pairs = [(mine, theirs) for mine, theirs in pairs if theirs > LOSS]
    if not pairs:
        return {"value": None, "interval": None, "texts": 0}
    parts, wholes = [theirs - mine for mine, theirs in pairs], [theirs for _, theirs in pairs]
    interval = list(bootstrap_ratio(parts, wholes, seed=seed)) if len(pairs) > 1 else None
    return {"value": math.fsum(parts) / math.fsum(wholes), "interval": interval, "texts": len(pairs)}


def _change(row: Row) -> float:
    """Nats a token."""
    return math.fsum(one.nll_change for one in row.outcomes) / sum(len(one.nll) for one in row.outcomes)
