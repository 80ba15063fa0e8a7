"""Needles in a haystack: for each method and length, how many hidden facts are answered exactly.

Knows Runtimes, Sessions and haystacks; does not know how a method works. One haystack holds a needle at each depth, is prefilled once
per method, and each needle is asked on a fork that is dropped.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .haystack import Haystack, Needle, make_haystack

FULL_REACH = 16
"""``full`` attends to everything and is run to this many windows only."""

MakeRuntime = Callable[..., Runtime]
Progress = Callable[[int, int, str], None]
Key = tuple[str, int, float]
"""Method, length, depth."""


@dataclass(frozen=True, slots=True)
class NeedleOptions:
    """What to measure.

    Attributes:
        methods: by name.
        lengths: tokens of hay.
        depths: needles in one haystack, evenly from beginning to end.
        samples: haystacks for each length.
        seed: of everything random.
        max_new_tokens: longest answer.
        match: ``exact`` or ``contains``.
        haystack: hay from this file instead of the generator.
        budget: bytes for each Tier.
        resume: file that keeps finished haystacks, so that a run that was stopped goes on.
    """

    methods: tuple[str, ...] = ("recall", "reattention", "streaming", "full")
    lengths: tuple[int, ...] = (400, 4096, 16384, 65536)
    depths: int = 10
    samples: int = 10
    seed: int = 0
    max_new_tokens: int = 48
    match: str = "exact"
    haystack: Path | None = None
    budget: Budget = field(default_factory=Budget)
    resume: Path | None = None


@dataclass(slots=True)
class Counts:
    """What one method did at one length."""

    asked: int = 0
    right: int = 0
    keys_scored: int = 0
    blocks_read: int = 0
    seconds: float = 0.0


def run_needle(make_runtime: MakeRuntime, options: NeedleOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure, and return the JSON object of ``agent-memory eval needle``.

    Args:
        make_runtime: ``make_runtime(method=, store=, budget=)`` gives a Runtime.
        options: what to measure.
        progress: told answers given, answers to give, and what is being done.
    """
    depths = [(i + 0.5) / options.depths for i in range(options.depths)]
    cells: dict[Key, Counts] = {}
    done = _Progress(progress, _answers(options))
    in_window = _in_window(make_runtime, options, done)
    window, model = 0, ""
    for method in options.methods:
        with tempfile.TemporaryDirectory(prefix="agent-memory-eval-") as folder:
            with make_runtime(method=method, store=Path(folder) / "store", budget=options.budget) as runtime:
                window, model = runtime.window, runtime.model_id.architecture
                run = _Run(runtime, method, options, cells, done)
                for length in options.lengths:
                    if method == "full" and length > FULL_REACH * window:
                        done.step(f"full at {length:,} is left out", options.samples * options.depths)
                        continue
                    for sample in range(options.samples):
                        run.haystack(length, sample, depths)
    return _report(options, model, window, in_window, cells)


def _answers(options: NeedleOptions) -> int:
    return (len(options.methods) * len(options.lengths) + 1) * options.samples * options.depths


class _Progress:
    def __init__(self, tell: Progress | None, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0

    def step(self, what: str, count: int = 1) -> None:
        self._done += count
        if self._tell is not None:
            self._tell(self._done, self._total, what)


def _in_window(make_runtime: MakeRuntime, options: NeedleOptions, done: _Progress) -> float:
    """The model's own exact share inside its window: one needle in hay that leaves room for question and answer."""
    right = asked = 0
    with tempfile.TemporaryDirectory(prefix="agent-memory-eval-") as folder:
        with make_runtime(method="full", store=Path(folder) / "store", budget=options.budget) as runtime:
            room = runtime.window - 4 * options.max_new_tokens
            for sample in range(options.samples * options.depths):
                rng = random.Random(f"{options.seed} in window {sample}")  # noqa: S311 - reproducible, not secret
                stack = make_haystack(rng, room // 2, [rng.random()], _counter(runtime), options.haystack)
                needle = stack.needles[0]
                with runtime.session(f"in-window {sample}") as session:
                    _fill(session, stack)
                    right += needle.found_in(session.reply(needle.question, max_new_tokens=options.max_new_tokens), options.match)
                asked += 1
                runtime.store.delete(f"in-window {sample}")
                done.step("inside the window")
    return right / asked


def _counter(runtime: Runtime) -> Callable[[str], int]:
    return lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False))


