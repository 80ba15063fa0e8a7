"""Runs tasks: methods by lengths by samples, one document at a time, and reports what was right and what it took.

Knows Runtimes, Sessions, the names of tasks and the JSON object of a measurement; does not know how a method works or what a document says.
A document is prefilled once for each method, and each of its questions is asked on a fork that is dropped.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .aggregation import Aggregation
from .fork import asked_on_a_fork
from .needle import Crowd, MultiKey, MultiQuery, MultiValue, NearDuplicate, SingleNeedle, Updated
from .passkey import Passkey
from .resume import Answer, Finished, add_answers
from .task import Document, Match, Question, Style, Task
from .tracking import Tracking
from .work import Note, Progress, Work

TASKS: dict[str, Callable[[Style], Task]] = {
    "needle": lambda _: SingleNeedle(),
    "multi-key": lambda _: MultiKey(),
    "multi-value": lambda _: MultiValue(),
    "multi-query": lambda _: MultiQuery(),
    "near-duplicate": lambda _: NearDuplicate(),
    "crowd": lambda _: Crowd(),
    "updated": lambda _: Updated(),
    "passkey": Passkey,
    "variable-tracking": Tracking,
    "aggregation": Aggregation,
}
"""Every task by name; each is made for a style, which those made of records only do not look at."""

ANSWER_WORK = 100
"""An answer takes about as long as so many tokens of prefill; for progress only."""

MESSAGE_TOKENS = 4
"""Room for what a chat template adds to a message."""

TRIES = 4
"""Documents of other words that are tried where none of any length fits the window."""

MakeRuntime = Callable[..., Runtime]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What to measure.

    Attributes:
        methods: by name.
        lengths: tokens of hay.
        depths: facts in one document, evenly from beginning to end.
        samples: documents for each length.
        seed: of everything random.
        max_new_tokens: longest answer, if one value is wanted; further ones have room beside it.
        match: ``exact`` or ``contains``.
        haystack: hay from this file instead of the task's own.
        reach: methods that attend to everything are run to so many windows.
        budget: bytes for each Tier.
        resume: file that keeps finished documents, so that a run that was stopped goes on.
    """

    methods: tuple[str, ...] = ("recall", "reattention", "streaming", "full")
    lengths: tuple[int, ...] = (400, 4096, 16384, 65536)
    depths: int = 10
    samples: int = 10
    seed: int = 0
    max_new_tokens: int = 48
    match: Match = "exact"
    haystack: Path | None = None
    reach: int = 16
    budget: Budget = field(default_factory=Budget)
    resume: Path | None = None


