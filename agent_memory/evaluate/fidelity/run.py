"""Runs a measurement of fidelity: documents by methods by modes, the memory of each made once.

Knows the order of work and what is kept; does not know how documents are made, nor how figures are summed up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...runtime import Runtime
from ...types import Budget
from ...user_folders import cache_folder
from ..work import Progress, Work
from .asking import encoder
from .documents import Continuation, Document, Question, digest
from .measuring import Measured, Measurement
from .reference import References
from .report import summarize
from .rows import Mode, Rows
from .runtimes import FULL, MakeRuntime, Memories, roomy

MakeDocuments = Callable[[Runtime], Sequence[Document]]
"""Documents for a model, in the order they are measured in."""

Partial = Callable[[dict[str, Any]], None]

MESSAGE_TOKENS = 8
"""Room for what a chat template adds to a message."""


def default_cache() -> Path:
    """``fidelity`` in :func:`agent_memory.user_folders.cache_folder`; ConfigError if there is none."""
    return cache_folder() / "fidelity"


@dataclass(frozen=True, slots=True)
class FidelityOptions:
    """How to measure.

    Attributes:
        methods: specs.
        modes: ``read`` and ``made``; see :data:`.rows.Mode`.
        cache: folder that keeps memories made by full attention, and what it says.
        budget: bytes for each Tier; the device Tier is made large enough for a document.
        mass: weigh what methods choose by full attention's mass.
        replies: let the model reply by itself to each question too, beside forcing the gold answer; without, an answer is right if each
            token of it is the most likely one, which takes half the time.
        resume: file that keeps rows, so that a run that was stopped goes on.
        seed: of the intervals.
    """

    methods: tuple[str, ...] = ("recall", "streaming")
    modes: tuple[Mode, ...] = ("read", "made")
    cache: Path = field(default_factory=default_cache)
    budget: Budget = field(default_factory=Budget)
    mass: bool = True
    replies: bool = True
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
        length = max(size + _continued(document) for document, size in zip(documents, sizes, strict=True))
        facts = {"model": runtime.model_id.architecture, "window": runtime.window, "length": length}
        keys = {method: {"model": model, "window": runtime.window, **_rule(runtime, method)} for method in options.methods}
        budget = roomy(options.budget, runtime.layout, length)
    memories = Memories(make_runtime, options.cache, budget)
    measuring = Measurement(
        memories, References(options.cache / "reference" / model), rows, keys, options.modes, options.mass, options.replies
    )
    measuring.work = Work(progress, measuring.left(documents, sizes))
    done: list[Measured] = []
    for document, size in zip(documents, sizes, strict=True):
        done.append(measuring.document(document, size))
        if partial is not None:
            partial(summarize(facts, done, options.seed))
    return summarize(facts, done, options.seed)


def _rule(runtime: Runtime, spec: str) -> dict[str, str]:
    """What a spec means now: its defaults may change with the version or the checkpoint, and then its rows are others.

    Raises:
        ConfigError: no such method or option.
    """
    method = runtime.method_named(spec)
    choosers = "all" if method.choosers is None else repr(sorted(method.choosers))
    return {"method": spec, "meaning": method.spec or spec, "sizes": repr(method.sizes), "choosers": choosers}


def _continued(document: Document) -> int:
    """Tokens that are scored after a document of plain text."""
    return max(len(question.ids) if isinstance(question, Continuation) else 0 for question in document.questions)


def _size(runtime: Runtime, document: Document) -> int:
    """Tokens of a document with its longest question and reply.

    Raises:
        ConfigError: more than the trained window, beyond which full attention is no reference.
    """
    encode = encoder(runtime)

    def count(text: str) -> int:
        return len(encode(text)) + MESSAGE_TOKENS

    def asked_of(question: Question | Continuation) -> int:
        if isinstance(question, Continuation):
            return len(question.ids)
        return count(question.text) + max(count(question.whole), question.max_new_tokens)

    told = len(document.ids) + sum(count(text) for _, text in document.messages) + (count(document.system) if document.system else 0)
    asked = max(map(asked_of, document.questions))
    if told + asked > (window := runtime.attachment.window):
        raise ConfigError(
            f"the document {document.name!r} takes {told + asked} tokens with its longest question and reply, more than the trained window "
            f"of {window}, beyond which full attention is no reference; take shorter ones"
        )
    return told
