"""What measurements are handed by the command line: Runtimes of one loaded model, and a place to show what is known so far.

Knows settings, Runtimes and terminals; does not know what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent_memory.cli.command import Call

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import Progress
    from rich.table import Table

    from agent_memory.runtime import Runtime
    from agent_memory.types import Budget


def measuring_runtimes(call: Call, **fixed: Any) -> Callable[..., Runtime]:
    """Makes Runtimes by method, Store and budget; the model is fetched now, which has a bar of its own, and loaded with the first of them.

    Args:
        call: whose settings they have.
        fixed: settings that a measurement decides.
    """
    place = call.locate_model()
    from agent_memory.opening import LoadedModel, open_runtime

    fixed = {"model": place, "gguf_file": None, **fixed}
    loaded: LoadedModel | None = None

    def make_runtime(*, method: str, store: Path, budget: Budget | None = None) -> Runtime:
        nonlocal loaded
        sizes = {} if budget is None else {"device": budget.device, "host": budget.host}
        settings = call.settings.model_copy(update={"method": method, "store": str(store), **sizes, **fixed})
        runtime = open_runtime(settings, loaded)
        loaded = LoadedModel(runtime.model, runtime.tokenizer, runtime.model_id)  # not the Runtime: its Tiers would stay in memory
        return runtime

    return make_runtime


class LiveReport:
    """Shows a measurement while it is made, on standard error: tables above a progress bar on a terminal, elsewhere a line each time more
    is known.

    Args:
        line: says what is known in one line.
        tables: shows it.
        live: a live part of the terminal; None where there is none.
        bar: its progress bar.
    """

    def __init__(
        self,
        line: Callable[[Mapping[str, Any]], str],
        tables: Callable[[Mapping[str, Any]], Sequence[Table]],
        live: Live | None,
        bar: Progress | None,
    ) -> None:
        self._line, self._tables, self._live, self._bar = line, tables, live, bar

    def progress(self, done: int, total: int, doing: str) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=doing)

    def partial(self, report: Mapping[str, Any]) -> None:
        """Show what is known."""
        if self._live is None or self._bar is None:
            typer.echo(self._line(report), err=True)
        else:
            self._live.update(_stacked([*self._tables(report), self._bar]))


def _stacked(parts: Sequence[Any]) -> Group:
    from rich.console import Group

    return Group(*parts)


@contextmanager
def live_report(line: Callable[[Mapping[str, Any]], str], tables: Callable[[Mapping[str, Any]], Sequence[Table]]) -> Iterator[LiveReport]:
    """A :class:`LiveReport`, whose tables and bar are gone in the end: the command prints the last ones."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield LiveReport(line, tables, None, None)
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    bar.add_task("loading the model", total=None)
    with Live(bar, console=console, transient=True, refresh_per_second=4) as live:
        yield LiveReport(line, tables, live, bar)
