"""The commands that look at a Store or change it without a model: they never import torch.

Knows the Store; nothing of models.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_memory.cli import shapes
from agent_memory.cli.command import Call, command
from agent_memory.errors import AgentMemoryError, ConfigError, SessionBusy, SessionNotFound
from agent_memory.given import without_credentials
from agent_memory.store.names import check_name
from agent_memory.types import SessionInfo

if TYPE_CHECKING:
    from agent_memory.store.store import Store

Session = Annotated[str, typer.Argument(help="Name of a Session.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Last = Annotated[int, typer.Option("--last", help="How many, counted from the end.", min=1)]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    declared: tuple[tuple[str, Callable[..., None]], ...] = (
        ("sessions", sessions),
        ("show", show),
        ("recall", recall),
        ("export", export),
        ("import", import_),
        ("verify", verify),
        ("delete", delete),
        ("prune", prune),
    )
    for name, function in declared:
        command(app, name)(function)


def sessions(call: Call, branches: Annotated[bool, typer.Option("--all", help="Branches too.")] = False) -> None:
    """List the Sessions of a namespace, with their size on disk."""
    with call.open_store(read_only=True) as store:
        found = store.sessions(call.settings.namespace, branches=branches)
    total, place = sum(info.bytes for info in found), without_credentials(call.settings.store)

    def people() -> None:
        if found:
            call.out.print(shapes.session_table(found))
        call.out.print(f"{shapes.count(len(found), 'Session')}, {shapes.size(total)} on disk in {place}")

    call.answer({"store": place, "sessions": [asdict(info) for info in found], "bytes": total}, people)


def show(call: Call, session: Session, last: Last = 20, full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False) -> None:
    """Show a Session: its size, and its last turns."""
    with call.open_store(read_only=True) as store:
        info = _info(store, call.settings.namespace, session)
        turns = store.turns(session, call.settings.namespace, max(0, info.turns - last))

    def people() -> None:
        call.out.print(shapes.session_table([info]))
        call.out.print(f"keys and values of {info.kv_tokens:,} tokens are on disk; model {shapes.snippet(info.model)}\n")
        call.out.print(shapes.turn_table(turns) if not full else "")
        for turn in turns if full else ():
            call.out.print(f"[bold]{turn.index}[/] {shapes.speaker(turn.role, turn.name)}, {turn.tokens:,} tokens")
            call.out.print(shapes.printable(turn.text), markup=False, emoji=False)

    call.answer({"session": asdict(info), "turns": [asdict(turn) for turn in turns]}, people)


def recall(call: Call, session: Session, last: Last = 1) -> None:
    """Show what memory contributed to the last replies of a Session."""
    with call.open_store(read_only=True) as store:
        _info(store, call.settings.namespace, session)
        records = store.recalls(session, call.settings.namespace)[-last:]

    def people() -> None:
        for record in records:
            found = shapes.read_recall(record["recall"])
            call.out.print(f"[bold]reply {record['turn']}[/]: {shapes.recall_line(found)}")
            if found.turns:
                call.out.print(shapes.recall_table(found, most=32))
        if not records:
            call.out.print("no reply yet")

    call.answer({"session": session, "replies": records}, people)


def export(call: Call, session: Session, file: Annotated[Path, typer.Argument(help="Archive to write.", show_default=False)]) -> None:
    """Write a Session to one archive file."""
    with call.open_store() as store:
        store.export(session, call.settings.namespace, file)
    written = file.stat().st_size
    payload = {"session": session, "file": str(file), "bytes": written}
    call.answer(payload, lambda: call.out.print(f"wrote {file}, {shapes.size(written)}", markup=False))


def import_(
    call: Call,
    file: Annotated[Path, typer.Argument(help="Archive that export wrote.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the new Session.", show_default="the one it had")] = None,
) -> None:
    """Read a Session from an archive file."""
    with call.open_store(create=True) as store:
        info = store.import_(file, name=None if name is None else check_name(name), namespace=call.settings.namespace)
    call.answer(asdict(info), lambda: call.out.print(shapes.session_table([info])))


def verify(
    call: Call,
    session: Annotated[str | None, typer.Argument(help="One Session only.", show_default="the namespace that is named, or all")] = None,
) -> None:
    """Check every byte of the memory against its checksum; exits with 1 if anything is damaged."""
    named = session is not None or "namespace" in call.settings.model_fields_set
    with call.open_store(read_only=True) as store, call.progress("checking") as progress:
        report = store.verify(session, call.settings.namespace if named else None, progress)

    def people() -> None:
        if report.damage:
            call.out.print(shapes.damage_table(report.damage))
        verdict = "[green]all is well[/]" if report.ok else f"[red]{len(report.damage)} damaged[/]"
        call.out.print(f"{shapes.count(report.sessions, 'Session')}, {shapes.count(report.blocks, 'Block')}: {verdict}")

    call.answer(report.to_dict(), people)
    if not report.ok:
        raise typer.Exit(1)


def delete(call: Call, session: Session, yes: Yes = False) -> None:
    """Delete a Session whole, but for what its forks still use."""
    with call.open_store() as store:
        info = _info(store, call.settings.namespace, session)
        _confirm(f"Delete {session!r}, {info.turns} turns, {shapes.size(info.bytes)}?", yes)
        store.delete(session, call.settings.namespace)
    call.answer({"deleted": session, "bytes": info.bytes}, lambda: call.out.print(f"deleted {session}", markup=False))


def prune(
    call: Call,
    older_than: Annotated[str, typer.Option(help="Not written for this long: 12h, 30d or 8w.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    yes: Yes = False,
) -> None:
    """Delete the Sessions of a namespace that were not written for a while; those that are in use stay, and are named."""
    before = time.time() - _seconds(older_than)
    skipped: list[tuple[SessionInfo, SessionBusy]] = []
    problem: AgentMemoryError | None = None
    with call.open_store() as store:
        found = store.sessions(call.settings.namespace, branches=True)
        old = [info for info in found if info.updated < before and info.damage is None]  # when a damaged one was written nobody knows
        if old and not dry_run:
            _confirm(f"Delete {shapes.count(len(old), 'Session')}: {', '.join(info.name for info in old)}?", yes)
            old, skipped, problem = _delete_each(store, old)
    verb = "would delete" if dry_run else "deleted"
    payload = {
        "pruned": [info.name for info in old],
        "skipped": [{"session": info.name, "reason": str(busy)} for info, busy in skipped],
        "bytes": sum(info.bytes for info in old),
        "dry_run": dry_run,
    }

    def people() -> None:
        call.out.print(f"{verb} {shapes.count(len(old), 'Session')}" + "".join(f"\n  {info.name}" for info in old), markup=False)
        if skipped:
            left = "".join(f"\n  {info.name}: {busy}" for info, busy in skipped)
            are = "is" if len(skipped) == 1 else "are"
            call.out.print(f"left {shapes.count(len(skipped), 'Session')} that {are} in use{left}", markup=False)

    call.answer(payload, people)
    if problem is not None:
        raise problem


def _delete_each(
    store: Store, found: list[SessionInfo]
) -> tuple[list[SessionInfo], list[tuple[SessionInfo, SessionBusy]], AgentMemoryError | None]:
    """(Sessions that were deleted, those in use, what ended it early if anything did)."""
    deleted, skipped = list[SessionInfo](), list[tuple[SessionInfo, SessionBusy]]()
    for info in found:
        try:
            store.delete(info.name, info.namespace)
        except SessionBusy as busy:
            skipped.append((info, busy))
        except SessionNotFound:  # somebody else has deleted it meanwhile
            continue
        except AgentMemoryError as problem:
            return deleted, skipped, problem
        else:
            deleted.append(info)
    return deleted, skipped, None


def _info(store: Store, namespace: str, name: str) -> SessionInfo:
    for info in store.sessions(namespace, branches=True):
        if info.name == name:
            return info
    raise SessionNotFound(f"no session {name!r} in namespace {namespace!r}; agent-memory sessions --all lists them")


def _seconds(written: str) -> float:
    match = re.fullmatch(r"(\d{1,9})\s*([hdw])", written.strip())
    if match is None:
        raise ConfigError(f"--older-than {written!r} is no duration; write hours, days or weeks, such as 12h, 30d or 8w")
    return int(match[1]) * {"h": 3600.0, "d": 86400.0, "w": 604800.0}[match[2]]


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} nobody is there to ask; pass --yes")
    typer.confirm(question, abort=True, err=True)
