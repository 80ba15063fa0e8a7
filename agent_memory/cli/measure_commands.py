"""The commands that measure: demo and eval.

Knows which measurements there are and how their results are shown; how they are made is in ``evaluate``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agent_memory.cli import shapes
from agent_memory.cli.command import MODEL_OPTIONS, Call, command
from agent_memory.errors import ConfigError
from agent_memory.memory.sizes import parse_size
from agent_memory.types import Budget

if TYPE_CHECKING:
    from rich.table import Table

    from agent_memory.runtime import Runtime

_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000}


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    command(app, "demo", {})(demo)
    command(app, "eval", MODEL_OPTIONS)(evaluate)


def demo(
    call: Call,
    tokens: Annotated[str, typer.Option(help="How long the memory gets; 1m is 1,000,000.")] = "200k",
    store: Annotated[Path | None, typer.Option(help="Folder to keep the Store in.", show_default="a temporary one")] = None,
    device: Annotated[str, typer.Option(help="Budget of the device Tier.")] = "192MiB",
    host: Annotated[str, typer.Option(help="Budget of the host Tier.")] = "256MiB",
    plot: Annotated[Path, typer.Option(help="Picture to write, as PNG.")] = Path("agent-memory-demo.png"),
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
) -> None:
    """See it work: an agent inventories this machine, is killed half-way, and answers questions about all of it."""
    from agent_memory.demo.run import DemoOptions, run_demo

    options = DemoOptions(_tokens(tokens), store, Budget(parse_size(device), parse_size(host)), plot, seed)
    out = call.out
    call.quiet_libraries()
    with call.progress("filling the memory") as show:
        result = run_demo(options, (lambda _: None) if call.json else (lambda line: out.print(line, markup=False)), show)
    call.answer(result, lambda: out.print(_fact_table(result)))


def _fact_table(facts: dict[str, Any]) -> Table:
    made = shapes.table("result", "", right=("",))
    for name, value in facts.items():
        shown = shapes.size(value) if name.endswith("_bytes") else f"{value:,}" if isinstance(value, int | float) else str(value)
        made.add_row(name.removesuffix("_bytes").replace("_", " "), shown)
    return made


def evaluate(
    call: Call,
    task: Annotated[Literal["needle"], typer.Argument(help="What to measure.", show_default=False)],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "recall,reattention,streaming,full",
    lengths: Annotated[str, typer.Option(help="Tokens of hay, separated by commas; 64k is 64,000.")] = "4k,16k,64k",
    depths: Annotated[int, typer.Option(help="Needles in one haystack.", min=1)] = 10,
    samples: Annotated[int, typer.Option(help="Haystacks for each length.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    match: Annotated[Literal["exact", "contains"], typer.Option(help="When an answer is right; contains suits chat models.")] = "exact",
    haystack: Annotated[Path | None, typer.Option(help="Hay from this text file.", show_default="generated")] = None,
    resume: Annotated[Path | None, typer.Option(help="File that keeps what is done, to go on after a stop.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, as PNG.", show_default=False)] = None,
) -> None:
    """Measure how well each method finds what was said long ago."""
    from agent_memory.evaluate.needle import NeedleOptions, run_needle
    from agent_memory.evaluate.plots import draw_needle
    from agent_memory.opening import open_runtime

    def make_runtime(*, method: str, store: Path, **_: Any) -> Runtime:
        return open_runtime(call.settings.model_copy(update={"method": method, "store": str(store)}))

    options = NeedleOptions(
        methods=_methods(methods),
        lengths=tuple(_tokens(written) for written in _parts(lengths)),
        depths=depths,
        samples=samples,
        seed=seed,
        match=match,
        haystack=haystack,
        budget=call.settings.budget,
        resume=resume,
    )
    call.quiet_libraries()
    with call.progress(task) as show:
        report = run_needle(make_runtime, options, lambda done, total, _: show(done, total))
    if plot is not None:
        report["plot"] = str(draw_needle(report, plot))

    def people() -> None:
        call.out.print(_summary_table(report))
        call.out.print(f"{report['model']}, window {report['window']:,}, exact inside its window: {report['in_window']:.1%}")
        if plot is not None:
            call.out.print(f"picture in {report['plot']}", markup=False)

    call.answer(report, people)


def _summary_table(report: dict[str, Any]) -> Table:
    lengths = sorted({int(length) for row in report["summary"].values() for length in row})
    headings = [f"{length:,}" for length in lengths]
    made = shapes.table("method", *headings, right=tuple(headings))
    for method, row in report["summary"].items():
        made.add_row(method, *(f"{row[str(length)]:.1%}" if str(length) in row else "-" for length in lengths))
    return made


def _methods(written: str) -> tuple[str, ...]:
    from agent_memory.attention.methods import METHODS

    names = _parts(written)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(f"--methods {written!r}: unknown method {', '.join(unknown) or '(none)'}; there are {', '.join(sorted(METHODS))}")
    return names


def _parts(written: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in written.split(",") if part.strip())


def _tokens(written: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([km]?)", written.lower())
    if match is None or not int(match[1]):
        raise ConfigError(f"{written!r} is no number of tokens; write it as 65536, 64k or 1m")
    return int(match[1]) * _THOUSANDS[match[2]]
