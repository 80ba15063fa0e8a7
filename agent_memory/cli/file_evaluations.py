"""Evaluations of files a user has: perplexity on text, and the public benchmarks' own questions.

Knows which options they have and how their results are shown; how they are made is in ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_memory.cli import shapes
from agent_memory.cli.command import Call
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from agent_memory.runtime import Runtime

Progress = Callable[[int, int, str], None]
FILE_TASKS = ("perplexity", "longbench", "leval", "infinitebench", "locomo")
"""Tasks that read files given with ``--file``."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What the command line says about files.

    Attributes:
        files: in order.
        methods: specs.
        length: tokens of a text; None is 64 windows.
        texts: at most so many texts; for benchmarks questions of each data set. None is the task's own default.
        datasets, drawn: as ``BenchmarkOptions`` has them.
        truncate: as ``BenchmarkOptions.truncate``.
        seed, reach, resume, plot: as for other tasks; ``reach`` None is the task's own default.
    """

    files: tuple[Path, ...]
    methods: tuple[str, ...]
    length: int | None
    texts: int | None
    datasets: tuple[str, ...]
    drawn: int | None
    truncate: str
    seed: int
    reach: int | None
    resume: Path | None
    plot: Path | None


def run_on_files(call: Call, task: str, options: FileOptions, make_runtime: Callable[..., Runtime], show: Progress) -> dict[str, Any]:
    """The JSON object of a task that reads files.

    Raises:
        ConfigError: no file, or one of the wrong format.
    """
    if not options.files:
        raise ConfigError(f"eval {task} reads files: name them with --file PATH, once for each")
    return _perplexity(call, options, make_runtime, show) if task == "perplexity" else _benchmark(call, task, options, make_runtime, show)


def _perplexity(call: Call, options: FileOptions, make_runtime: Callable[..., Runtime], show: Progress) -> dict[str, Any]:
    from agent_memory.evaluate.perplexity import PerplexityOptions, run_perplexity
    from agent_memory.evaluate.perplexity_plot import draw_perplexity

    given = {"texts": options.texts, "reach": options.reach}
    chosen = {name: value for name, value in given.items() if value is not None}
    made = PerplexityOptions(
        options.methods, options.files, options.length, seed=options.seed, budget=call.settings.budget, resume=options.resume, **chosen
    )
    report = run_perplexity(make_runtime, made, show, call.note)
    if options.plot is not None:
        report["plot"] = str(draw_perplexity(report, options.plot))
    return report


def _benchmark(call: Call, task: str, options: FileOptions, make_runtime: Callable[..., Runtime], show: Progress) -> dict[str, Any]:
    from agent_memory.evaluate.benchmarks.run import BenchmarkOptions, run_benchmark

    made = BenchmarkOptions(
        task,
        options.files,
        options.methods,
        limit=options.texts,
        datasets=options.datasets,
        drawn=options.drawn,
        seed=options.seed,
        truncate=options.truncate,
        budget=call.settings.budget,
        resume=options.resume,
    )
    return run_benchmark(make_runtime, made, show, call.note)


def tables(report: dict[str, Any]) -> list[Table]:
    """What people see of a report of :func:`run_on_files`."""
    if report["task"] == "perplexity":
        return [_by_position(report), _history(report)]
    return [_scores(report), _losses(report), *([_against(report)] if report["against"] else [])]


def _by_position(report: dict[str, Any]) -> Table:
    headings = [f"to {stop:,}" for _, stop in report["buckets"]]
    made = shapes.table("perplexity", *headings, right=tuple(headings))
    for method in dict.fromkeys(cell["method"] for cell in report["cells"]):
        found = {cell["stop"]: f"{cell['perplexity']:.2f}" for cell in report["cells"] if cell["method"] == method}
        made.add_row(method, *(found.get(stop, "-") for _, stop in report["buckets"]))
    return made


def _history(report: dict[str, Any]) -> Table:
    last = report["alone"]
    right = ("with it", "without", "difference", "95%", "texts")
    made = shapes.table(f"last {last:,} tokens, {report['length']:,} of history", *right, "", right=right)
    for method, row in report["history"].items():
        low, high = row["interval"] or (float("nan"), float("nan"))
        verdict = "better" if row["better"] else "not shown to be worse" if row["not_worse"] else "worse"
        numbers = (f"{row['with_history']:.4f}", f"{row['window_only']:.4f}", f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}")
        made.add_row(method, *numbers, f"{row['texts']}", verdict if row["interval"] else "too few texts")
    return made


def _scores(report: dict[str, Any]) -> Table:
    methods: Sequence[str] = list(report["summary"])
    made = shapes.table(report["task"], "metric", "questions", *methods, right=("questions", *methods))
    for dataset, count in report["counts"].items():
        shown = (f"{report['summary'][method][dataset]:.2f}" for method in methods)
        made.add_row(dataset, str(report["metrics"][dataset]), f"{count:,}", *shown)
    return made


def _losses(report: dict[str, Any]) -> Table:
    methods: Sequence[str] = list(report["losses"])
    made = shapes.table("loss of right answers, nats", "questions", *methods, right=("questions", *methods))
    counts = {**report["counts"], "all": sum(report["counts"].values())}
    for dataset in counts if len(counts) > 2 else list(counts)[:1]:
        made.add_row(dataset, f"{counts[dataset]:,}", *(f"{report['losses'][method][dataset]:.3f}" for method in methods))
    return made


def _against(report: dict[str, Any]) -> Table:
    base = next(iter(report["losses"]))
    made = shapes.table(f"loss beside {base}", "difference", "95%", "contexts", right=("difference", "95%", "contexts"))
    for method, row in report["against"].items():
        low, high = row["interval"] or (float("nan"), float("nan"))
        interval = f"{low:+.3f} to {high:+.3f}" if row["interval"] else "too few contexts"
        made.add_row(method, f"{row['difference']:+.3f}", interval, f"{row['contexts']:,}")
    return made
