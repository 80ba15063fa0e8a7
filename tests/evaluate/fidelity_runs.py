"""Small measurements of fidelity on the pocket model: documents it can answer about, and Runtimes of the one loaded model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from agent_memory import pocket
from agent_memory.attention.methods import Method
from agent_memory.evaluate.fidelity.asking import encoder
from agent_memory.evaluate.fidelity.documents import Document, Question
from agent_memory.evaluate.fidelity.run import FidelityOptions, run_fidelity
from agent_memory.evaluate.haystack import make_haystack
from agent_memory.model.load import load
from agent_memory.runtime import Runtime
from agent_memory.types import Budget

TOKENS = 300
RECALL, STREAMING = "recall:attended=256:local=96", "streaming:attended=256"
"""Methods that attend to half of the trained window, so that they have something to leave out."""


@cache
def loaded() -> tuple[Any, Any]:
    """Model and tokenizer."""
    return load(str(pocket.path()))


def make_runtime(*, method: str | Method, store: Path, budget: Budget | None = None) -> Runtime:
    """A Runtime over a Store."""
    return Runtime(*loaded(), store=store, method=method, border=None, source=str(pocket.path()), budget=budget)


def record_document(number: int, count_tokens: Callable[[str], int], facts: int = 2) -> Document:
    """Records and noise with facts in them, told in one message, as the pocket model reads them."""
    stack = make_haystack(random.Random(number), TOKENS, [(i + 0.5) / facts for i in range(facts)], count_tokens)
    questions = tuple(Question(needle.question, needle.value, needle.stem, (needle.value,), 16, needle.depth) for needle in stack.needles)
    return Document(f"records {number}", (("user", "\n".join(stack.pieces)),), questions)


def record_documents(count: int) -> Callable[[Runtime], list[Document]]:
    """So many of them."""

    def make(runtime: Runtime) -> list[Document]:
        encode = encoder(runtime)
        return [record_document(number, lambda text: len(encode(text))) for number in range(count)]

    return make


def measure(cache_folder: Path, methods: Sequence[str], documents: int = 2, **options: Any) -> dict[str, Any]:
    """A report."""
    given = {"mass": False, "budget": Budget(device="24MiB"), **options}
    return run_fidelity(make_runtime, record_documents(documents), FidelityOptions(tuple(methods), cache=cache_folder, **given))
