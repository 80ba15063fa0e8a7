"""Runs a measurement of fidelity: documents by methods by modes, the memory of each made once.

Knows the order of work and what is kept; does not know how documents are made, nor how figures are summed up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ...attention.methods import make_method
from ...errors import ConfigError
from ...runtime import Runtime
from ...types import Budget
from .asking import Asked, ask, divergence
from .documents import Document, Question, digest
from .reference import Truth, Truths
from .report import summarize
from .rows import Mode, Outcome, Row, Rows
from .runtimes import FULL, MakeRuntime, Memories, roomy
from .scoring import score
from .work import Progress, Work, asking_work, document_work

MakeDocuments = Callable[[Runtime], Sequence[Document]]
"""Documents for a model, in the order they are measured in."""

Partial = Callable[[dict[str, Any]], None]

MESSAGE_TOKENS = 8
"""Room for what a chat template adds to a message."""


def default_cache() -> Path:
    """The user's cache folder, as other programs find it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-memory" / "fidelity"


@dataclass(frozen=True, slots=True)
class FidelityOptions:
    """How to measure.

    Attributes:
        methods: specs.
        modes: ``read`` and ``made``; see :data:`.rows.Mode`.
        cache: folder that keeps memories made by full attention, and what it says.
        budget: bytes for each Tier; the device Tier is made large enough for a document.
        resume: file that keeps rows, so that a run that was stopped goes on.
        seed: of the intervals.
    """

    methods: tuple[str, ...] = ("recall", "streaming")
    modes: tuple[Mode, ...] = ("read", "made")
    cache: Path = field(default_factory=default_cache)
    budget: Budget = field(default_factory=Budget)
    resume: Path | None = None
    seed: int = 0


def run_fidelity(
    make_runtime: MakeRuntime,
    make_documents: MakeDocuments,
    options: FidelityOptions,
    progress: Progress | None = None,
    partial: Partial | None = None,
) -> dict[str, Any]:
    """Measure, and return the JSON object of ``agent-memory eval fidelity``.

    Args:
        make_runtime: ``make_runtime(method=, store=, budget=)`` gives a Runtime whose Sessions attend to everything only while that is
            no more than the method attends to anyway.
        make_documents: given a Runtime of the model.
        options: how.
        progress: told the work that is done, all there is, in tokens of prefill, and what is being done.
        partial: given the report of the documents that are done, after each of them.

    Raises:
        ConfigError: a method that cannot be, a document that does not fit the trained window, or a file that is something else.
    """
    rows = Rows(options.resume)
    options.cache.mkdir(parents=True, exist_ok=True)
    with make_runtime(method=FULL, store=options.cache / "store", budget=options.budget) as runtime:
        documents = make_documents(runtime)
        sizes = [_size(runtime, document) for document in documents]
        model = digest(runtime.model_id.to_dict())
        facts = {"model": runtime.model_id.architecture, "window": runtime.window, "length": max(sizes)}
        keys = {method: {"model": model, "window": runtime.window, **_rule(method, runtime.window)} for method in options.methods}
        budget = roomy(options.budget, runtime.layout, max(sizes))
    memories = Memories(make_runtime, options.cache, budget)
    run = _Run(memories, Truths(options.cache / "truth" / model), rows, options, keys)
    run.work = Work(progress, run.left(documents, sizes))
    done: list[dict[tuple[str, Mode], Row]] = []
    for document, size in zip(documents, sizes, strict=True):
        done.append(run.document(document, size))
        if partial is not None:
            partial(summarize(facts, done, options.seed))
    return summarize(facts, done, options.seed)


def _rule(spec: str, window: int) -> dict[str, str]:
    """What a spec means now: its defaults may change with the version, and then its rows are others.

    Raises:
        ConfigError: no such method or option.
    """
    method = make_method(spec, window)
    rules = [repr(part) for part in vars(method.selector).values() if is_dataclass(part)]
    return {"method": spec, "sizes": repr(method.sizes), "rule": " ".join(rules)}


