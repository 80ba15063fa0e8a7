"""Puts the commands together and turns every error into one line on standard error.

Knows exit codes: 0 fine, 1 an error or damage found, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from agent_memory import __version__
from agent_memory.cli import bench_command, measure_commands, model_commands, store_commands
from agent_memory.errors import AgentMemoryError, message_of
from agent_memory.given import without_credentials

app = typer.Typer(
    name="agent-memory",
    help="An agent on a local model that never forgets: look at its memory, talk to it, measure it.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_commands.register(app)
store_commands.register(app)
measure_commands.register(app)
bench_command.register(app)


@app.callback(invoke_without_command=True)
def overview(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """An agent on a local model that never forgets: look at its memory, talk to it, measure it."""
    if version:
        typer.echo(f"agent-memory {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Args:
        arguments: the words after ``agent-memory``; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _print_what_can_be()
    try:
        code = app(words, standalone_mode=False) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _fail("interrupted", 130)
    except typer.Abort:
        code = _fail("interrupted", 130)
    except BrokenPipeError:
        code = _leave_pipe()
    except Exception as problem:
        if "--debug" in words:
            traceback.print_exc()
        code = _report(problem)
    sys.exit(code)


def _print_what_can_be() -> None:
    """Characters that the terminal cannot show, such as all but ASCII in the locale C, are question marks instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _report(problem: Exception) -> int:
    if isinstance(problem, AgentMemoryError):
        return _fail(str(problem), 1)
    if hasattr(problem, "format_message"):  # typer's own, such as an unknown option
        return _fail(f"{problem.format_message()} (see agent-memory --help)", 2)
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return _fail("no space is left on the device; nothing acknowledged is lost", 1)
    if isinstance(problem, OSError) and problem.strerror:
        return _fail(f"{problem.strerror}: {problem.filename}" if problem.filename else problem.strerror, 1)
    return _fail(f"unexpected {type(problem).__name__}: {message_of(problem)} (--debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(
        "error: " + without_credentials(" ".join(message.split())), file=sys.stderr
    )  # typer's echo would write UTF-8 to a terminal that takes ASCII
    return code


def _leave_pipe() -> int:
    """The reader of standard output left (``| head``): write nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
