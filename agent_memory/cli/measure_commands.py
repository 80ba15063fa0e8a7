"""The commands that measure: demo and eval.

Knows which measurements there are and how their results are shown; how they are made is in ``evaluate``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agent_memory.cli import fidelity_command, file_evaluations, shapes
from agent_memory.cli.command import MODEL_OPTIONS, Call, command
from agent_memory.cli.measuring import measuring_runtimes
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from agent_memory.evaluate.run import EvalOptions

_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000}

ENOUGH = 20
"""Answers from which on a table shows how far a share could be off."""

TASK_HELP = (
    "What to measure, separated by commas: needle, multi-key, multi-value, multi-query, near-duplicate, crowd, updated, passkey, "
    "variable-tracking, aggregation. Or one that reads --file: perplexity, longbench, leval, infinitebench, locomo. Or fidelity: how far "
    "methods are from full attention over the same text."
)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    command(app, "demo", {"model": MODEL_OPTIONS["model"]})(demo)
    command(app, "eval", {name: option for name, option in MODEL_OPTIONS.items() if name != "method"})(evaluate)


def demo(
    call: Call,
    tokens: Annotated[
        str | None, typer.Option(help="How long the memory gets; 1m is 1,000,000.", show_default="200k; of a named model 12k")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Folder to keep the Store in.", show_default="./agent-memory-demo")] = None,
    device: Annotated[str | None, typer.Option(help="Budget of the device Tier.", show_default="192MiB; of a named model 1GiB")] = None,
    host: Annotated[str, typer.Option(help="Budget of the host Tier.")] = "256MiB",
    plot: Annotated[Path, typer.Option(help="Picture to write, as PNG.")] = Path("agent-memory-demo.png"),
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
) -> None:
    """See it work: an agent inventories this machine, is killed half-way, and answers questions about all of it."""
    from agent_memory.demo.run import DemoOptions, run_demo

    model = call.locate_model() if call.settings.model else None
    options = DemoOptions(model, None if tokens is None else _tokens(tokens), store, device, host, plot, seed)
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
    task: Annotated[str, typer.Argument(help=TASK_HELP, show_default=False)],
    method: Annotated[
        str, typer.Option("--method", "--methods", help="Methods, separated by commas.")
    ] = "recall,reattention,streaming,full",
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens of hay, separated by commas; 64k is 64,000.", show_default="4k,16k,64k; perplexity: 64 windows"),
    ] = None,
    depths: Annotated[int | None, typer.Option(help="Facts in one document.", min=1, show_default="10; fidelity: 8")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Documents for each length; texts; questions of a data set.", min=1, show_default="10; 32; all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    match: Annotated[Literal["exact", "contains"], typer.Option(help="When an answer is right; contains suits chat models.")] = "exact",
    style: Annotated[
        Literal["record", "prose"], typer.Option(help="How passkey, variable-tracking and aggregation are told; prose suits chat models.")
    ] = "record",
    reach: Annotated[
        int | None,
        typer.Option(help="Windows to which methods that attend to everything are run.", min=1, show_default="16; perplexity: 64"),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text or benchmark file; once for each.", show_default=False)] = None,
    data_set: Annotated[list[str] | None, typer.Option(help="Data set of a benchmark to ask; once for each.", show_default="all")] = None,
    draw: Annotated[int | None, typer.Option(help="Questions of a benchmark, drawn by --seed.", min=1, show_default="all")] = None,
    truncate: Annotated[str, typer.Option(help="middle:N keeps the first and last half of N tokens of a benchmark's prompt.")] = "none",
    haystack: Annotated[Path | None, typer.Option(help="Hay from this text file.", show_default="generated")] = None,
    resume: Annotated[Path | None, typer.Option(help="File that keeps what is done, to go on after a stop.", show_default=False)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write, as PNG; with several tasks one each, as NAME-TASK.png.", show_default=False)
    ] = None,
    on: fidelity_command.On = "multi-key",
    modes: fidelity_command.Modes = "read,made",
    keys: fidelity_command.Keys = "cities",
    max_new_tokens: fidelity_command.MaxNewTokens = None,
    scored: fidelity_command.Scored = None,
    replies: fidelity_command.Replies = True,
    mass: fidelity_command.Mass = True,
    cache: fidelity_command.Cache = None,
) -> None:
    """Measure how well each method finds what was said long ago."""
    from agent_memory.evaluate.run import EvalOptions, make_tasks, run_tasks

    if task == "fidelity":
        own = fidelity_command.Given(on, modes, keys, max_new_tokens, scored, replies, mass, cache)
        length = None if lengths is None else _one_length(lengths, "fidelity measures documents")
        shared = fidelity_command.Shared(_methods(method), length, samples, depths, seed, tuple(file or ()), haystack, resume, plot)
        fidelity_command.evaluate_fidelity(call, own, shared)
        return
    if task in file_evaluations.FILE_TASKS:
        length = None if lengths is None else _one_length(lengths)
        files = file_evaluations.FileOptions(
            tuple(file or ()), _methods(method, task), length, samples, tuple(data_set or ()), draw, truncate, seed, reach, resume, plot
        )
        _evaluate_files(call, task, files)
        return
    given = {name: value for name, value in (("samples", samples), ("reach", reach), ("depths", depths)) if value is not None}
    options = EvalOptions(
        methods=_methods(method),
        lengths=_lengths(lengths or "4k,16k,64k"),
        seed=seed,
        match=match,
        haystack=haystack,
        budget=call.settings.budget,
        resume=resume,
        **given,
    )
    tasks = make_tasks(_parts(task), style)
    call.quiet_libraries()
    make_runtime = measuring_runtimes(call)
    with call.progress(scaled=True) as show:
        reports = run_tasks(make_runtime, tasks, options, show, call.note)
    _draw(reports, plot)
    payload = reports[0] if len(reports) == 1 else {"tasks": reports}
    call.answer(payload, lambda: _show(call, reports, options))


def _evaluate_files(call: Call, task: str, options: file_evaluations.FileOptions) -> None:
    call.quiet_libraries()
    make_runtime = measuring_runtimes(call)
    with call.progress(scaled=True) as show:
        report = file_evaluations.run_on_files(call, task, options, make_runtime, show)

    def people() -> None:
        for made in file_evaluations.tables(report):
            call.out.print(made)
        call.out.print(f"{report['model']}, window {report['window']:,}")
        if report.get("plot") is not None:
            call.out.print(f"picture in {report['plot']}", markup=False)

    call.answer(report, people)


def _one_length(written: str, what: str = "perplexity reads texts") -> int:
    lengths = _lengths(written)
    if len(lengths) != 1:
        raise ConfigError(f"--lengths {written!r}: {what} of one length")
    return lengths[0]


def _draw(reports: Sequence[dict[str, Any]], plot: Path | None) -> None:
    from agent_memory.evaluate.plots import draw_maps

    for report in reports:
        if plot is not None:
            path = plot if len(reports) == 1 else plot.with_stem(f"{plot.stem}-{report['task']}")
            report["plot"] = str(draw_maps(report, path))


def _show(call: Call, reports: Sequence[dict[str, Any]], options: EvalOptions) -> None:
    out = call.out
    for report in reports:
        out.print(_length_table(report["task"], {method: _shares(report, method) for method in options.methods}, options))
        outdated = {method: _outdated(report["counters"].get(method, {})) for method in options.methods}
        if any(outdated.values()):
            out.print(_length_table("an older value", outdated, options))
        out.print(f"{report['model']}, window {report['window']:,}, exact inside its window: {report['in_window']:.1%}")
        if report["plot"] is not None:
            out.print(f"picture in {report['plot']}", markup=False)
        if any(len(report["summary"].get(method, {})) < len(options.lengths) for method in options.methods):
            reach = options.reach * report["window"]
            out.print(f"- : methods that attend to everything are run to {reach:,} tokens, {options.reach} windows (--reach)", markup=False)


def _shares(report: dict[str, Any], method: str) -> dict[str, str]:
    """Shares of right answers by length, with the interval they lie in where that says something."""
    shown = {}
    for length, share in report["summary"].get(method, {}).items():
        low, high = report["interval"][method][length]
        enough = report["counters"][method][length]["answers"] >= ENOUGH
        shown[length] = f"{share:.1%}" + (f"[dim] {low * 100:.0f}-{high * 100:.0f}[/]" if enough else "")
    return shown


def _outdated(counters: dict[str, Any]) -> dict[str, str]:
    return {length: f"{row['outdated']:.1%}" for length, row in counters.items() if "outdated" in row}


def _length_table(heading: str, rows: Mapping[str, Mapping[str, str]], options: EvalOptions) -> Table:
    lengths = sorted(options.lengths)
    headings = tuple(f"{length:,}" for length in lengths)
    made = shapes.table(heading, *headings, right=headings)
    for method, row in rows.items():
        made.add_row(method, *(row.get(str(length), "-") for length in lengths))
    return made


def _methods(written: str, task: str = "") -> tuple[str, ...]:
    """The methods that were asked for; the only place that knows what may be written. Benchmarks are answered without memory, too."""
    from agent_memory.attention.methods import METHODS, check_spec
    from agent_memory.evaluate.benchmarks.shown import shown_by

    names = _parts(written)
    if not names:
        raise ConfigError(f"--method {written!r}: no method; there are {', '.join(sorted(METHODS))}")
    benchmark = task in file_evaluations.FILE_TASKS and task != "perplexity"
    for name in names:
        if not benchmark or shown_by(name) is None:
            check_spec(name)
    return names


def _lengths(written: str) -> tuple[int, ...]:
    lengths = tuple(dict.fromkeys(_tokens(part) for part in _parts(written)))
    if not lengths:
        raise ConfigError(f"--lengths {written!r}: no length; write them as 4k,64k,1m")
    return lengths


def _parts(written: str) -> tuple[str, ...]:
    """What stands between commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in written.split(",") if part.strip()))


def _tokens(written: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([km]?)", written.lower())
    if match is None or not int(match[1]):
        raise ConfigError(f"{written!r} is no number of tokens; write it as 65536, 64k or 1m")
    return int(match[1]) * _THOUSANDS[match[2]]
