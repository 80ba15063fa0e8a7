"""How a command of ``agent-memory`` is declared, and what it is handed.

Knows the options that every command shares, JSON output and progress bars; nothing of what any command does.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from agent_memory.config import Settings
from agent_memory.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from agent_memory.runtime import Runtime
    from agent_memory.store.store import Store

PIPE_WIDTH = 160
"""Characters of a line where the output is no terminal."""

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
        typer.Option(
            "--model",
            "-m",
            help="Folder, GGUF file, hub id, or smollm2.",
            show_default="the pocket model",
            rich_help_panel="Settings",
        ),
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
        str | None,
        typer.Option(help="float32, bfloat16, float16 or auto.", show_default="the checkpoint's own", rich_help_panel="Settings"),
    ],
    "attention_shares": Annotated[
        bool | None,
        typer.Option(
            "--attention-shares/--no-attention-shares",
            help="Say how much of a reply's attention each recalled turn got.",
            show_default="yes",
            rich_help_panel="Settings",
        ),
    ],
    "device_map": Annotated[str | None, typer.Option(help="Where the weights go, as in transformers.", rich_help_panel="Settings")],
    "revision": Annotated[str | None, typer.Option(help="Hub revision of the model.", rich_help_panel="Settings")],
    "gguf_file": Annotated[str | None, typer.Option(help="GGUF file in that folder or hub repository.", rich_help_panel="Settings")],
    "threads": Annotated[int | None, typer.Option(help="Torch threads.", show_default="torch's own", rich_help_panel="Settings")],
    "trust_remote_code": Annotated[
        bool | None,
        typer.Option("--trust-remote-code", help="Run code that ships with the model.", show_default="no", rich_help_panel="Settings"),
    ],
}
RUNTIME_OPTIONS: dict[str, Any] = STORE_OPTIONS | MODEL_OPTIONS
OUTPUT_OPTIONS: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel="Output")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")],
}


def _can_be_printed(text: str) -> bool:
    """Whether standard output takes every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Show(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, doing: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """What every command is handed: the settings, and how to answer."""

    settings: Settings
    json: bool

    @property
    def out(self) -> Console:
        """Standard output, for people."""
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def answer(self, payload: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Print ``payload`` as one JSON object, or ``show`` it to a person."""
        if self.json:
            text = json.dumps(payload, ensure_ascii=False, default=str)
            typer.echo(text if _can_be_printed(text) else json.dumps(payload, default=str))
        else:
            show()

    @contextmanager
    def open_store(self, *, create: bool = False, read_only: bool = False) -> Iterator[Store]:
        """The Store of the settings, closed afterwards; StoreError if there is none, unless it may be created."""
        from agent_memory.store.store import Store

        place = self.settings.store
        if not create and "://" not in place and not Path(place).is_dir():
            raise StoreError(f"there is no store at {place!r}; name one with --store, or make one with agent-memory chat")
        store = Store.open(place, read_only=read_only)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def open_runtime(self) -> Iterator[Runtime]:
        """The Runtime of the settings, closed afterwards."""
        place = self.locate_model()
        with self.loading():
            from agent_memory.opening import open_runtime

            runtime = open_runtime(self.settings.model_copy(update={"model": place, "gguf_file": None}))
        if runtime.measured is not None and not self.json:
            typer.echo(str(runtime.measured), err=True)
        try:
            yield runtime
        finally:
            runtime.close()

    def locate_model(self, named: str | None = None) -> str:
        """Where the model lies, of the settings unless another is named. What has to be fetched or dequantised first has a bar of its own,
        for which a spinner would have no room."""
        with self._spinner():
            from agent_memory import pocket
            from agent_memory.model.locate import locate

        settings = self.settings
        model = settings.model if named is None else named
        return locate(pocket.path() if model is None else model, gguf_file=settings.gguf_file, revision=settings.revision)

    def quiet_libraries(self) -> None:
        """Keep transformers' own progress bars off the terminal; there is one for what the command does."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While a model is loaded: a spinner on standard error, or silence if that is no terminal."""
        self.quiet_libraries()
        with self._spinner():
            yield

    @contextmanager
    def _spinner(self) -> Iterator[None]:
        from rich.console import Console

        if self.json or not sys.stderr.isatty():
            yield
            return
        with Console(stderr=True).status("loading the model"):
            yield

    def note(self, line: str) -> None:
        """One line on standard error, above the bar if there is one: what is known so far of a measurement that takes long."""
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)

    @contextmanager
    def progress(self, doing: str = "", *, scaled: bool = False) -> Iterator[Show]:
        """``show(done, total)`` of a bar on standard error, silent if that is no terminal; ``show(done, total, doing)`` says anew what
        is being done. ``scaled`` writes large numbers as 64k."""
        from tqdm import tqdm

        silent = self.json or not sys.stderr.isatty()
        with tqdm(desc=doing or None, disable=silent, file=sys.stderr, leave=False, unit_scale=scaled) as bar:

            def show(done: int, total: int, doing: str | None = None) -> None:
                bar.total = total
                if doing is not None:
                    bar.set_description(doing, refresh=False)
                bar.update(done - bar.n)

            yield show


def command(app: typer.Typer, name: str, settings_options: Mapping[str, Any] = STORE_OPTIONS) -> Callable[[Function], Function]:
    """Register a function ``(call, **its own options)`` as the command ``name``, with the shared options added.

    Args:
        app: where to register it.
        name: name of the command.
        settings_options: the Settings that can be given as options, by name.
    """

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
