"""Measures one document after the other: every method in every mode, each memory made once, nothing measured again that is kept.

Knows the order of work and what is kept; does not know how documents are made, nor how figures are summed up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ...runtime import Runtime
from ...session import Session
from ..work import Work
from .asking import Response, ask, divergence, encoder, prompt_ids
from .documents import Continuation, Document, Question, digest
from .mass import MassTally, opened_probe
from .reference import Reference, References
from .rows import Answers, MassRow, Mode, Outcome, Row, Rows
from .runtimes import Memories
from .scoring import right, score
from .work import asking_work, document_work, mass_work

MASS_QUESTIONS = 2
"""Questions of a document whose answers' choices are weighed."""

MASS_TOKENS = 64
"""Tokens of an answer that are weighed at most."""

MASS_SPANS = 2
"""Places of a document where the choices of a forward's groups are weighed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One document's rows, by method and mode, and its masses by method."""

    rows: Mapping[tuple[str, Mode], Row]
    mass: Mapping[str, MassRow]


class Measurement:
    """Documents, measured or taken from what is kept.

    Args:
        memories: Sessions that hold documents.
        references: what full attention makes of questions.
        rows: what is kept.
        keys: of each method, all that a row depends on beside the document.
        modes: how memory is made.
        mass: weigh choices too.
        replies: let the model reply by itself too.
    """

    def __init__(
        self,
        memories: Memories,
        references: References,
        rows: Rows,
        keys: Mapping[str, Mapping[str, Any]],
        modes: Sequence[Mode],
        mass: bool,
        replies: bool,
    ) -> None:
        self._replies = replies
        self._memories, self._references, self._rows, self._keys = memories, references, rows, keys
        self._wanted = list(product(keys, modes))
        self._weighed = list(keys) if mass else []
        self.work = Work()

    def left(self, documents: Sequence[Document], sizes: Sequence[int]) -> int:
        """Work there is to do, in tokens of prefill."""
        total = 0
        for document, size in zip(documents, sizes, strict=True):
            missing = [mode for method, mode in self._wanted if self._rows.get(self._key(document, method, mode)) is None]
            unweighed = [method for method in self._weighed if self._rows.mass(self._key(document, method, "mass")) is None]
            total += sum(document_work(document, size, mode == "made") for mode in missing) + len(unweighed) * mass_work(document)
            if (missing or unweighed) and not self._references.known(document):
                total += document_work(document, size, True)
        return total

    def document(self, document: Document, size: int) -> Measured:
        """One document's rows; ``size`` are its tokens."""
        rows: dict[tuple[str, Mode], Row] = {}
        for method, mode in self._wanted:
            key = self._key(document, method, mode)
            row = self._rows.get(key)
            if row is None:
                row = self._measure(document, size, method, mode)
                self._rows.keep(key, row)
            rows[method, mode] = row
        return Measured(rows, {method: self._mass_of(document, method) for method in self._weighed})

    def _key(self, document: Document, method: str, mode: str) -> dict[str, Any]:
        asked = digest([question.key for question in document.questions])
        replies = {} if mode == "mass" else {"replies": self._replies}
        return {**self._keys[method], "mode": mode, **replies, "document": document.key, "questions": asked}

    def _measure(self, document: Document, size: int, method: str, mode: Mode) -> Row:
        references, outcomes, started = self._references_of(document, size), list[Outcome](), time.perf_counter()
        made = mode == "made"
        self.work.begin(document_work(document, size, made), f"{document.name}: {method}, {mode}")
        opened = self._memories.by_method if made else self._memories.by_full_attention
        with opened(document, method, self.work.reached) as (runtime, session):
            asked = size if made else 0
            for number, (question, reference) in enumerate(zip(document.questions, references, strict=True)):
                outcomes.append(_outcome(question, reference, self._ask(runtime, session, question, number), self._replies))
                asked += asking_work(question)
                self.work.reached(asked)
        self.work.end()
        return Row(document.name, size, tuple(outcomes), round(time.perf_counter() - started, 2))

    def _references_of(self, document: Document, size: int) -> list[Reference]:
        """What full attention makes of every question; asked once, whatever is compared with it."""
        found = [self._references.get(document, question, self._replies) for question in document.questions]
        if None in found:
            self.work.begin(document_work(document, size, True), f"{document.name}: full attention")
            with self._memories.by_full_attention(document, progress=self.work.reached) as (runtime, session):
                asked = size
                for number, question in enumerate(document.questions):
                    if found[number] is None:
                        answered = self._ask(runtime, session, question, number)
                        found[number] = self._references.keep(document, question, answered)
                    asked += asking_work(question)
                    self.work.reached(asked)
            self.work.end()
        return [reference for reference in found if reference is not None]

    def _ask(self, runtime: Runtime, session: Session, question: Question | Continuation, number: int) -> Response:
        return ask(runtime, session, question, f"{session.name}/{number}", self._replies)

    def _mass_of(self, document: Document, method: str) -> MassRow:
        key = self._key(document, method, "mass")
        row = self._rows.mass(key)
        if row is None:
            self.work.begin(mass_work(document), f"{document.name}: {method}, mass")
            started = time.perf_counter()
            with self._memories.by_full_attention(document, method) as (runtime, session):
                found = _weighed(runtime, session, document)
            row = MassRow(document.name, found, round(time.perf_counter() - started, 2))
            self._rows.keep(key, row)
            self.work.end()
        return row


def _weighed(runtime: Runtime, session: Session, document: Document) -> Any:
    """Masses of some answers' tokens, and of some groups of the document."""
    tally = MassTally(runtime.layout.kv_heads)
    with opened_probe(runtime, session, tally) as probe:
        if probe is None:
            return None
        for question in document.questions[:MASS_QUESTIONS]:
            probe.answer(*_forced(runtime, document, question))
        probe.groups(MASS_SPANS)
    return tally.to_dict()


def _forced(runtime: Runtime, document: Document, question: Question | Continuation) -> tuple[Sequence[int], Sequence[int]]:
    """Ids that are fed before an answer, and the answer's."""
    if isinstance(question, Continuation):
        return question.ids[:1], question.ids[1 : MASS_TOKENS + 1]
    return prompt_ids(runtime, document, question), question.tokens(encoder(runtime))[0][:MASS_TOKENS]


def _outcome(question: Question | Continuation, reference: Reference, response: Response, replies: bool) -> Outcome:
    kl = tuple(divergence(torch.from_numpy(reference.log_probabilities), response.log_probabilities).tolist())
    full = tuple(reference.nll.tolist())
    if isinstance(question, Continuation):
        return Outcome(response.nll, full, kl, None, None)
    if not replies or response.reply is None or reference.reply is None:
        return Outcome(
            response.nll, full, kl, question.depth, Answers(response.greedy, reference.greedy, response.greedy, reference.greedy, None)
        )
    is_right, was_right = right(question, response.reply), right(question, reference.reply)
    answers = Answers(is_right, was_right, score(question, response.reply), score(question, reference.reply), response.reply)
    return Outcome(response.nll, full, kl, question.depth, answers)
