"""``agent-memory eval fidelity``: its options, and what documents they ask for.

Knows the command line; how fidelity is measured is in ``evaluate.fidelity``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.cli import fidelity_tables
from agent_memory.cli.command import Call
from agent_memory.cli.measuring import live_report, measuring_runtimes
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from agent_memory.evaluate.fidelity.documents import Document
    from agent_memory.evaluate.fidelity.rows import Mode
    from agent_memory.runtime import Runtime

NEEDLES = ("single", "multi-key", "multi-value", "multi-query")
FILES = ("loss", "locomo", "leval")
MODES: tuple[Mode, ...] = ("read", "made")

PANEL = "Fidelity"
ON_HELP = (
    "What fidelity is measured on: needles in prose (single, multi-key, multi-value, multi-query), or files named with --file: loss "
    "(text), locomo, leval."
)
REPLIES_HELP = (
    "Let the model reply to each question by itself, too; without, an answer is right if each of its tokens is the most likely one."
)
MODES_HELP = "Memory made by full attention and only read by the method, or made through the method; or both."
KEYS_HELP = "Words that facts are about: animals, cities, foods, jobs, words, or a file."
MASS_HELP = "Weigh the Blocks a method chooses by full attention's mass."
CACHE_HELP = "Folder that keeps memories of full attention."

On = Annotated[str, typer.Option(help=ON_HELP, rich_help_panel=PANEL)]
Modes = Annotated[str, typer.Option(help=MODES_HELP, rich_help_panel=PANEL)]
Keys = Annotated[str, typer.Option(help=KEYS_HELP, rich_help_panel=PANEL)]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Longest reply.", min=1, show_default="48; of a benchmark its own", rich_help_panel=PANEL)
]
Scored = Annotated[int | None, typer.Option(help="loss: last tokens of a text.", min=1, show_default="1,024", rich_help_panel=PANEL)]
Replies = Annotated[bool, typer.Option(help=REPLIES_HELP, rich_help_panel=PANEL)]
Mass = Annotated[bool, typer.Option(help=MASS_HELP, rich_help_panel=PANEL)]
Cache = Annotated[Path | None, typer.Option(help=CACHE_HELP, show_default="the user's", rich_help_panel=PANEL)]


@dataclass(frozen=True, slots=True)
class Given:
    """The options of fidelity alone, as they are written."""

    on: str
    modes: str
    keys: str
    max_new_tokens: int | None
    scored: int | None
    replies: bool
    mass: bool
    cache: Path | None


@dataclass(frozen=True, slots=True)
class Shared:
    """The options of every evaluation that fidelity has too; None is its own default.

    Attributes:
        methods: specs.
        length: tokens of a document; three quarters of the window.
        samples: documents, passages (8), or questions in all (32).
        facts: in a document of needles; 8.
        seed: of everything random.
        files: for ``loss``, ``locomo`` and ``leval``.
        haystack: of needles.
        resume, plot: files.
    """

    methods: tuple[str, ...]
    length: int | None
    samples: int | None
    facts: int | None
    seed: int
    files: tuple[Path, ...]
    haystack: Path | None
    resume: Path | None
    plot: Path | None


def evaluate_fidelity(call: Call, given: Given, shared: Shared) -> None:
    """Measure and show."""
    from agent_memory.evaluate.fidelity.plot import draw_fidelity
    from agent_memory.evaluate.fidelity.run import FidelityOptions, run_fidelity

    chosen: dict[str, Any] = {} if given.cache is None else {"cache": given.cache}
    options = FidelityOptions(
        methods=shared.methods,
        modes=_checked_modes(given),
        budget=call.settings.budget,
        mass=given.mass,
        replies=given.replies,
        resume=shared.resume,
        seed=shared.seed,
        **chosen,
    )
    call.quiet_libraries()
    make_runtime = measuring_runtimes(call, border="off", attention_shares=False)  # nobody reads them
    with live_report(fidelity_tables.line, fidelity_tables.tables) as live:
        report = run_fidelity(make_runtime, _documents(given, shared), options, live.progress, live.partial)
    report = {**report, "on": given.on, "plot": None if shared.plot is None else str(draw_fidelity(report, shared.plot))}
    call.answer(report, lambda: _show(call, report))


def _show(call: Call, report: Mapping[str, Any]) -> None:
    for made in fidelity_tables.tables(report):
        call.out.print(made)
    call.out.print(fidelity_tables.footing(report), markup=False)
    if report["plot"] is not None:
        call.out.print(f"picture in {report['plot']}", markup=False)


def _checked_modes(given: Given) -> tuple[Mode, ...]:
    """What may be written, for ``on`` too."""
    if given.on not in NEEDLES + FILES:
        raise ConfigError(f"--on {given.on!r}: choose one of {', '.join(NEEDLES + FILES)}")
    named = [part.strip() for part in given.modes.split(",") if part.strip()]
    if not named or any(mode not in MODES for mode in named):
        raise ConfigError(f"--modes {given.modes!r}: choose from {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in named)


def _documents(given: Given, shared: Shared) -> Callable[[Runtime], Sequence[Document]]:
    """What makes the documents, once there is a model to count their tokens."""
    from agent_memory.evaluate.fidelity.asking import encoder
    from agent_memory.evaluate.fidelity.conversations import ConversationOptions, leval_documents, locomo_documents
    from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions
    from agent_memory.evaluate.fidelity.passages import PassageOptions, lead_of, passages

    def make(runtime: Runtime) -> list[Document]:
        encode, seed = encoder(runtime), shared.seed
        length = shared.length or runtime.attachment.window * 3 // 4
        if given.on in NEEDLES:
            longest = given.max_new_tokens or 48
            options = NeedleOptions(given.on, length, shared.facts or 8, shared.haystack, given.keys, longest, seed)
            source = NeedleDocuments(options, lambda text: len(encode(text)))
            return [source.make(number) for number in range(shared.samples or 8)]
        if given.on == "loss":
            wanted = PassageOptions(shared.files, length, given.scored or 1024, shared.samples or 8, seed)
            return passages(wanted, encode, lead_of(runtime.tokenizer))
        asked = ConversationOptions(shared.files, length, shared.samples or 32, seed, given.max_new_tokens)
        if given.on == "locomo":
            return locomo_documents(asked, lambda text: len(encode(text)))
        return leval_documents(asked, runtime.tokenizer)

    return make
