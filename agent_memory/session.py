"""One agent's endless timeline: turns go in, replies come out, and what was recalled can be asked.

Knows turns, chat format and the order of commits; does not know models, attention or files. A turn is committed (text and token ids,
fsynced) before its keys and values are made; a reply is committed when it is whole, and a cancelled one leaves nothing behind.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from .attention.trace import Trace
from .conversation import Conversation
from .errors import SessionBusy, SessionClosed, StoreFull
from .recall import make_recall
from .repair import repair_blocks
from .services import Services
from .types import GenerationRequest, Message, Recall, Receipt, ReplyFormat, Role, Sampling, Turn

if TYPE_CHECKING:
    from .engine import MemoryEngine
    from .kv_files import SegmentFiles
    from .store.timeline import Timeline


@dataclass(slots=True)
class _Held:
    """What an open Session holds, apart from it, so that it can be given back once the Session is gone."""

    timeline: Timeline
    engine: MemoryEngine | None = None
    files: SegmentFiles | None = None


def _give_back(held: _Held, pid: int, later: Callable[[Callable[[], None]], None]) -> None:
    """Free a Session that was dropped without ``close``, with nothing written. A finalizer: it runs in the middle of anything, in any
    thread, so it waits for no lock, and puts off what needs one."""
    if pid != os.getpid():
        return
    later(held.timeline.let_go())
    if held.engine is not None:
        held.engine.kv.drop()


class Session:
    """One agent's timeline. Made by :meth:`Runtime.session`; a context manager. One that is dropped is given back when Python collects it,
    as if its process had ended: what is acknowledged is there, and keys and values that are not on disk are made again.

    Args:
        conversation: its turns.
        services: what the Runtime does for it.
        timeout: seconds a second thread waits.
    """

    def __init__(self, conversation: Conversation, services: Services, *, timeout: float) -> None:
        self._conversation, self._services, self._timeout = conversation, services, timeout
        self._timeline: Timeline = conversation.timeline
        self._lock, self._pid, self._closed = threading.Lock(), os.getpid(), False
        self._kept = _Held(self._timeline)
        self._finalizer = weakref.finalize(self, _give_back, self._kept, self._pid, services.later)
        self._finalizer.atexit = False  # the end of the process frees everything
        self._streamed: weakref.ref[Generator[str, None, None]] | None = None  # one that nobody reads any more ends itself
        self._sent: tuple[Message, Turn] | None = None
        self._unfinished = False
        self.last_recall: Recall | None = None

    @property
    def name(self) -> str:
        """Its name within the namespace."""
        return self._timeline.name

    @property
    def namespace(self) -> str:
        """Its tenant."""
        return self._timeline.namespace

    @property
    def timeline(self) -> Timeline:
        """Its durable truth."""
        return self._timeline

    @property
    def tokens(self) -> int:
        """Committed tokens."""
        return self._timeline.token_count

    @property
    def last_turn(self) -> Turn | None:
        """The newest turn."""
        count = self._timeline.turn_count
        return self._timeline.turns(count - 1, count)[0] if count else None

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """Turns ``[start, stop)``."""
        self._check_open()
        return self._timeline.turns(start, stop)

    def configure(self, *, system: str | None = None, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Set the head: system prompt and tool schemas, which are always attended. Doing it again with the same changes nothing.

        Raises:
            HeadTooLong: over a quarter of the window.
            ConfigError: the Session has another head, or turns already.
        """
        with self._held():
            self._conversation.configure(system, tools)

    def append(
        self,
        role: Role,
        text: str,
        *,
        name: str | None = None,
        tool_call_id: str | None = None,
        prefill: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Receipt:
        """Append one message; when this returns, its text and token ids survive anything.

        Args:
            role: who speaks.
            text: what was said; anything a string can hold.
            name: the tool's name, for role ``tool``.
            tool_call_id: the call a tool message answers.
            prefill: make its keys and values now; otherwise the next reply does.
            progress: told the number of tokens whose keys and values are made.

        Raises:
            EmptyMessage: no text; only the assistant may have had nothing to say.
            TurnTooLarge: over ``max_turn_tokens``; nothing was written.
            StoreFull: no room. It says whether the turn is kept; where it is, appending the same again makes only its keys and values.
        """
        return self.append_message(Message(role, text, name, (), tool_call_id), prefill=prefill, progress=progress)

    def append_message(self, message: Message, *, prefill: bool = True, progress: Callable[[int], None] | None = None) -> Receipt:
        """:meth:`append` for a whole message, with tool calls."""
        with self._held():
            turn = self._kept_before(message) or self._conversation.append(message)
            self._sent = message, turn
            if message.role == "user" and self._engine is not None:
                self._engine.kv.ahead.again()
            if prefill:
                with self._room():
                    self._engine_now().catch_up(self._timeline.token_count, progress)
            return Receipt(turn.index, turn.tokens, durable=True)

    def _kept_before(self, message: Message) -> Turn | None:
        """The last turn, if it is this message, of which there was no room for keys and values: sent again, it must not be doubled."""
        unfinished, self._unfinished = self._unfinished, False
        if not unfinished or self._sent is None:
            return None
        sent, turn = self._sent
        return turn if sent == message and turn.index == self._timeline.turn_count - 1 else None

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say of a full disk what is kept already."""
        try:
            yield
        except StoreFull as error:
            if self._sent is None or self._sent[1].index != self._timeline.turn_count - 1:
                raise
            self._unfinished = True
            raise StoreFull(
                f"turn {self._sent[1].index} of session {self.name!r} is kept, but there is no room for its keys and values ({error}); "
                "make room and send the same again: it is not doubled"
            ) from error

    def append_ids(self, ids: Sequence[int]) -> Receipt:
        """Append token ids as they are, as a user's turn without text; their keys and values are made when they are needed."""
        with self._held():
            turn = self._conversation.append_ids(ids)
            return Receipt(turn.index, turn.tokens, durable=True)

    def reply(self, text: str | None = None, **options: Any) -> str:
        """Append a user message, if given, and return the model's reply; ``options`` of :meth:`stream`."""
        return "".join(self.stream(text, **options))

    def stream(
        self,
        text: str | None = None,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        format: ReplyFormat | None = None,
    ) -> Generator[str, None, None]:
        """:meth:`reply`, piece by piece; options as in :meth:`generate`. Leaving the loop early cancels the reply and keeps the message."""
        if text is not None:
            self.append("user", text, prefill=False)
        return self.generate(max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, format=format)

    def generate(
        self,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        format: ReplyFormat | None = None,
        **hooks: Any,
    ) -> Generator[str, None, None]:
        """Stream the next assistant turn; it is committed, with its Recall, once the iterator is exhausted.

        Args:
            max_new_tokens: longest reply.
            sampling: how tokens are chosen; greedy by default.
            stop: strings that end the reply.
            format: what the reply has to be; by default text, or calls of the head's tools that are valid JSON of their schemas.
            hooks: transformers' ``processors``, ``stopping``, ``streamer``; and ``cancelled``, asked before each token.
        """
        request = GenerationRequest((), max_new_tokens, sampling or Sampling(), tuple(stop), self._conversation.end_ids)
        stream = self._generate(request, format or ReplyFormat(), hooks)
        self._streamed = weakref.ref(stream)
        return stream

    def _asked(self) -> int | None:
        """The token where the message that is to be answered begins; None where the last turn is a reply, or nobody wants to know."""
        focus = self._engine_now().method.focus
        if focus is None or not focus.blocks or self._timeline.token_count <= focus.beyond:
            return None
        last = self.last_turn
        return None if last is None or last.role == "assistant" else last.start

    def check_format(self, format: ReplyFormat, max_new_tokens: int) -> None:
        """Raise ConfigError if no reply of so many tokens can be held to ``format`` here."""
        self._services.structured.check(format, self._conversation.tools, max_new_tokens)

    def _generate(self, request: GenerationRequest, format: ReplyFormat, hooks: dict[str, Any]) -> Generator[str, None, None]:
        with self._held():
            if (held := self._services.structured.processor(format, self._conversation.tools, request.max_new_tokens)) is not None:
                hooks["processors"] = [*(hooks.get("processors") or ()), held]
            prompt = self._conversation.prompt()
            request = replace(request, prompt=tuple(prompt), asked=self._asked())
            trace, generated, texts = Trace(), [], []
            pieces = self._engine_now().generate(self._timeline.token_count, request, trace, **hooks)
            reason = "cancelled"
            try:
                while True:
                    try:
                        with self._room():
                            piece = next(pieces)
                    except StopIteration as end:
                        reason = end.value
                        break
                    generated.append(piece.token)
                    texts.append(piece.text)
                    if piece.text:
                        yield piece.text
            finally:
                pieces.close()
            if reason != "cancelled":
                self.last_recall = make_recall(trace, self._timeline)
                self._conversation.append_reply(prompt, generated, "".join(texts), reason, self.last_recall)

    def prefill(self, progress: Callable[[int], None] | None = None) -> None:
        """Make the keys and values of every committed token now."""
        with self._held():
            if self._timeline.token_count:
                self._engine_now().catch_up(self._timeline.token_count, progress)

    def fork(self, name: str, at: int | None = None, *, conversation: str | None = None) -> Session:
        """A Session of its own that shares the first ``at`` turns (all by default); this one stays as it is. With ``conversation`` it is a
        branch of a client's conversation of that name, and listed with it.

        Raises:
            SessionExists: the name is taken.
        """
        with self._held():
            if self._timeline.token_count:
                engine = self._engine_now()
                engine.catch_up(self._timeline.token_count)
                if self._files is not None:
                    self._files.flush(engine.kv, engine.final, whole=False)
            return self._services.branch(self, name, at, conversation)

    def repair(self, progress: Callable[[int], None] | None = None) -> tuple[int, ...]:
        """Make damaged Blocks again from their tokens; see :func:`agent_memory.repair.repair_blocks`."""
        with self._held():
            self._forget_engine()
            return repair_blocks(self._timeline, self._services.damaged(), self._services.open_engine, progress)

    def _forget_engine(self) -> None:
        """The next use reads keys and values from disk again."""
        if self._engine is not None:
            self._engine.kv.close()
        self._kept.engine = self._kept.files = None

    @property
    def engine(self) -> MemoryEngine:
        """What makes keys and values here; for counters, and for forks."""
        return self._engine_now()

    @property
    def _engine(self) -> MemoryEngine | None:
        return self._kept.engine

    @property
    def _files(self) -> SegmentFiles | None:
        return self._kept.files

    @property
    def has_engine(self) -> bool:
        """Whether keys and values were needed yet."""
        return self._engine is not None

    def adopt(self, engine: MemoryEngine, files: SegmentFiles) -> None:
        """Take over keys and values that a parent shared."""
        self._kept.engine, self._kept.files = engine, files

    def close(self, *, keep: bool = True) -> None:
        """Write what is left, so that reopening is exact, and free the Session. Closing twice is fine.

        Args:
            keep: False leaves keys and values that are not on disk yet to be made again.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._end_stream()
        try:
            if keep and self._engine is not None and self._files is not None and self._timeline.token_count:
                self._engine.catch_up(self._timeline.token_count)
                self._engine.kv.truncate(self._engine.final)
                self._files.flush(self._engine.kv, self._engine.final, whole=False)
                self._files.save_tail(self._engine.kv)
        finally:
            self._closed = True
            self._finalizer.detach()
            if self._engine is not None:
                self._engine.kv.close()
            self._timeline.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One use at a time: another thread, or a reply that is still being streamed, makes this wait at most the timeout."""
        self._check_open()
        if not self._lock.acquire(timeout=self._timeout):
            raise SessionBusy(f"{self.namespace}/{self.name}", "another thread, or a reply that is still being streamed")
        try:
            self._check_open()
            yield
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise SessionClosed(f"session {self.name!r} was opened before this process was forked; open it again here")
        if self._closed:
            raise SessionClosed(f"session {self.name!r} is closed; open it again")

    def _end_stream(self) -> None:
        """Cancel a reply nobody reads to its end."""
        stream = None if self._streamed is None else self._streamed()
        if stream is not None:
            try:
                stream.close()
            except ValueError:  # another thread is inside it
                raise SessionBusy(f"{self.namespace}/{self.name}", "another thread") from None

    def _engine_now(self) -> MemoryEngine:
        if self._engine is None:
            self.adopt(*self._services.open_engine())
        return cast("MemoryEngine", self._engine)
