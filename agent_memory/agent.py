"""The agent loop: append what was said, think, call tools, append what they returned, answer.

Knows Sessions by what it asks of them (`SessionLike`), tools, and nothing of models or stores. All state is in the Session: an agent
that was killed goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from agent_memory.chat.stream import split_stream
from agent_memory.errors import ConfigError, EmptyMessage, TurnTooLarge
from agent_memory.tools import Tool, ToolResult, as_tools, start
from agent_memory.tools import tool as tool
from agent_memory.types import Recall, Receipt, Role, ToolCall, Turn

INTERRUPTED = "interrupted before it returned"
"""What the model reads of a call whose process died."""

NO_OUTPUT = "(no output)"
"""What the model reads of a call that returned blank text."""


class SessionLike(Protocol):
    """What the agent asks of a Session. ``meta["tool_calls"]`` of an assistant turn lists ``{"id", "name", "arguments"}``,
    ``meta["tool_call_id"]`` of a tool turn names the call it answers; the text of a reply is without reasoning and calls."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def last_turn(self) -> Turn | None:
        """The newest turn."""

    @property
    def last_recall(self) -> Recall | None:
        """What memory contributed to the newest reply."""

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """Turns ``start`` to ``stop``."""

    def configure(self, *, system: str | None, tools: Sequence[Mapping[str, Any]]) -> None:
        """Set the head of a new Session, or check that it is the same."""

    def append(self, role: Role, text: str, *, name: str | None = None, tool_call_id: str | None = None) -> Receipt:
        """Append a message."""

    def generate(self, *, max_new_tokens: int) -> Iterator[str]:
        """Stream a reply; its turn is committed when the iterator ends."""


class RuntimeLike(Protocol):
    """What opens Sessions."""

    def session(self, name: str, namespace: str = "default") -> AbstractContextManager[SessionLike]:
        """Open a Session, new or not."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the kind of event under ``event``."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The Session is open; ``turns`` is what it holds."""

    session: str
    turns: int


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """An earlier run stopped after turn ``turn``; ``calls`` had not returned, and are run again if ``rerun``."""

    turn: int
    calls: tuple[ToolCall, ...]
    rerun: bool


@dataclass(frozen=True, slots=True)
class Appended(Event):
    """A message is durable as turn ``turn``."""

    turn: int
    role: Role
    tokens: int


