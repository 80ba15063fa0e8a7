"""The commands that run a model: chat, run, fork, repair, attach-check.

Knows which room does what; torch is imported when one of them runs.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.cli import shapes
from agent_memory.cli.command import RUNTIME_OPTIONS, Call, command
from agent_memory.errors import ConfigError
from agent_memory.types import Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from agent_memory.agent import Event

Session = Annotated[str, typer.Argument(help="Name of a Session; made if it is new.")]
Tokens = Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    command(app, "chat", RUNTIME_OPTIONS)(chat)
    command(app, "run", RUNTIME_OPTIONS)(run)
    command(app, "fork", RUNTIME_OPTIONS)(fork)
    command(app, "repair", RUNTIME_OPTIONS)(repair)
    command(app, "attach-check", RUNTIME_OPTIONS)(attach_check)


def chat(
    call: Call,
    session: Session = "chat",
    system: Annotated[str | None, typer.Option(help="System prompt of a new Session.", show_default=False)] = None,
    max_new_tokens: Tokens = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.", show_default=False)] = None,
) -> None:
    """Talk to the model; after each answer, see what it recalled. Everything is kept."""
    from agent_memory.cli.conversation import Conversation

    out = None if call.json else call.out
    with call.open_runtime() as runtime, runtime.session(session, call.settings.namespace) as opened:
        if system is not None:
            opened.configure(system=system)
        if out is not None:
            held = (
                f"{opened.tokens:,} tokens of {len(opened.turns())} turns are remembered" if opened.tokens else "nothing is remembered yet"
            )
            out.print(f"session {shapes.snippet(session)}: {held}. /help lists the orders.", style="dim")
        talk = Conversation(opened, out, max_new_tokens, Sampling(temperature=temperature, seed=seed))
        talk.run()
    if call.json:
        call.answer({"session": session, "replies": talk.replies}, lambda: None)


def run(
    call: Call,
    session: Session,
    prompt: Annotated[str | None, typer.Argument(help="What to do.", show_default="take up the run that was interrupted")] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="A function as module:name, with type hints and a docstring; repeat for more.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default=False)] = None,
    max_steps: Annotated[int, typer.Option(help="Most replies of one run.", min=1)] = 16,
    max_new_tokens: Tokens = 256,
    rerun: Annotated[bool, typer.Option("--rerun", help="Repeat tool calls that an earlier run left unfinished.")] = False,
) -> None:
    """Run an agent with tools until it answers."""
    from agent_memory.agent import Agent

    tools = [_function(written) for written in tool or ()]
    with call.open_runtime() as runtime:
        agent = Agent(runtime, tools, system=system, namespace=call.settings.namespace, max_steps=max_steps, max_new_tokens=max_new_tokens)
        events: list[Event] = []
        for event in agent.run(session, prompt, rerun=rerun):
            events.append(event)
            if not call.json:
                _print_event(call.out, event)
    answer = events[-1].to_dict() if events else {}
    payload = {"session": session, "answer": answer.get("text"), "events": [event.to_dict() for event in events if _lasting(event)]}
    call.answer(payload, lambda: None)
    if "text" not in answer:
        raise typer.Exit(1)


def fork(
    call: Call,
    session: Annotated[str, typer.Argument(help="Session to fork.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the new Session.", show_default=False)],
    at: Annotated[int | None, typer.Option(help="Turns to share.", show_default="all", min=0)] = None,
) -> None:
    """Make a Session that shares the beginning of another; both go on by themselves."""
    with call.open_runtime() as runtime, runtime.session(session, call.settings.namespace, create=False) as opened:
        with opened.fork(name, at) as child:
            payload = {"session": name, "parent": session, "turns": len(child.turns()), "tokens": child.tokens}
    call.answer(payload, lambda: call.out.print(f"{name}: {payload['turns']} turns, {payload['tokens']:,} tokens", markup=False))


def repair(call: Call, session: Annotated[str, typer.Argument(help="Session to repair.", show_default=False)]) -> None:
    """Make damaged Blocks of a Session again from its tokens; approximate where what lay before them is damaged too."""
    with call.open_runtime() as runtime, runtime.session(session, call.settings.namespace, create=False) as opened:
        payload = {"session": session, "blocks": list(opened.repair())}
    call.answer(payload, lambda: call.out.print(f"{session}: {len(payload['blocks'])} blocks made again", markup=False))


def attach_check(
    call: Call,
    place: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder, GGUF file, hub id, or smollm2.", show_default="the pocket model")
    ] = None,
) -> None:
    """Say, layer by layer, whether memory can be attached to a model; exits with 1 if it cannot."""
    from agent_memory.model.attach import inspect
    from agent_memory.model.load import load

    settings, source = call.settings, call.locate_model(place)
    options: dict[str, Any] = {"device_map": settings.device_map, "trust_remote_code": settings.trust_remote_code}
    with call.loading():
        model, _ = load(source, revision=settings.revision, dtype=settings.dtype, **options)
        report = inspect(model)
    layers = [asdict(layer) for layer in report.layers]

    def people() -> None:
        made = shapes.table("layer", "name", "attention", "heads", "head dim", "positions", "memory", "verdict", right=("layer",))
        for layer in report.layers:
            made.add_row(*_layer_row(layer))
        call.out.print(made)
        call.out.print(
            f"{report.model}: [green]can be attached[/]" if report.ok else f"[red]{report.model} cannot be attached[/]: {report.reason}"
        )

    call.answer({"model": report.model, "ok": report.ok, "reason": report.reason, "layers": layers}, people)
    if not report.ok:
        raise typer.Exit(1)


def _layer_row(layer: Any) -> Sequence[str]:
    kind = "full" if layer.kind == "full" else f"sliding {layer.sliding_window}"
    extras = [word for word, there in (("sinks", layer.sinks), ("softcap", layer.softcap is not None)) if there]
    heads = f"{layer.query_heads} q, {layer.kv_heads} kv"
    verdict = "[green]ok[/]" if layer.verdict == "ok" else f"[red]{layer.verdict}[/]"
    positions = "rotary" if layer.rotates else "none"
    recalls = "recalls" if layer.recalls else "window only"
    verdict += f" {layer.notes}" if layer.notes else ""
    return str(layer.index), layer.name, " ".join([kind, *extras]), heads, str(layer.head_dim), positions, recalls, verdict


def _function(written: str) -> Callable[..., Any]:
    """The function meant by ``module:name``; modules of the working folder count."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(written)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(f"--tool {written!r} cannot be found: {problem}; write it as module:name") from None
    if not callable(found):
        raise ConfigError(f"--tool {written!r} is no function")
    return found  # type: ignore[no-any-return]


