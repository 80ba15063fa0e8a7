"""How a command of ``agent-memory`` is declared, and what it is handed.

Knows the options that every command shares, JSON output and progress bars; nothing of what any command does.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from agent_memory.config import Settings
from agent_memory.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console
    from tqdm import tqdm

    from agent_memory.runtime import Runtime
    from agent_memory.store.store import Store

Function = TypeVar("Function", bound=Callable[..., None])

STORE_OPTIONS: dict[str, Any] = {
    "store": Annotated[str | None, typer.Option(help="Folder of the Store.", show_default="./memory", rich_help_panel="Settings")],
    "namespace": Annotated[
        str | None, typer.Option("--namespace", "-n", help="Tenant.", show_default="default", rich_help_panel="Settings")
    ],
}
MODEL_OPTIONS: dict[str, Any] = {
    "model": Annotated[
        str | None,
        typer.Option("--model", "-m", help="Local folder or hub id.", show_default="the pocket model", rich_help_panel="Settings"),
    ],
    "method": Annotated[
        str | None, typer.Option(help="How memory takes part in attention.", show_default="recall", rich_help_panel="Settings")
    ],
    "device": Annotated[
        str | None, typer.Option(help="Budget of the device Tier, as 8GiB.", show_default="256MiB", rich_help_panel="Settings")
    ],
    "host": Annotated[str | None, typer.Option(help="Budget of the host Tier.", show_default="256MiB", rich_help_panel="Settings")],
    "window": Annotated[
        int | None, typer.Option(help="Tokens attended to at once.", show_default="the model's own", rich_help_panel="Settings")
    ],
    "dtype": Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto.", show_default="the checkpoint's own", rich_help_panel="Settings")
    ],
    "device_map": Annotated[str | None, typer.Option(help="Where the weights go, as in transformers.", rich_help_panel="Settings")],
    "revision": Annotated[str | None, typer.Option(help="Hub revision of the model.", rich_help_panel="Settings")],
    "threads": Annotated[int | None, typer.Option(help="Torch threads.", show_default="torch's own", rich_help_panel="Settings")],
    "trust_remote_code": Annotated[
        bool | None,
        typer.Option("--trust-remote-code", help="Run code that ships with the model.", show_default="no", rich_help_panel="Settings"),
    ],
}
OUTPUT_OPTIONS: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel="Output")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")],
}


@dataclass(frozen=True, slots=True)
class Call:
    """What every command is handed: the settings, and how to answer."""

    settings: Settings
    json: bool

    @property
    def out(self) -> Console:
        """Standard output, for people."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def answer(self, payload: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Print ``payload`` as one JSON object, or ``show`` it to a person."""
        if self.json:
            typer.echo(json.dumps(payload, ensure_ascii=False, default=str))
        else:
            show()

    @contextmanager
    def open_store(self, *, create: bool = False) -> Iterator[Store]:
        """The Store of the settings, closed afterwards; StoreError if there is none, unless it may be created."""
        from agent_memory.store.store import Store

        place = self.settings.store
        if not create and "://" not in place and not Path(place).is_dir():
            raise StoreError(f"there is no store at {place!r}; name one with --store, or make one with agent-memory chat")
        store = Store.open(place)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def open_runtime(self) -> Iterator[Runtime]:
        """The Runtime of the settings, closed afterwards."""
        with self.busy("loading the model"):
            from agent_memory.opening import open_runtime

            runtime = open_runtime(self.settings)
        try:
            yield runtime
        finally:
            runtime.close()

    def busy(self, doing: str) -> AbstractContextManager[object]:
        """A spinner on standard error while the block runs, if that is a terminal."""
        from rich.console import Console

        return Console(stderr=True).status(doing) if sys.stderr.isatty() and not self.json else nullcontext()

    def bar(self, doing: str, total: int | None = None) -> tqdm[NoReturn]:
        """A progress bar on standard error, silent if that is no terminal; a context manager."""
        from tqdm import tqdm

        silent = self.json or not sys.stderr.isatty()
        return tqdm(desc=doing, total=total, disable=silent, file=sys.stderr, leave=False)


def command(app: typer.Typer, name: str, *, model: bool = False) -> Callable[[Function], Function]:
    """Register a function ``(call, **its own options)`` as the command ``name``, with the shared options added.

    Args:
        app: where to register it.
        name: name of the command.
        model: whether it loads a model, and so takes the options that say which and how.
    """
    settings_options = STORE_OPTIONS | (MODEL_OPTIONS if model else {})

    def register(function: Function) -> Function:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def run(**given: Any) -> None:
            settings = Settings.load(**{option: given.pop(option) for option in settings_options})
            as_json, _ = given.pop("json"), given.pop("debug")
            function(Call(settings, as_json), **given)

        shared = [_option(name, annotation, None) for name, annotation in settings_options.items()]
        shared += [_option(name, annotation, False) for name, annotation in OUTPUT_OPTIONS.items()]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        app.command(name)(run)
        return function

    return register


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