@dataclass(frozen=True, slots=True)
class Thought(Event):
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPiece(Event):
    """A piece of the model's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalled(Event):
    """A call was started."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolReturned(Event):
    """A call came back, with ``text`` for the model; ``ok`` is False for an error, a timeout or an interruption."""

    call: ToolCall
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The run is over: the answer, and what memory contributed to it."""

    text: str
    recall: Recall | None


@dataclass(frozen=True, slots=True)
class StepLimit(Event):
    """The run stopped after ``steps`` steps without an answer; ``run(session)`` goes on."""

    steps: int


class Agent:
    """A model that calls tools, over Sessions that never forget.

    Args:
        runtime: opens the Sessions.
        tools: Tools, or plain functions with type hints and docstrings; `ToolError` if one cannot be described.
        system: system prompt.
        namespace: tenant of the Sessions.
        max_steps: replies of one run at most.
        tool_timeout: seconds a tool may take that has no timeout of its own.
        max_new_tokens: tokens of one reply at most.
    """

    def __init__(
        self,
        runtime: RuntimeLike,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        *,
        system: str | None = None,
        namespace: str = "default",
        max_steps: int = 16,
        tool_timeout: float = 60.0,
        max_new_tokens: int = 256,
    ) -> None:
        for name, value in (("max_steps", max_steps), ("tool_timeout", tool_timeout), ("max_new_tokens", max_new_tokens)):
            if value <= 0:
                raise ConfigError(f"{name} must be more than 0, not {value}")
        self.tools = as_tools(tools)
        self._runtime, self._system, self._namespace = runtime, system, namespace
        self._max_steps, self._timeout, self._max_new_tokens = max_steps, tool_timeout, max_new_tokens

    def run(self, session: str, prompt: str | None = None, *, rerun: bool = False) -> Iterator[Event]:
        """Ask, and yield what happens until the answer (`Answered`) or the step limit (`StepLimit`).

        A run that was killed is taken up where it stopped: calls that had not returned are reported to the model as interrupted.

        Args:
            session: name of the Session.
            prompt: the user's message; None only takes up an earlier run, or repeats its answer if it is over.
            rerun: run such calls again instead.
        """
        with self._runtime.session(session, namespace=self._namespace) as opened:
            yield from self.run_in(opened, prompt, rerun=rerun)

    def run_in(self, opened: SessionLike, prompt: str | None = None, *, rerun: bool = False) -> Iterator[Event]:
        """`run` in a Session that is open, and stays open."""
        opened.configure(system=self._system, tools=[found.schema for found in self.tools.values()])
        last = opened.last_turn
        yield Started(opened.name, last.index + 1 if last else 0)
        pending = _unanswered(opened, last)
        if last and (pending or (prompt is None and last.role in ("user", "tool"))):
            yield Resumed(last.index, pending, rerun)
            yield from self._call(opened, pending) if rerun else _interrupt(opened, pending)
        if prompt is not None:
            yield _append(opened, "user", prompt)
        elif last is None or last.role == "system":
            raise EmptyMessage(f"session {opened.name!r} has nothing to go on with; pass a prompt")
        elif last.role == "assistant" and not pending:
            yield Answered(last.text, opened.last_recall)
            return
        yield from self._steps(opened)

    async def arun(self, session: str, prompt: str | None = None, *, rerun: bool = False) -> AsyncIterator[Event]:
        """`run`, with its steps in a thread of their own; closing it early waits for the step in progress."""
        events = self.run(session, prompt, rerun=rerun)
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def step() -> Event | None:
            return next(events, None)

        with ThreadPoolExecutor(1, thread_name_prefix="agent") as thread:  # one thread: Sessions know theirs
            try:
                while (event := await loop.run_in_executor(thread, context.run, step)) is not None:
                    yield event
            finally:
                await asyncio.shield(loop.run_in_executor(thread, events.close))  # type: ignore[attr-defined]

    def _steps(self, session: SessionLike) -> Iterator[Event]:
        for _ in range(self._max_steps):
            yield from self._think(session)
            turn = session.last_turn
            calls = _calls(turn) if turn else ()
            if turn and not calls:
                yield Answered(turn.text, session.last_recall)
                return
            yield from self._call(session, calls)
        yield StepLimit(self._max_steps)

    def _think(self, session: SessionLike) -> Iterator[Event]:
        pieces = session.generate(max_new_tokens=self._max_new_tokens)
        thinking = bool(getattr(getattr(self._runtime, "chat", None), "thinking", False))
        try:
            for kind, text in split_stream(pieces, thinking=thinking):
                if kind != "call":
                    yield Thought(text) if kind == "thought" else TextPiece(text)
        finally:
            if close := getattr(pieces, "close", None):
                close()  # a run that is broken off drops its partial reply now, while the Session is open

    def _call(self, session: SessionLike, calls: Sequence[ToolCall]) -> Iterator[Event]:
        """Run `calls` at the same time, and append their outputs in the order of the calls."""
        waits = []
        for call in calls:
            waits.append(start(self.tools, call, self._timeout))
            yield ToolCalled(call)
        for call, wait in zip(calls, waits, strict=True):
            yield from _return(session, call, wait())


def _interrupt(session: SessionLike, calls: Sequence[ToolCall]) -> Iterator[Event]:
    for call in calls:
        yield from _return(session, call, ToolResult(False, INTERRUPTED))


def _return(session: SessionLike, call: ToolCall, result: ToolResult) -> Iterator[Event]:
    """Append the output of `call`, unless that is too large, which the model is told instead."""
    text = result.text if result.text.strip() else NO_OUTPUT
    try:
        appended = _append(session, "tool", text, call)
    except TurnTooLarge as error:
        result = ToolResult(False, f"error: the output of {len(text)} characters is too large: {error}")
        appended = _append(session, "tool", text := result.text, call)
    yield ToolReturned(call, result.ok, text)
    yield appended


def _append(session: SessionLike, role: Role, text: str, call: ToolCall | None = None) -> Appended:
    receipt = session.append(role, text, name=call.name if call else None, tool_call_id=call.id if call else None)
    return Appended(receipt.turn, role, receipt.tokens)


def _unanswered(session: SessionLike, last: Turn | None) -> tuple[ToolCall, ...]:
    """Calls of the newest reply that no tool turn after it answers; a user turn after it settles them."""
    answered = set()
    turn = last
    while turn and turn.role == "tool" and turn.index > 0:
        answered.add(turn.meta.get("tool_call_id"))
        turn = session.turns(turn.index - 1, turn.index)[0]
    calls = _calls(turn) if turn and turn.role == "assistant" else ()
    return tuple(call for call in calls if call.id not in answered)


def _calls(turn: Turn) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(item["id"], item["name"], item["arguments"]) for item in turn.meta.get("tool_calls", ()))
