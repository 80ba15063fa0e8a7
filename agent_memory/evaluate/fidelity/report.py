"""What rows come to: paired differences from full attention, with intervals bootstrapped by document.

Knows rows and numbers; does not know models. The questions of one document share its memory, so documents are what is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..statistics import bootstrap_ratio
from .rows import Mode, Outcome, Row

Rows = Sequence[Mapping[tuple[str, Mode], Row]]
"""Of each document that is done, its rows by method and mode."""

Number = Callable[[Outcome], float]


def summarize(facts: Mapping[str, Any], done: Rows, seed: int = 0) -> dict[str, Any]:
    """The JSON object of a measurement.

    Args:
        facts: of model and documents.
        done: rows of every document, each with the same methods and modes.
        seed: of the intervals.
    """
    names = list(done[0]) if done else []
    methods: dict[str, dict[str, Any]] = {}
    for method, mode in names:
        methods.setdefault(method, {})[mode] = figures([row[method, mode] for row in done], seed)
    rows = [
        {"document": row.document, "method": method, "mode": mode, "question": number, **_shown(outcome)}
        for document in done
        for (method, mode), row in document.items()
        for number, outcome in enumerate(row.outcomes)
    ]
    first = [document[names[0]] for document in done] if names else []
    questions = sum(len(row.outcomes) for row in first)
    return {
        "task": "fidelity", **facts, "documents": len(done), "questions": questions, "full": _full(first, seed),
        "methods": methods, "rows": rows,
    }  # fmt: skip


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """One method's figures in one mode. Each ``{"value", "interval"}``; the interval is None for fewer than two documents."""

    def ratio(part: Number, whole: Number = lambda _: 1.0) -> dict[str, Any]:
        return _ratio(rows, part, whole, seed)

    outcomes = [outcome for row in rows for outcome in row.outcomes]
    return {
        "questions": len(outcomes),
        "tokens": sum(len(outcome.nll) for outcome in outcomes),
        "nll_change": ratio(lambda one: math.fsum(one.nll) - math.fsum(one.nll_full)),
        "nll_change_per_token": ratio(lambda one: math.fsum(one.nll) - math.fsum(one.nll_full), lambda one: len(one.nll)),
        "nll": ratio(lambda one: math.fsum(one.nll)),
        "kl_per_token": ratio(lambda one: math.fsum(one.kl), lambda one: len(one.nll)),
        "right": ratio(lambda one: one.right),
        "right_change": ratio(lambda one: one.right - one.right_full),
        "kept_share": ratio(lambda one: one.right and one.right_full, lambda one: one.right_full),
        "kept": sum(one.right and one.right_full for one in outcomes),
        "lost": sum(one.right_full and not one.right for one in outcomes),
        "won": sum(one.right and not one.right_full for one in outcomes),
        "score": ratio(lambda one: one.score),
        "score_change": ratio(lambda one: one.score - one.score_full),
        "seconds": round(math.fsum(row.seconds for row in rows), 1),
    }


def _full(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """What full attention itself gives."""
    return {
        "nll": _ratio(rows, lambda one: math.fsum(one.nll_full), lambda _: 1.0, seed),
        "nll_per_token": _ratio(rows, lambda one: math.fsum(one.nll_full), lambda one: len(one.nll_full), seed),
        "right": _ratio(rows, lambda one: one.right_full, lambda _: 1.0, seed),
        "right_answers": sum(one.right_full for row in rows for one in row.outcomes),
        "score": _ratio(rows, lambda one: one.score_full, lambda _: 1.0, seed),
    }


def _ratio(rows: Sequence[Row], part: Number, whole: Number, seed: int) -> dict[str, Any]:
    parts = [math.fsum(part(one) for one in row.outcomes) for row in rows]
    wholes = [math.fsum(whole(one) for one in row.outcomes) for row in rows]
    if not math.fsum(wholes):
        return {"value": None, "interval": None}
    interval = bootstrap_ratio(parts, wholes, seed=seed) if len(rows) > 1 else None
    return {"value": math.fsum(parts) / math.fsum(wholes), "interval": None if interval is None else list(interval)}


def _shown(outcome: Outcome) -> dict[str, Any]:
    return {
        "depth": outcome.depth, "nll_change": math.fsum(outcome.nll) - math.fsum(outcome.nll_full), "kl": math.fsum(outcome.kl),
        "right": outcome.right, "right_full": outcome.right_full, "reply": outcome.reply,
    }  # fmt: skip
