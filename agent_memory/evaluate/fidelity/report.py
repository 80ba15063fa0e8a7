"""What rows come to: paired differences from full attention, with intervals bootstrapped by document.

Knows rows and numbers; does not know models. The questions of one document share its memory, so documents are what is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..statistics import bootstrap_ratio
from .loss_report import SLIDING_WINDOW, by_position, gap_closed
from .mass_report import summarize_mass
from .measuring import Measured
from .rows import Answers, Mode, Outcome, Row

Number = Callable[[Outcome], float]


def summarize(facts: Mapping[str, Any], done: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """The JSON object of a measurement.

    Args:
        facts: of model and documents.
        done: what was measured of every document, each with the same methods and modes.
        seed: of the intervals.
    """
    names = list(done[0].rows) if done else []
    methods: dict[str, dict[str, Any]] = {}
    for method, mode in names:
        found = [one.rows[method, mode] for one in done]
        methods.setdefault(method, {})[mode] = figures(found, seed) | _of_text(done, found, mode, seed)
    rows = [
        {"document": row.document, "method": method, "mode": mode, "question": number, **_shown(outcome)}
        for one in done
        for (method, mode), row in one.rows.items()
        for number, outcome in enumerate(row.outcomes)
    ]
    first = [one.rows[names[0]] for one in done] if names else []
    weighed = {method: summarize_mass([one.mass[method] for one in done], seed) for method in (done[0].mass if done else ())}
    return {
        "task": "fidelity", **facts, "documents": len(done), "questions": sum(len(row.outcomes) for row in first),
        "full": _full(first, seed), "methods": methods, "mass": weighed, "rows": rows,
    }  # fmt: skip


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """One method's figures in one mode. Each ``{"value", "interval"}``; the interval is None for fewer than two documents."""
    losses = {
        "nll_change": _ratio(rows, lambda one: one.nll_change, seed=seed),
        "nll_change_per_token": _ratio(rows, lambda one: one.nll_change, _tokens, seed),
        "nll": _ratio(rows, lambda one: math.fsum(one.nll), seed=seed),
        "nll_per_token": _ratio(rows, lambda one: math.fsum(one.nll), _tokens, seed),
        "kl_per_token": _ratio(rows, lambda one: math.fsum(one.kl), _tokens, seed),
    }
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    counts = {"questions": len(outcomes), "tokens": sum(map(_tokens, outcomes))}
    answered = _answered(rows, seed) if any(outcome.answers is not None for outcome in outcomes) else {}
    return {**counts, **losses, **answered, "seconds": round(math.fsum(row.seconds for row in rows), 1)}


def _of_text(done: Sequence[Measured], rows: Sequence[Row], mode: Mode, seed: int) -> dict[str, Any]:
    """Figures of continuations of text."""
    if any(outcome.answers is not None for row in rows for outcome in row.outcomes):
        return {}
    windows = [method for method, other in done[0].rows if other == mode and method.startswith(SLIDING_WINDOW)]
    sliding = {method: [one.rows[method, mode] for one in done] for method in windows}
    return {"by_position": by_position(rows), "gap_closed": gap_closed(rows, sliding, seed)}


def _answered(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Figures of free replies."""

    def ratio(part: Callable[[Answers], float], whole: Callable[[Answers], float] = lambda _: 1.0) -> dict[str, Any]:
        return _ratio(rows, _of_answers(part), _of_answers(whole), seed)

    given = [outcome.answers for row in rows for outcome in row.outcomes if outcome.answers is not None]
    return {
        "right": ratio(lambda one: one.right),
        "right_change": ratio(lambda one: one.right - one.right_full),
        "kept_share": ratio(lambda one: one.right and one.right_full, lambda one: one.right_full),
        "kept": sum(one.right and one.right_full for one in given),
        "lost": sum(one.right_full and not one.right for one in given),
        "won": sum(one.right and not one.right_full for one in given),
        "score": ratio(lambda one: one.score),
        "score_change": ratio(lambda one: one.score - one.score_full),
    }


def _full(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """What full attention itself gives."""
    given = [outcome.answers for row in rows for outcome in row.outcomes if outcome.answers is not None]
    losses = {
        "nll": _ratio(rows, lambda one: math.fsum(one.nll_full), seed=seed),
        "nll_per_token": _ratio(rows, lambda one: math.fsum(one.nll_full), _tokens, seed),
    }
    if not given:
        return losses
    return {
        **losses,
        "right": _ratio(rows, _of_answers(lambda one: one.right_full), seed=seed),
        "right_answers": sum(one.right_full for one in given),
        "score": _ratio(rows, _of_answers(lambda one: one.score_full), seed=seed),
    }


def _of_answers(number: Callable[[Answers], float]) -> Number:
    return lambda outcome: 0.0 if outcome.answers is None else number(outcome.answers)


def _tokens(outcome: Outcome) -> int:
    return len(outcome.nll)


def _one(_: Outcome) -> float:
    return 1.0


def _ratio(rows: Sequence[Row], part: Number, whole: Number = _one, seed: int = 0) -> dict[str, Any]:
    """Sum of parts by sum of wholes, over all questions."""
    parts = [math.fsum(part(one) for one in row.outcomes) for row in rows]
    wholes = [math.fsum(whole(one) for one in row.outcomes) for row in rows]
    if not math.fsum(wholes):
        return {"value": None, "interval": None}
    interval = bootstrap_ratio(parts, wholes, seed=seed) if len(rows) > 1 else None
    return {"value": math.fsum(parts) / math.fsum(wholes), "interval": None if interval is None else list(interval)}


def _shown(outcome: Outcome) -> dict[str, Any]:
    """One question for people, and for pictures."""
    facts = {"depth": outcome.depth, "nll_change": outcome.nll_change, "kl": math.fsum(outcome.kl)}
    given = outcome.answers
    return facts if given is None else {**facts, "right": given.right, "right_full": given.right_full, "reply": given.reply}
