"""For clients that hand over a whole history each time: which of its messages a Session does not hold yet.

Knows Sessions and messages; nothing of any client. A history that was edited becomes a branch; nothing is ever overwritten.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from agent_memory.chat import clean_text
from agent_memory.chat.stream import split_stream
from agent_memory.errors import AgentMemoryError, ConfigError
from agent_memory.session import Session
from agent_memory.turns import to_message
from agent_memory.types import Message, Recall, Sampling, Turn

if TYPE_CHECKING:
    from agent_memory.runtime import Runtime

Item = TypeVar("Item")
Given = Literal["whole", "new"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants answered.

    Attributes:
        session: name of the Session; None is one that is deleted afterwards.
        messages: what the client sent; a leading system message is the head.
        given: ``whole`` if ``messages`` are the conversation so far, ``new`` if only what is new.
        tools: tool schemas, part of the head.
        max_new_tokens: longest reply.
        sampling: how tokens are chosen.
        stop: strings that end the reply.
    """

    session: str | None
    messages: Sequence[Message]
    given: Given = "whole"
    tools: Sequence[Mapping[str, Any]] = ()
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a Request.

    Attributes:
        session: the Session it stands in: the one asked for, or a branch of it.
        turn: the assistant turn.
        message: its text and tool calls.
        known: tokens the Session held before the request.
        added: tokens the request appended.
        recall: what memory contributed.
    """

    session: str
    turn: Turn
    message: Message
    known: int
    added: int
    recall: Recall

    @property
    def generated(self) -> int:
        """Tokens the model made."""
        return int(self.turn.meta.get("generated", 0))


class Histories:
    """The Sessions that one client of a Runtime talks to, kept open between its calls.

    Args:
        open_runtime: makes the Runtime, when the first request comes.
        namespace: tenant of the Sessions.
    """

    def __init__(self, open_runtime: Callable[[], Runtime], namespace: str = "default") -> None:
        self._open_runtime, self._namespace = open_runtime, namespace
        self._runtime: Runtime | None = None
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()  # not reentrant, so that a stream may be ended by another thread than began it

    @property
    def runtime(self) -> Runtime:
        """The Runtime, loaded on first use."""
        if self._runtime is None:
            self._runtime = self._open_runtime()
        return self._runtime

    def stream(self, request: Request) -> Generator[str, None, Reply]:
        """The reply's text piece by piece, and as the generator's value what is known of it.

        Thoughts and calls are not part of the text. One request at a time: others wait.

        Raises:
            ConfigError: no message to answer.
        """
        with self._lock:
            name = request.session or f"ephemeral/{uuid.uuid4().hex}"
            try:
                session, known = self._take(name, request)
                added = session.tokens - known
                pieces = session.generate(max_new_tokens=request.max_new_tokens, sampling=request.sampling, stop=request.stop)
                with closing(pieces):
                    yield from (text for kind, text in split_stream(pieces) if kind == "text")
                turn, recall = session.last_turn, session.last_recall
                if turn is None or recall is None:
                    raise AgentMemoryError(f"the reply in session {session.name!r} was cancelled")
                return Reply(session.name, turn, to_message(turn), known, added, recall)
            finally:
                if request.session is None:
                    self._drop(name)

    def reply(self, request: Request) -> Reply:
        """:meth:`stream`, to its end."""
        pieces = self.stream(request)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return cast(Reply, end.value)

    def close(self) -> None:
        """Close every Session that was opened here, and the Runtime. The next request opens them again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
            if self._runtime is not None:
                self._runtime.close()
                self._runtime = None

    def _take(self, name: str, request: Request) -> tuple[Session, int]:
        """The Session that now ends with the request's last message, and the tokens it held before."""
        system, rest = _head(request.messages)
        if not rest:
            raise ConfigError("there is no message to answer: send at least one user message")
        whole = request.given == "whole"
        session = self._place(name, system, rest, request.tools) if whole else self._session(name)
        known = session.tokens
        if not session.turns(0, 1):
            session.configure(system=system, tools=request.tools)
        for message in rest[_agreeing(rest, _talk(session)) :] if whole else rest:
            session.append_message(message, prefill=False)
        return session, known

    def _session(self, name: str) -> Session:
        if name not in self._open:
            self._open[name] = self.runtime.session(name, namespace=self._namespace)
        return self._open[name]

    def _drop(self, name: str) -> None:
        session = self._open.pop(name, None)
        if session is not None:
            session.close(keep=False)
            self.runtime.store.delete(name, self._namespace)

    def _place(self, name: str, system: str | None, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Session:
        """The branch that ends where the history goes on, made if there is none."""
        taken = {info.name for info in self.runtime.store.sessions(self._namespace, branches=True)}
        branches = [name, *itertools.takewhile(taken.__contains__, (f"{name}/{number}" for number in itertools.count(1)))]
        best, most = self._session(name), -1
        for branch in branches:
            session = self._session(branch)
            shared, turns = _shared_turns(session, system, messages, tools)
            if shared == turns:
                return session
            if shared > most:
                best, most = session, shared
        branch = f"{name}/{len(branches)}"
        self._open[branch] = best.fork(branch, at=most)
        return self._open[branch]


def _head(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    return ("\n\n".join(message.content for message in leading) or None) if leading else None, list(messages[len(leading) :])


def _shared_turns(session: Session, system: str | None, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(turns that the history agrees with, turns there are), both with the head."""
    turns = session.turns()
    head = 1 if turns and turns[0].meta.get("head") else 0
    if turns and (head or system or tools):
        stands = (turns[0].text or None, list(turns[0].meta.get("tools", ()))) if head else (None, [])
        if stands != (system, list(tools)):
            return 0, len(turns)
    return head + _agreeing(messages, turns[head:]), len(turns)


def _talk(session: Session) -> list[Turn]:
    return [turn for turn in session.turns() if not turn.meta.get("head")]


def _agreeing(messages: Sequence[Message], turns: Sequence[Turn]) -> int:
    """How many messages from the first on equal the turns."""
    pairs = zip(messages, turns, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: _key(pair[0]) == _key(to_message(pair[1])), pairs))


def _key(message: Message) -> tuple[Any, ...]:
    """What counts of a message: clients strip an assistant's text, and give ids of their own to calls."""
    text = clean_text(message.content)
    calls = [(call.name, dict(call.arguments)) for call in message.tool_calls]
    return message.role, text.strip() if message.role == "assistant" else text, calls


async def in_one_thread(pieces: Generator[Item, None, Any]) -> AsyncGenerator[Item, None]:
    """``pieces`` without blocking the event loop; one thread runs all of it, because a Session is held by a thread."""
    loop, queue, left = asyncio.get_running_loop(), asyncio.Queue[tuple[bool, Any]](), threading.Event()

    def put(more: bool, value: object) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (more, value))

    def work() -> None:
        problem: BaseException | None = None
        try:
            for piece in pieces:
                if left.is_set():
                    break
                put(True, piece)
        except BaseException as raised:
            problem = raised
        finally:
            pieces.close()
            put(False, problem)

    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        while True:
            more, value = await queue.get()
            if not more:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        left.set()
        await task
