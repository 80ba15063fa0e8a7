"""Two ways of doing a thing, timed in turns.

Knows callables and clocks; not what they do. Rounds go ours, baseline, ours, baseline; a side's time is its fastest round, since other
work on the machine only ever adds. The same baseline timed against itself, rounds of one parity against the other, is the noise of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

ROUNDS = 7
QUIET = (0.9, 1.1)
"""A run whose baseline differs from itself by more than this is measured again, and then named noisy."""

Timed = Callable[[], Any]

Progress = Callable[[str], None]
"""Told what is being done now."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much faster ours is, or how much a cost grows.

    Attributes:
        name: what was measured; ``R1`` and so on are numbers of the table in docs/benchmarks.md.
        ours, baseline: seconds, or what ``unit`` says.
        ratio: baseline / ours for speed; ours / baseline where ``growth``.
        noise_low, noise_high: the baseline against itself in the same run.
        target: what was asked for, as text.
        unit: of ``ours`` and ``baseline``.
        growth: whether the ratio says how much larger ours is.
        detail: settings and counters.
    """

    name: str
    ours: float
    baseline: float
    ratio: float
    noise_low: float = 1.0
    noise_high: float = 1.0
    target: str = ""
    unit: str = "s"
    growth: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        """Whether the run was too noisy for the ratio to mean much."""
        return self.noise_low < QUIET[0] or self.noise_high > QUIET[1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "noisy": self.noisy}


def compare(
    name: str,
    ours: Timed,
    baseline: Timed,
    detail: dict[str, Any],
    *,
    target: str = "",
    growth: bool = False,
    rounds: int = ROUNDS,
    tries: int = 3,
    before: Timed | None = None,
) -> Ratio:
    """Time two callables in turns; again, up to ``tries`` times, while the baseline differs from itself.

    Args:
        name, target, growth, detail: of the ratio.
        ours, baseline: what is timed.
        rounds: times each is timed, at least.
        tries: how often at most.
        before: called before each, not timed.
    """
    made = None
    for _ in range(tries):
        mine, theirs = _times(ours, baseline, before, 2 * -(-rounds // 2))
        noise = min(theirs[::2]) / min(theirs[1::2])
        fast, slow = min(mine), min(theirs)
        ratio = fast / slow if growth else slow / fast
        new = Ratio(name, fast, slow, ratio, min(noise, 1 / noise), max(noise, 1 / noise), target, growth=growth, detail=detail)
        made = new if made is None else min(made, new, key=_spread)
        if not made.noisy:
            break
    if made is None:
        raise ValueError(f"tries={tries} cannot be used; it must be at least 1")
    return made


def counted(
    name: str, ours: float, baseline: float, detail: dict[str, Any], *, target: str, unit: str = "s", growth: bool = False
) -> Ratio:
    """A ratio of two figures that were made once: counts, or times so far apart that noise says nothing."""
    return Ratio(name, ours, baseline, ours / baseline if growth else baseline / ours, 1.0, 1.0, target, unit, growth, detail)


def _times(ours: Timed, baseline: Timed, before: Timed | None, rounds: int) -> tuple[list[float], list[float]]:
    mine: list[float] = []
    theirs: list[float] = []
    for at in range(rounds + 1):
        for call, times in ((ours, mine), (baseline, theirs)):
            if before is not None:
                before()
            seconds = _seconds(call)
            if at:  # the first round warms up
                times.append(seconds)
    return mine, theirs


def _seconds(call: Timed) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _spread(ratio: Ratio) -> float:
    return ratio.noise_high / ratio.noise_low
