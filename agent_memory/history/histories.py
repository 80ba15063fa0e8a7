"""The Sessions one client talks to: what is new of each request is appended, in the branch it belongs to, and answered.

Knows the order of things; how histories are compared, and whose turn it is, is known elsewhere.
"""

from __future__ import annotations

import threading
import uuid
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from agent_memory.chat import split_stream
from agent_memory.chat.call_stream import CallStream
from agent_memory.errors import AgentMemoryError, ConfigError, HistoryRewritten, InvalidHistory, SessionExists, SessionNotFound
from agent_memory.history.asynchronous import in_one_thread
from agent_memory.history.matching import Agreement, History, agreement, check_results, overlap, rewritten, split_head
from agent_memory.history.open_sessions import Key, OpenSessions
from agent_memory.history.records import Delta, Reply, Request
from agent_memory.plans import sessions_at_once
from agent_memory.session import Session
from agent_memory.turns import to_message
from agent_memory.types import Message

if TYPE_CHECKING:
    from agent_memory.runtime import Runtime

Pruning = Literal["keep_latest", "delete"]

KEPT_OPEN = 32
"""Sessions that stay open between requests."""

HEADS = 3
"""Other heads a conversation already has when another one is worth a warning: agents that hand over to each other have their own."""

RECENT = 64
"""Newest turns whose calls a tool's result may answer."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a request goes on: a Session, what of the request it does not hold, and tokens read for making a branch."""

    session: Session
    new: Sequence[Message]
    prefilled: int = 0