def _lasting(event: Event) -> bool:
    """Whether an event says more than a piece of a text that a later event holds whole."""
    return type(event).__name__ not in ("TextPiece", "Thought")


def _print_event(out: Console, event: Event) -> None:
    from agent_memory.agent import Answered, Resumed, StepLimit, TextPiece, Thought, ToolCalled, ToolReturned

    match event:
        case TextPiece(text):
            out.print(shapes.printable(text), end="", markup=False, emoji=False)
        case Thought(text):
            out.print(shapes.printable(text), end="", style="dim", markup=False, emoji=False)
        case ToolCalled(tool_call):
            out.print(f"\n[yellow]{shapes.snippet(tool_call.name)}[/] {shapes.snippet(str(dict(tool_call.arguments)))}")
        case ToolReturned(_, ok, text):
            out.print(f"  {'->' if ok else '[red]failed[/] ->'} {shapes.snippet(text)}")
        case Resumed(turn, calls, _):
            out.print(f"taking up the run that stopped after turn {turn}, {len(calls)} calls unanswered", style="dim")
        case StepLimit(steps):
            out.print(f"\nno answer after {steps} steps; run it again without a prompt to go on", style="red")
        case Answered(_, recall):
            out.print()
            if recall is not None and recall.turns:
                out.print(f"recalled {shapes.recall_line(recall)}", style="dim")
                out.print(shapes.recall_table(recall, 5), style="dim")