def _fill(session: Session, stack: Haystack) -> None:
    for piece in stack.pieces:
        session.append("tool", piece, name="read", prefill=False)
    session.prefill()


class _Run:
    """One method's haystacks."""

    def __init__(self, runtime: Runtime, method: str, options: NeedleOptions, cells: dict[Key, Counts], done: _Progress) -> None:
        self.runtime, self.method, self.options, self.cells, self.done = runtime, method, options, cells, done

    def haystack(self, length: int, sample: int, depths: Sequence[float]) -> None:
        """Fill one haystack, and ask every needle once."""
        options, key = self.options, f"{self.method} {length} {sample} {self.options.seed} {self.options.depths}"
        results = _resumed(options.resume, key)
        if results is None:
            rng = random.Random(f"{options.seed} {length} {sample}")  # noqa: S311 - the same hay for every method
            stack = make_haystack(rng, length, list(depths), _counter(self.runtime), options.haystack)
            results = self._ask_all(stack, f"{self.method} {length} {sample}")
            _keep(options.resume, key, results)
        for depth, counts in zip(depths, results, strict=True):
            _add(self.cells.setdefault((self.method, length, depth), Counts()), counts)
            self.done.step(f"{self.method} at {length:,}")

    def _ask_all(self, stack: Haystack, name: str) -> list[Counts]:
        results, started = [], time.perf_counter()
        with self.runtime.session(name) as session:
            _fill(session, stack)
            filling = (time.perf_counter() - started) / len(stack.needles)
            for index, needle in enumerate(stack.needles):
                counts = self._ask(session, needle, f"{name}/{index}")
                counts.seconds += filling
                results.append(counts)
        self.runtime.store.delete(name)
        return results

    def _ask(self, session: Session, needle: Needle, fork: str) -> Counts:
        child, started = session.fork(fork), time.perf_counter()
        try:
            said = child.reply(needle.question, max_new_tokens=self.options.max_new_tokens)
            recall = child.last_recall
            return Counts(
                asked=1,
                right=int(needle.found_in(said, self.options.match)),
                keys_scored=0 if recall is None else recall.keys_scored,
                blocks_read=0 if recall is None else recall.blocks,
                seconds=time.perf_counter() - started,
            )
        finally:
            child.close(keep=False)
            self.runtime.store.delete(fork)


def _add(cell: Counts, counts: Counts) -> None:
    for name, value in asdict(counts).items():
        setattr(cell, name, getattr(cell, name) + value)


def _resumed(file: Path | None, key: str) -> list[Counts] | None:
    if file is None or not file.exists():
        return None
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return next(([Counts(**counts) for counts in row["counts"]] for row in rows if row["key"] == key), None)


def _keep(file: Path | None, key: str, results: list[Counts]) -> None:
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, "counts": [asdict(counts) for counts in results]}) + "\n")


def _report(
    options: NeedleOptions, model: str, window: int, in_window: float, cells: dict[tuple[str, int, float], Counts]
) -> dict[str, Any]:
    rows = [
        {"method": m, "length": n, "depth": round(depth, 4), "samples": counts.asked, "exact": counts.right / counts.asked}
        for (m, n, depth), counts in cells.items()
    ]
    summary: dict[str, dict[str, float]] = {}
    counters: dict[str, dict[str, dict[str, float]]] = {}
    for method in options.methods:
        for length in options.lengths:
            found = [counts for (m, n, _), counts in cells.items() if (m, n) == (method, length)]
            asked = sum(counts.asked for counts in found)
            if not asked:
                continue
            summary.setdefault(method, {})[str(length)] = sum(counts.right for counts in found) / asked
            counters.setdefault(method, {})[str(length)] = {
                "answers": asked,
                "keys_scored_per_answer": sum(counts.keys_scored for counts in found) / asked,
                "blocks_read_per_answer": sum(counts.blocks_read for counts in found) / asked,
                "seconds": round(sum(counts.seconds for counts in found), 2),
            }
    return {
        "task": "needle", "model": model, "window": window, "in_window": in_window, "cells": rows, "summary": summary,
        "counters": counters, "plot": None,
    }  # fmt: skip
