"""``agent-memory eval fidelity``: its options, and how its figures are shown.

Knows the JSON object of a measurement; how it is made is in ``evaluate.fidelity``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent_memory.cli import shapes
from agent_memory.cli.command import Call
from agent_memory.cli.measuring import measuring_runtimes
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from agent_memory.evaluate.fidelity.documents import Document
    from agent_memory.runtime import Runtime

NEEDLES = ("single", "multi-key", "multi-value", "multi-query")
MODES = ("read", "made")


@dataclass(frozen=True, slots=True)
class FidelityCall:
    """What the command line says.

    Attributes:
        on: what is measured on.
        methods, modes: what is compared.
        length: tokens of a document; None is three quarters of the window.
        samples: documents; None is 8.
        facts: in a document; None is 8.
        seed, haystack, keys, max_new_tokens: see ``NeedleOptions``.
        cache, resume: see ``FidelityOptions``.
    """

    on: str
    methods: tuple[str, ...]
    modes: tuple[str, ...]
    length: int | None
    samples: int | None
    facts: int | None
    seed: int
    haystack: Path | None
    keys: str
    max_new_tokens: int | None
    cache: Path | None
    resume: Path | None


def evaluate_fidelity(call: Call, given: FidelityCall) -> None:
    """Measure and show."""
    from agent_memory.evaluate.fidelity.run import FidelityOptions, run_fidelity

    _check(given)
    chosen: dict[str, Any] = {} if given.cache is None else {"cache": given.cache}
    options = FidelityOptions(
        methods=given.methods,
        modes=given.modes,  # type: ignore[arg-type]
        budget=call.settings.budget,
        resume=given.resume,
        seed=given.seed,
        **chosen,
    )
    call.quiet_libraries()
    with call.progress(scaled=True) as show:
        report = run_fidelity(measuring_runtimes(call, border="off"), _documents(given), options, show, _line)
    report = {**report, "on": given.on}
    call.answer(report, lambda: _show(call, report))


def _check(given: FidelityCall) -> None:
    if given.on not in NEEDLES:
        raise ConfigError(f"--on {given.on!r}: choose one of {', '.join(NEEDLES)}")
    if not given.modes or any(mode not in MODES for mode in given.modes):
        raise ConfigError(f"--modes {','.join(given.modes)!r}: choose from {', '.join(MODES)}")


def _documents(given: FidelityCall) -> Callable[[Runtime], Sequence[Document]]:
    from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions

    def make(runtime: Runtime) -> list[Document]:
        length = given.length or runtime.window * 3 // 4
        options = NeedleOptions(given.on, length, given.facts or 8, given.haystack, given.keys, given.max_new_tokens or 48, given.seed)
        source = NeedleDocuments(options, lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)))
        return [source.make(number) for number in range(given.samples or 8)]

    return make


def _line(report: Mapping[str, Any]) -> None:
    """One line a finished document, with the running figures."""
    parts = []
    for method, modes in report["methods"].items():
        for mode, row in modes.items():
            parts.append(f"{method} {mode}: dNLL {_signed(row['nll_change'])} kept {row['kept']} lost {row['lost']} won {row['won']}")
    right = f"full {report['full']['right_answers']} of {report['questions']} right"
    typer.echo(f"{report['documents']} documents, {right}; " + "; ".join(parts), err=True)


def _show(call: Call, report: Mapping[str, Any]) -> None:
    call.out.print(answers_table(report))
    full = report["full"]
    call.out.print(
        f"{report['model']}, window {report['window']:,}, documents of {report['length']:,} tokens; "
        f"full attention: {full['right_answers']} of {report['questions']} right, NLL {full['nll']['value']:.3f}",
        markup=False,
    )


def answers_table(report: Mapping[str, Any]) -> Table:
    """Paired figures of every method and mode."""
    headings = ("memory", "dNLL", "95%", "dNLL a token", "KL a token", "right", "kept", "lost", "won", "kept share")
    made = shapes.table("method", *headings, right=headings[1:])
    for method, modes in report["methods"].items():
        for mode, row in modes.items():
            made.add_row(
                method, mode, _signed(row["nll_change"]), _interval(row["nll_change"]), _signed(row["nll_change_per_token"]),
                _plain(row["kl_per_token"]), f"{row['kept'] + row['won']} of {row['questions']}", str(row["kept"]), str(row["lost"]),
                str(row["won"]), _share(row["kept_share"]),
            )  # fmt: skip
    return made


def _signed(figure: Mapping[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:+.3f}"


def _plain(figure: Mapping[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.3f}"


def _share(figure: Mapping[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.0%}"


def _interval(figure: Mapping[str, Any]) -> str:
    return "-" if figure["interval"] is None else "{:+.3f} to {:+.3f}".format(*figure["interval"])