def make_tasks(names: Sequence[str], style: Style) -> list[Task]:
    """The tasks of these names.

    Raises:
        ConfigError: no such task.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ConfigError(f"unknown task {', '.join(unknown) or '(none)'}; there are {', '.join(TASKS)}")
    return [TASKS[name](style) for name in names]


def run_tasks(
    make_runtime: MakeRuntime,
    tasks: Sequence[Task],
    options: EvalOptions,
    progress: Progress | None = None,
    note: Note | None = None,
) -> list[dict[str, Any]]:
    """Measure, and return for each task the JSON object of ``agent-memory eval TASK``.

    Args:
        make_runtime: ``make_runtime(method=, store=, budget=)`` gives a Runtime; called once for each method, and once more.
        tasks: what to measure, of different names.
        options: how.
        progress: told the work that is done, all there is, in tokens or as many tokens' time, and what is being done.
        note: told the running score whenever a document is done that was not taken from the resume file.

    Raises:
        ConfigError: a task that cannot be made, or a resume file that is something else.
    """
    for task in tasks:
        task.make(random.Random(0), 1, [0.5], len, options.haystack)  # noqa: S311 - what cannot be made is said before any work
    finished, work = Finished(options.resume), Work(progress, _total_work(options, tasks))
    with _opened(make_runtime, "full", options) as runtime:
        run = _Run(runtime, "full", options, finished, work, note)
        reports = [_begin(task, runtime, run.in_window(task)) for task in tasks]
    for method in options.methods:
        with _opened(make_runtime, method, options) as runtime:
            run = _Run(runtime, method, options, finished, work, note)
            for task, report in zip(tasks, reports, strict=True):
                for length in options.lengths:
                    add_answers(report, method, length, run.at_length(task, length))
    return reports


@contextmanager
def _opened(make_runtime: MakeRuntime, method: str, options: EvalOptions) -> Iterator[Runtime]:
    """A Runtime over a Store that is dropped."""
    with tempfile.TemporaryDirectory(prefix="agent-memory-eval-") as folder:
        with make_runtime(method=method, store=Path(folder) / "store", budget=options.budget) as runtime:
            yield runtime


def _total_work(options: EvalOptions, tasks: Sequence[Task]) -> int:
    """Of all documents, in tokens."""
    asked = options.samples * options.depths * ANSWER_WORK
    inside = len(tasks) * 2 * asked
    filled = sum(length * options.samples * (options.depths if task.alone else 1) for task in tasks for length in options.lengths)
    return inside + len(options.methods) * (filled + len(tasks) * len(options.lengths) * asked)


class _Run:
    """One method's documents."""

    def __init__(
        self, runtime: Runtime, method: str, options: EvalOptions, finished: Finished, work: Work, note: Note | None = None
    ) -> None:
        self.runtime, self.method, self.options, self.finished, self.work, self.note = runtime, method, options, finished, work, note
        self.key = _key(runtime, method, options)

    def in_window(self, task: Task) -> float:
        """The model's own share inside its window: one fact in a document that leaves room for its questions and answers."""
        answers: list[Answer] = []
        for sample in range(self.options.samples * self.options.depths):
            self.work.begin(2 * ANSWER_WORK, f"{task.name}: inside the window")
            place = {"length": "in window", "sample": sample, "depths": []}
            self._add(answers, f"{task.name}: inside the window", task, place, partial(self._fitting, task, sample))
        return sum(answer.score for answer in answers) / len(answers)

    def _fitting(self, task: Task, sample: int) -> Document:
        """The first document that fits the window, trying less hay and then other words; else the shortest."""
        tried: list[Document] = []
        for again in range(TRIES):
            length = max(1, (self.runtime.window - 4 * self.options.max_new_tokens) // 2)
            while length:
                seed = f"{self.options.seed} in window {sample}" + (f" again {again}" if again else "")
                rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
                tried.append(task.make(rng, length, [rng.random()], self._tokens, self.options.haystack))
                if self._needs(tried[-1]) <= self.runtime.window:
                    return tried[-1]
                length //= 2
        return min(tried, key=self._needs)

    def _needs(self, document: Document) -> int:
        """Tokens of a document with the longest of its forks, right answers and room for the last one included."""

        def turn(question: Question) -> int:
            return 2 * MESSAGE_TOKENS + sum(map(self._tokens, (question.text, question.stem, *question.answers)))

        told = sum(self._tokens(piece) + MESSAGE_TOKENS for piece in document.pieces)
        return told + max(sum(map(turn, turns)) for turns in document.questions) + self.options.max_new_tokens

    def at_length(self, task: Task, length: int) -> list[Answer]:
        """Every sample at one length; nothing if that is out of the method's reach."""
        options, reach, answers = self.options, self.options.reach * self.runtime.window, list[Answer]()
        depths = [(i + 0.5) / options.depths for i in range(options.depths)]
        groups = [[depth] for depth in depths] if task.alone else [depths]
        work = length + ANSWER_WORK * len(groups[0])
        if self.runtime.method(0).sizes is None and length > reach:
            self.work.begin(options.samples * len(groups) * work, f"{task.name}: {self.method} is left out over {reach:,} tokens")
            self.work.end()
            return answers
        for sample in range(options.samples):
            for group in groups:
                what = f"{task.name}: {self.method} at {length:,}"
                self.work.begin(work, what)
                place = {"length": length, "sample": sample, "depths": list(group)}
                self._add(answers, what, task, place, partial(self._document, task, length, sample, group))
        return answers

    def _document(self, task: Task, length: int, sample: int, depths: Sequence[float]) -> Document:
        alone = f" {depths[0]}" if task.alone else ""
        rng = random.Random(f"{self.options.seed} {length} {sample}{alone}")  # noqa: S311 - the same document for every method
        return task.make(rng, length, depths, self._tokens, self.options.haystack)

    def _add(self, answers: list[Answer], what: str, task: Task, place: dict[str, Any], make: Callable[[], Document]) -> None:
        """Add the answers about one document, taken from the file or asked for; then the running score is told."""
        key = {**self.key, "task": repr(task), **place}
        known = self.finished.get(key)
        found = self._ask_all(task, make(), f"{task.name} {place['length']} {place['sample']}") if known is None else known
        answers += found
        if known is None:
            self.finished.keep(key, found)
            if self.note is not None:
                self.note(f"{what}: {sum(answer.score for answer in answers):g} of {len(answers)} right so far")
        self.work.end()

    def _ask_all(self, task: Task, document: Document, name: str) -> list[Answer]:
        """Fill a Session with a document, and ask every question once."""
        answers: list[Answer] = []
        count, started = sum(len(turns) for turns in document.questions), time.perf_counter()
        with self.runtime.session(name) as session:
            for piece in document.pieces:
                session.append("tool", piece, name="read", prefill=False)
            whole = session.tokens + count * ANSWER_WORK
            session.prefill(lambda done: self.work.at(done / whole))
            filling = (time.perf_counter() - started) / count
            for index, turns in enumerate(document.questions):
                with asked_on_a_fork(self.runtime, session, f"{name}/{index}") as child:
                    for question in turns:
                        answers.append(self._ask(task, child, question, filling))
                        self.work.at((session.tokens + len(answers) * ANSWER_WORK) / whole)
        self.runtime.store.delete(name)
        return answers

    def _ask(self, task: Task, child: Session, question: Question, filling: float) -> Answer:
        started, before = time.perf_counter(), replace(child.engine.counters)
        child.append(question.role, question.text, prefill=False)
        said = "".join(child.generate(max_new_tokens=self._longest(question)))
        counters = child.engine.counters
        recall, match = child.last_recall, self.options.match
        return Answer(
            depth=question.depth,
            score=task.score(question, said, match),
            outdated=task.score(replace(question, answers=question.outdated), said, match) if question.outdated else None,
            tokens=counters.traced - before.traced,
            keys_scored=counters.keys_scored - before.keys_scored,
            keys_attended=counters.attended - before.attended,
            blocks_read=0 if recall is None else recall.blocks,
            seconds=time.perf_counter() - started + filling,
        )

    def _longest(self, question: Question) -> int:
        return self.options.max_new_tokens + sum(self._tokens(answer) + 1 for answer in question.answers[1:])

    def _tokens(self, text: str) -> int:
        return len(self.runtime.tokenizer.encode(text, add_special_tokens=False))


def _key(runtime: Runtime, method: str, options: EvalOptions) -> dict[str, Any]:
    """What answers depend on beside the task and its document."""
    model = json.dumps(runtime.model_id.to_dict(), sort_keys=True)
    hay = None if options.haystack is None else f"{options.haystack.name} {_digest(options.haystack.read_bytes())}"
    return {
        "model": f"{runtime.model_id.architecture} {_digest(model.encode())}", "window": runtime.window, "method": method,
        "seed": options.seed, "match": options.match, "max_new_tokens": options.max_new_tokens, "haystack": hay,
    }  # fmt: skip


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _begin(task: Task, runtime: Runtime, in_window: float) -> dict[str, Any]:
    """A report of nothing but the model."""
    return {
        "task": task.name, "model": runtime.model_id.architecture, "window": runtime.window, "in_window": in_window,
        "cells": [], "summary": {}, "interval": {}, "counters": {}, "plot": None,
    }  # fmt: skip