class Histories:
    """The Sessions that one client of a Runtime talks to, kept open between its calls. Any number of threads may ask.

    Args:
        open_runtime: makes the Runtime, when the first request comes.
        namespace: tenant of the Sessions, unless a request names another.
    """

    def __init__(self, open_runtime: Callable[[], Runtime], namespace: str = "default") -> None:
        self._open_runtime, self._namespace = open_runtime, namespace
        self._runtime: Runtime | None = None
        self._loading = threading.Lock()
        self._sessions = OpenSessions(self._most_open)

    @property
    def runtime(self) -> Runtime:
        """The Runtime, loaded on first use."""
        with self._loading:
            if self._runtime is None:
                self._runtime = self._open_runtime()
            return self._runtime

    def stream(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Generator[Delta, None, Reply]:
        """The reply piece by piece, and as the generator's value what is known of it.

        Requests to one conversation wait for each other; those to others do not.

        Args:
            request: what is asked.
            gone: asked before each token, and while waiting: whether nobody wants the reply any more.

        Raises:
            ConfigError: no message to answer, or a format that cannot be enforced.
            InvalidHistory: a tool's result without its call; a trimmed history, if those are refused.
            SessionBusy: this thread is in the middle of streaming a reply of the same conversation.
        """
        conversation = (self._tenant(request.namespace), f"ephemeral/{uuid.uuid4().hex}" if request.session is None else request.session)
        with self._sessions.hold(conversation, gone) as held:
            if not held:
                raise AgentMemoryError(f"the request to session {conversation[1]!r} was cancelled while it waited")
            try:
                return (yield from self._answer(conversation, request, gone))
            finally:
                if request.session is None:
                    self._forget(conversation, [conversation[1]])

    def reply(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Reply:
        """:meth:`stream`, to its end."""
        pieces = self.stream(request, gone)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return cast(Reply, end.value)

    def pieces(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Generator[Delta | Reply, None, None]:
        """:meth:`stream` with the Reply as its last piece."""
        yield (yield from self.stream(request, gone))

    async def astream(self, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """:meth:`pieces` without blocking the event loop. Leaving it cancels the reply."""
        left = threading.Event()
        async with aclosing(in_one_thread(self.pieces(request, left.is_set), left)) as pieces:
            async for piece in pieces:
                yield piece

    async def areply(self, request: Request) -> Reply:
        """:meth:`reply` without blocking the event loop."""
        pieces = [piece async for piece in self.astream(request)]
        return cast(Reply, pieces[-1])

    def messages(self, name: str, namespace: str | None = None, branch: str | None = None) -> list[Message]:
        """The messages of a conversation, its head left out, of a branch or else the one that holds most; what is not there has none."""
        wanted = [one for one in self.branches(name, namespace) if branch in (None, one)]
        held = [self.runtime.store.turns(one, self._tenant(namespace)) for one in wanted]
        return [to_message(turn) for turn in max(held, key=len, default=[]) if not turn.meta.get("head")]

    def branches(self, name: str, namespace: str | None = None) -> list[str]:
        """The Sessions of a conversation: the one it began with, and its branches in the order in which they were made."""
        return self.runtime.store.conversation(name, self._tenant(namespace))

    def delete(self, name: str, namespace: str | None = None) -> None:
        """Remove a conversation with its branches; one that is not there is removed already."""
        conversation = (self._tenant(namespace), name)
        with self._sessions.hold(conversation):
            self._forget(conversation, self.branches(*reversed(conversation)))

    def copy(self, source: str, target: str, namespace: str | None = None) -> None:
        """Let ``target`` begin as a copy of a conversation with its branches, sharing what is on disk. Of nothing comes nothing.

        Raises:
            SessionExists: there is a conversation of that name.
        """
        conversation = (self._tenant(namespace), source)
        if self.branches(target, namespace):
            raise SessionExists(f"there is a conversation {target!r} in namespace {conversation[0]!r}; choose another name")
        with self._sessions.hold(conversation):
            for number, name in enumerate(self.branches(source, conversation[0])):
                self._new((conversation[0], target), number, partial(self._session(conversation, name).fork, conversation=target)).close()

    def prune(
        self, names: Sequence[str], namespace: str | None = None, *, strategy: Literal["keep_latest", "delete"] = "keep_latest"
    ) -> None:
        """Of each conversation keep the branch that was written to last, or nothing (``delete``)."""
        if strategy not in ("keep_latest", "delete"):
            raise ConfigError(f"strategy={strategy!r} cannot be used; it must be 'keep_latest' or 'delete'")
        for name in names:
            conversation = (self._tenant(namespace), name)
            with self._sessions.hold(conversation):
                found = self.branches(name, conversation[0])
                latest = max(found, key=lambda branch: self._written(branch, conversation[0]), default=None)
                self._forget(conversation, [branch for branch in found if strategy == "delete" or branch != latest])

    def close(self) -> None:
        """Close every Session that was opened here, and the Runtime. The next request opens them again."""
        self._sessions.close_all()
        with self._loading:
            if self._runtime is not None:
                self._runtime.close()
                self._runtime = None

    def _most_open(self) -> int:
        runtime = self.runtime
        return min(KEPT_OPEN, sessions_at_once(runtime.method(0), runtime.layout, runtime.cache))

    def _answer(self, conversation: Key, request: Request, gone: Callable[[], bool]) -> Generator[Delta, None, Reply]:
        place, system = self._take(conversation, request)
        session, known = place.session, place.session.tokens
        if not session.timeline.turn_count:
            session.configure(system=system, tools=request.tools)
        session.check_format(request.format, request.max_new_tokens)
        for message in place.new:
            session.append_message(message, prefill=False)
        added, before = session.tokens - known, session.engine.counters.prefilled
        pieces = session.generate(
            max_new_tokens=request.max_new_tokens, sampling=request.sampling, stop=request.stop, format=request.format, cancelled=gone
        )
        prefilled = before
        with closing(pieces):
            for delta in _deltas(pieces, thinking=self.runtime.chat.thinking):
                prefilled = session.engine.counters.prefilled
                yield delta
        turn, recall = session.last_turn, session.last_recall
        if turn is None or recall is None or turn.role != "assistant":
            raise AgentMemoryError(f"the reply in session {session.name!r} was cancelled")
        read = max(prefilled, session.engine.counters.prefilled) - before + place.prefilled
        return Reply(session.name, turn, to_message(turn), known, added, read, recall)

    def _take(self, conversation: Key, request: Request) -> tuple[_Place, str | None]:
        """Where a request goes on, and its system prompt; nothing is appended yet."""
        system, rest = split_head(request.messages)
        if not rest:
            raise ConfigError("there is no message to answer: send at least one user message")
        if request.given == "new":
            return _Place(self._first(conversation), rest), system
        chain = self.runtime.chain(conversation[0], system, request.tools, rest)
        place = self._place(conversation, History(system, request.tools, rest, chain), request)
        count = place.session.timeline.turn_count
        check_results(rest, len(place.new), place.session.turns(max(0, count - RECENT), count))
        return place, system

    def _place(self, conversation: Key, history: History, request: Request) -> _Place:
        """Where a history goes on: where a Session ends within it, after its trimmed beginning, or in a new branch."""
        branches = self.branches(conversation[1], conversation[0])
        found = [self._agreement(conversation, name, history) for name in branches]
        if not found:
            return _Place(self._first(conversation), history.messages)
        if whole := [one for one in found if one.goes_on]:
            longest = max(whole, key=lambda one: one.turns)
            return _Place(self._session(conversation, longest.name), history.messages[longest.messages :])
        best = max(found, key=lambda one: one.shared)
        for one in sorted((one for one in found if one.rooted), key=lambda one: -one.turns) if request.on_trim != "fork" else ():
            with closing(self.runtime.store.view(one.name, conversation[0])) as view:
                shared = overlap(history, one, view.turns)
            if shared > best.messages:
                return self._trimmed(conversation, one, history.messages[shared:], request)
        heads_change = sum(not one.rooted for one in found) >= HEADS
        return self._branch(conversation, best, branches, history, tell=best.rooted or heads_change)

    def _trimmed(self, conversation: Key, found: Agreement, new: Sequence[Message], request: Request) -> _Place:
        if request.on_trim == "error":
            raise InvalidHistory(
                f"the beginning of what session {found.name!r} holds is missing from the history; send all of it, or use on_trim='keep'"
            )
        return _Place(self._session(conversation, found.name), new)

    def _branch(self, conversation: Key, best: Agreement, taken: Sequence[str], history: History, *, tell: bool) -> _Place:
        session = self._session(conversation, best.name)
        if tell and (changed := rewritten(history, best, session.turns)):
            remedy = (
                "a middleware that clears or summarises is not needed here" if best.rooted else "keep them as they are in one conversation"
            )
            again = len(history.messages) - best.messages
            said = f"{changed} of the history of session {best.name!r} changed, so {again} messages from there on are read again; {remedy}"
            warnings.warn(said, HistoryRewritten, stacklevel=2)
        before = session.engine.counters.prefilled
        branch = self._new(
            conversation,
            len(taken),
            lambda made: self._sessions.get(conversation, made, lambda: session.fork(made, at=best.shared, conversation=conversation[1])),
        )
        return _Place(branch, history.messages[best.messages :], session.engine.counters.prefilled - before)

    def _agreement(self, conversation: Key, name: str, history: History) -> Agreement:
        with closing(self.runtime.store.view(name, conversation[0])) as view:
            return agreement(name, view.turn_count, view.turns, history, self.runtime.chain(conversation[0], None, (), ())[0])

    def _session(self, conversation: Key, name: str) -> Session:
        return self._sessions.get(
            conversation, name, lambda: self.runtime.session(name, namespace=conversation[0], conversation=conversation[1])
        )

    def _tenant(self, namespace: str | None) -> str:
        return self._namespace if namespace is None else namespace

    def _first(self, conversation: Key) -> Session:
        """The Session a conversation began with, or begins with now."""
        if there := self.branches(conversation[1], conversation[0]):
            return self._session(conversation, there[0])
        return self._new(conversation, 0, lambda name: self._session(conversation, name))

    @staticmethod
    def _new(conversation: Key, number: int, make: Callable[[str], Session]) -> Session:
        """A new Session of a conversation, called after it and numbered; names that others have are passed over."""
        while True:
            try:
                return make(f"{conversation[1]}/{number}" if number else conversation[1])
            except SessionExists:
                number += 1

    def _forget(self, conversation: Key, names: Sequence[str]) -> None:
        for name in names:
            self._sessions.close(conversation, name, keep=False)
            try:
                self.runtime.store.delete(name, conversation[0])
            except SessionNotFound:
                continue

    def _written(self, name: str, namespace: str) -> float:
        with closing(self.runtime.store.view(name, namespace)) as view:
            last = view.turns(view.turn_count - 1, view.turn_count)
            return last[0].created if last else 0.0


def _deltas(pieces: Generator[str, None, None], *, thinking: bool) -> Generator[Delta, None, None]:
    calls = CallStream()
    for kind, text in split_stream(pieces, thinking=thinking):
        if kind == "call":
            yield from (Delta("call", piece, index, name) for index, name, piece in calls.push(text))
        else:
            yield Delta(kind, text)
