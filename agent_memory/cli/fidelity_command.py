"""``agent-memory eval fidelity``: its options, and what documents they ask for.

Knows the command line; how fidelity is measured is in ``evaluate.fidelity``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_memory.cli import fidelity_tables
from agent_memory.cli.command import Call
from agent_memory.cli.measuring import live_report, measuring_runtimes
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from agent_memory.evaluate.fidelity.documents import Document
    from agent_memory.runtime import Runtime

NEEDLES = ("single", "multi-key", "multi-value", "multi-query")
FILES = ("loss", "locomo", "leval")
MODES = ("read", "made")

ON_HELP = (
    "What fidelity is measured on: needles in prose (single, multi-key, multi-value, multi-query), or files named with --file: loss "
    "(text), locomo, leval."
)
MODES_HELP = "Memory made by full attention and only read by the method, or made through the method; or both."
REPLIES_HELP = (
    "Let the model reply to each question by itself, too; without, an answer is right if each of its tokens is the most likely one."
)
MASS_HELP = "Weigh the Blocks a method chooses by full attention's mass."


@dataclass(frozen=True, slots=True)
class FidelityCall:
    """What the command line says; None is the default.

    Attributes:
        on: what is measured on.
        methods, modes: what is compared.
        length: tokens of a document; three quarters of the window.
        samples: documents, passages (8), or questions in all (32).
        facts: in a document of needles; 8.
        seed: of everything random.
        files: for ``loss``, ``locomo`` and ``leval``.
        haystack, keys: of needles.
        max_new_tokens: longest reply; 48, or the benchmark's own.
        scored: last tokens of a passage that are scored; 1,024.
        mass: weigh choices.
        replies: let the model reply by itself too.
        cache, resume, plot: files and folders.
    """

    on: str
    methods: tuple[str, ...]
    modes: tuple[str, ...]
    length: int | None
    samples: int | None
    facts: int | None
    seed: int
    files: tuple[Path, ...]
    haystack: Path | None
    keys: str
    max_new_tokens: int | None
    scored: int | None
    mass: bool
    replies: bool
    cache: Path | None
    resume: Path | None
    plot: Path | None


def evaluate_fidelity(call: Call, given: FidelityCall) -> None:
    """Measure and show."""
    from agent_memory.evaluate.fidelity.plot import draw_fidelity
    from agent_memory.evaluate.fidelity.run import FidelityOptions, run_fidelity

    _check(given)
    chosen: dict[str, Any] = {} if given.cache is None else {"cache": given.cache}
    options = FidelityOptions(
        methods=given.methods,
        modes=given.modes,  # type: ignore[arg-type]
        budget=call.settings.budget,
        mass=given.mass,
        replies=given.replies,
        resume=given.resume,
        seed=given.seed,
        **chosen,
    )
    call.quiet_libraries()
    with live_report(fidelity_tables.line, fidelity_tables.tables) as live:
        report = run_fidelity(measuring_runtimes(call, border="off"), _documents(given), options, live.progress, live.partial)
    report = {**report, "on": given.on, "plot": None if given.plot is None else str(draw_fidelity(report, given.plot))}
    call.answer(report, lambda: _show(call, report))


def _show(call: Call, report: Mapping[str, Any]) -> None:
    for made in fidelity_tables.tables(report):
        call.out.print(made)
    call.out.print(fidelity_tables.footing(report), markup=False)
    if report["plot"] is not None:
        call.out.print(f"picture in {report['plot']}", markup=False)


def _check(given: FidelityCall) -> None:
    if given.on not in NEEDLES + FILES:
        raise ConfigError(f"--on {given.on!r}: choose one of {', '.join(NEEDLES + FILES)}")
    if not given.modes or any(mode not in MODES for mode in given.modes):
        raise ConfigError(f"--modes {','.join(given.modes)!r}: choose from {', '.join(MODES)}")


def _documents(given: FidelityCall) -> Callable[[Runtime], Sequence[Document]]:
    """What makes the documents, once there is a model to count their tokens."""
    from agent_memory.evaluate.fidelity.asking import encoder
    from agent_memory.evaluate.fidelity.conversations import ConversationOptions, leval_documents, locomo_documents
    from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions
    from agent_memory.evaluate.fidelity.passages import PassageOptions, lead_of, passages

    def make(runtime: Runtime) -> list[Document]:
        encode = encoder(runtime)
        length = given.length or runtime.attachment.window * 3 // 4
        if given.on in NEEDLES:
            options = NeedleOptions(given.on, length, given.facts or 8, given.haystack, given.keys, given.max_new_tokens or 48, given.seed)
            source = NeedleDocuments(options, lambda text: len(encode(text)))
            return [source.make(number) for number in range(given.samples or 8)]
        if given.on == "loss":
            wanted = PassageOptions(given.files, length, given.scored or 1024, given.samples or 8, given.seed)
            return passages(wanted, encode, lead_of(runtime.tokenizer))
        asked = ConversationOptions(given.files, length, given.samples or 32, given.seed, given.max_new_tokens)
        if given.on == "locomo":
            return locomo_documents(asked, lambda text: len(encode(text)))
        return leval_documents(asked, runtime.tokenizer)

    return make