def _size(runtime: Runtime, document: Document) -> int:
    """Tokens of a document with its longest question and reply.

    Raises:
        ConfigError: more than the trained window, beyond which full attention is no truth.
    """

    def count(text: str) -> int:
        return len(runtime.tokenizer.encode(text, add_special_tokens=False)) + MESSAGE_TOKENS

    told = sum(count(text) for _, text in document.pieces) + count(document.system or "")
    asked = max(count(one.text) + max(count(one.whole), one.max_new_tokens) for one in document.questions)
    if told + asked > (window := runtime.attachment.window):
        raise ConfigError(
            f"the document {document.name!r} takes {told + asked} tokens with its longest question and reply, more than the trained window "
            f"of {window}, beyond which full attention is no truth; take shorter ones"
        )
    return told


class _Run:
    """Documents, measured or taken from the rows that are kept."""

    def __init__(
        self, memories: Memories, truths: Truths, rows: Rows, options: FidelityOptions, keys: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._memories, self._truths, self._rows, self._options, self._keys = memories, truths, rows, options, keys
        self.work = Work(None, 0)

    def left(self, documents: Sequence[Document], sizes: Sequence[int]) -> int:
        """Work there is to do, in tokens of prefill."""
        total = 0
        for document, size in zip(documents, sizes, strict=True):
            missing = [mode for mode in self._wanted() if self._rows.get(self._key(document, *mode)) is None]
            total += sum(document_work(document, size, mode == "made") for _, mode in missing)
            if missing and not self._truths.known(document):
                total += document_work(document, size, True)
        return total

    def document(self, document: Document, size: int) -> dict[tuple[str, Mode], Row]:
        """One document's rows."""
        found: dict[tuple[str, Mode], Row] = {}
        for method, mode in self._wanted():
            key = self._key(document, method, mode)
            row = self._rows.get(key)
            if row is None:
                row = self._measure(document, size, method, mode)
                self._rows.keep(key, row)
            found[method, mode] = row
        return found

    def _wanted(self) -> list[tuple[str, Mode]]:
        return list(product(self._options.methods, self._options.modes))

    def _key(self, document: Document, method: str, mode: Mode) -> dict[str, Any]:
        asked = digest([question.key for question in document.questions])
        return {**self._keys[method], "mode": mode, "document": document.key, "questions": asked}

    def _measure(self, document: Document, size: int, method: str, mode: Mode) -> Row:
        truths, outcomes, started = self._truths_of(document, size), list[Outcome](), time.perf_counter()
        self.work.begin(document_work(document, size, mode == "made"), f"{document.name}: {method}, {mode}")
        opened = self._memories.by_full_attention if mode == "read" else self._memories.by_method
        with opened(document, method, self.work.filled) as (runtime, session):
            for number, (question, truth) in enumerate(zip(document.questions, truths, strict=True)):
                outcomes.append(_outcome(question, truth, ask(runtime, session, question, f"{session.name}/{number}")))
                self.work.asked(asking_work(question))
        self.work.end()
        return Row(document.name, size, tuple(outcomes), round(time.perf_counter() - started, 2))

    def _truths_of(self, document: Document, size: int) -> list[Truth]:
        """What full attention makes of every question; asked once, whatever is compared with it."""
        found = [self._truths.get(document, question) for question in document.questions]
        if None in found:
            self.work.begin(document_work(document, size, True), f"{document.name}: full attention")
            with self._memories.by_full_attention(document, progress=self.work.filled) as (runtime, session):
                for number, question in enumerate(document.questions):
                    if found[number] is None:
                        asked = ask(runtime, session, question, f"{session.name}/{number}")
                        found[number] = self._truths.keep(document, question, asked)
                    self.work.asked(asking_work(question))
            self.work.end()
        return [truth for truth in found if truth is not None]


def _outcome(question: Question, truth: Truth, asked: Asked) -> Outcome:
    full = torch.from_numpy(truth.log_probabilities)
    return Outcome(
        nll=asked.nll,
        nll_full=tuple(truth.nll.tolist()),
        kl=tuple(divergence(full, asked.log_probabilities).tolist()),
        right=question.contained_in(asked.reply),
        right_full=question.contained_in(truth.reply),
        score=score(question, asked.reply),
        score_full=score(question, truth.reply),
        reply=asked.reply,
        depth=question.depth,
    )
