"""One agent's endless timeline: turns go in, replies come out, and what was recalled can be asked.

Knows turns, chat format and the order of commits; does not know models, attention or files. A turn is committed (text and token ids,
fsynced) before its keys and values are made; a reply is committed when it is whole, and a cancelled one leaves nothing behind.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .attention.trace import Trace
from .chat import ChatFormat, ParsedReply, clean_text
from .errors import ConfigError, HeadTooLong, SessionBusy, SessionClosed, TurnTooLarge
from .recall import make_recall
from .types import GenerationRequest, Message, Recall, Receipt, Role, Sampling, ToolCall, Turn

if TYPE_CHECKING:
    from .engine import MemoryEngine
    from .kv_files import SegmentFiles
    from .store.timeline import Timeline

HISTORY_SEEN = 20
"""Turns before a new one that its rendering may depend on."""


class Session:
    """One agent's timeline. Made by :meth:`Runtime.session`; a context manager.

    Args:
        timeline: its durable truth.
        chat: how messages become token ids.
        make_engine: makes the engine for a head of that many tokens.
        root: hash its history begins with, of system prompt and tools.
        options: limits.
    """

    def __init__(
        self,
        timeline: Timeline,
        chat: ChatFormat,
        make_engine: Callable[[int], tuple[MemoryEngine, SegmentFiles]],
        root: Callable[[str | None, Sequence[Mapping[str, Any]]], str],
        *,
        head_limit: int,
        max_turn_tokens: int,
        timeout: float,
        branch: Callable[[Session, str, int | None], Session],
        damaged: Callable[[], set[int]],
    ) -> None:
        self._timeline, self._chat, self._make_engine, self._root, self._branch = timeline, chat, make_engine, root, branch
        self._damaged = damaged
        self._head_limit, self._max_turn_tokens, self._timeout = head_limit, max_turn_tokens, timeout
        self._lock, self._pid, self._closed = threading.RLock(), os.getpid(), False
        self._engine: MemoryEngine | None = None
        self._files: SegmentFiles | None = None
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
        with self._held():
            return self._timeline.turns(start, stop)

    def configure(self, *, system: str | None = None, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Set the head: system prompt and tool schemas, which are always attended. Doing it again with the same changes nothing.

        Raises:
            HeadTooLong: over a quarter of the window.
            ConfigError: the Session has another head, or turns already.
        """
        with self._held():
            known_system, known_tools = self._head()
            if self._timeline.turn_count:
                if (known_system, known_tools) != (system, list(tools)):
                    raise ConfigError(f"session {self.name!r} has another system prompt or other tools; fork it, or use a new session")
                return
            ids = self._chat.head(system, tools)
            if len(ids) > self._head_limit:
                raise HeadTooLong(
                    f"system prompt and tools take {len(ids)} tokens, more than a quarter of the window ({self._head_limit}); shorten them"
                )
            if system is None and not tools and not ids:
                return
            self._commit("system", system or "", ids, {"head": True, "tools": list(tools)}, self._root(system, tools))

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
            EmptyMessage: no text.
            TurnTooLarge: over ``max_turn_tokens``; nothing was written.
            StoreFull: no room; nothing was written.
        """
        return self.append_message(Message(role, text, name, (), tool_call_id), prefill=prefill, progress=progress)

    def append_message(self, message: Message, *, prefill: bool = True, progress: Callable[[int], None] | None = None) -> Receipt:
        """:meth:`append` for a whole message, with tool calls."""
        with self._held():
            self._need_head()
            ids = self._render(message)
            if len(ids) > self._max_turn_tokens:
                raise TurnTooLarge(
                    f"a turn of {len(ids)} tokens is over max_turn_tokens={self._max_turn_tokens}; split it, or raise the limit"
                )
            meta: dict[str, Any] = {"tool_calls": _calls_to_json(message.tool_calls)} if message.tool_calls else {}
            if message.tool_call_id is not None:
                meta["tool_call_id"] = message.tool_call_id
            chain = self._chat.chain(self._chain(), message)
            turn = self._commit(message.role, clean_text(message.content), ids, meta, chain, name=message.name)
            if prefill:
                self._engine_now().catch_up(self._timeline.token_count, progress)
            return Receipt(turn.index, turn.tokens, durable=True)

    def reply(
        self, text: str | None = None, *, max_new_tokens: int = 256, sampling: Sampling | None = None, stop: Sequence[str] = ()
    ) -> str:
        """Append a user message, if given, and return the model's reply."""
        return "".join(self.stream(text, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop))

    def stream(
        self, text: str | None = None, *, max_new_tokens: int = 256, sampling: Sampling | None = None, stop: Sequence[str] = ()
    ) -> Generator[str, None, None]:
        """:meth:`reply`, piece by piece. Leaving the loop early cancels the reply and keeps the user message."""
        if text is not None:
            self.append("user", text, prefill=False)
        return self.generate(max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)

    def generate(
        self, *, max_new_tokens: int = 256, sampling: Sampling | None = None, stop: Sequence[str] = (), **hooks: Any
    ) -> Generator[str, None, None]:
        """Stream the next assistant turn; it is committed, with its Recall, once the iterator is exhausted.

        Args:
            max_new_tokens: longest reply.
            sampling: how tokens are chosen; greedy by default.
            stop: strings that end the reply.
            hooks: transformers' ``processors``, ``stopping``, ``streamer``; and ``cancelled``, asked before each token.
        """
        with self._held():
            self._need_head()
            system, tools = self._head()
            prompt = self._chat.generation_prompt(previous=self._recent(), system=system, tools=tools)
            request = GenerationRequest(tuple(prompt), max_new_tokens, sampling or Sampling(), tuple(stop), self._chat.end_ids)
            trace, generated, texts = Trace(), [], []
            count = self._timeline.token_count
            pieces = self._engine_now().generate(count, request, trace, **hooks)
            reason = "cancelled"
            try:
                while True:
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        reason = end.value or "stop"
                        break
                    generated.append(piece.token)
                    texts.append(piece.text)
                    if piece.text:
                        yield piece.text
            finally:
                pieces.close()
            if reason != "cancelled":
                self._commit_reply(prompt, generated, "".join(texts), trace, {"finish_reason": reason})

    def _commit_reply(self, prompt: list[int], generated: list[int], text: str, trace: Trace, meta: dict[str, Any]) -> None:
        _, tools = self._head()
        parsed: ParsedReply = self._chat.parse(
            generated, text if meta["finish_reason"] == "stop" and not _has_markup(text) else None, tools
        )
        recall = make_recall(trace, self._timeline)
        ids = [*prompt, *generated, *self._chat.closing(generated)]
        meta = {**meta, "generated": len(generated)}
        if parsed.tool_calls:
            meta["tool_calls"] = _calls_to_json(parsed.tool_calls)
        if parsed.reasoning:
            meta["reasoning"] = parsed.reasoning
        message = Message("assistant", parsed.content, None, parsed.tool_calls)
        self._commit("assistant", parsed.content, ids, meta, self._chat.chain(self._chain(), message), recall=recall.to_dict())
        self.last_recall = recall

    def prefill(self, progress: Callable[[int], None] | None = None) -> None:
        """Make the keys and values of every committed token now."""
        with self._held():
            if self._timeline.token_count:
                self._engine_now().catch_up(self._timeline.token_count, progress)

    def fork(self, name: str, at: int | None = None) -> Session:
        """A Session of its own that shares the first ``at`` turns (all by default); this one stays as it is.

        Raises:
            SessionExists: the name is taken.
        """
        with self._held():
            if self._timeline.token_count:
                engine = self._engine_now()
                engine.catch_up(self._timeline.token_count)
                if self._files is not None:
                    self._files.flush(engine.kv, engine.final, whole=False)
            return self._branch(self, name, at)

    def repair(self, progress: Callable[[int], None] | None = None) -> tuple[int, ...]:
        """Make damaged Blocks again from their tokens, in timeline order, and write them in place of the damaged ones.

        The result is approximate where a damaged Block was made from memory that is damaged too. Blocks inherited from a parent
        are repaired in the parent.

        Args:
            progress: told the number of Blocks done after each Segment.

        Returns:
            The Blocks that were made again.
        """
        with self._held():
            damaged = self._damaged()
            fixed: list[int] = []
            for row in self._timeline.segments():
                blocks = sorted(block for block in damaged if row.first_block <= block < row.stop)
                if blocks and self._timeline.owns(row):
                    self._rebuild(row.first_block, row.stop, blocks)
                    fixed += blocks
                    if progress is not None:
                        progress(len(blocks))
            return tuple(fixed)

    def _rebuild(self, first: int, stop: int, blocks: list[int]) -> None:
        """Write one Segment anew: sound Blocks as they are, damaged ones made again."""
        self._forget_engine()
        engine = self._engine_now()
        if self._files is None:
            raise SessionClosed(f"session {self.name!r} has no files; open it again")
        again = engine.rebuild(range(blocks[0], stop), self._files)
        parts = [
            {name: rows[block - blocks[0], None] for name, rows in again.items()} if block in blocks else engine.kv.stored(block, block + 1)
            for block in range(first, stop)
        ]
        self._files.write(first, {name: torch.cat([part[name] for part in parts]) for name in again}, repair=True)
        self._forget_engine()

    def _forget_engine(self) -> None:
        """The next use reads keys and values from disk again."""
        if self._engine is not None:
            self._engine.kv.close()
        self._engine = self._files = None

    @property
    def engine(self) -> MemoryEngine:
        """What makes keys and values here; for counters, and for forks."""
        return self._engine_now()

    @property
    def has_engine(self) -> bool:
        """Whether keys and values were needed yet."""
        return self._engine is not None

    def adopt(self, engine: MemoryEngine, files: SegmentFiles) -> None:
        """Take over keys and values that a parent shared."""
        self._engine, self._files = engine, files

    def close(self, *, keep: bool = True) -> None:
        """Write what is left, so that reopening is exact, and free the Session. Closing twice is fine.

        Args:
            keep: False leaves keys and values that are not on disk yet to be made again.
        """
        if self._closed or self._pid != os.getpid():
            return
        try:
            if keep and self._engine is not None and self._files is not None and self._timeline.token_count:
                self._engine.catch_up(self._timeline.token_count)
                self._engine.kv.truncate(self._engine.final)
                self._files.flush(self._engine.kv, self._engine.final, whole=False)
                self._files.save_tail(self._engine.kv)
        finally:
            self._closed = True
            if self._engine is not None:
                self._engine.kv.close()
            self._timeline.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """This thread alone uses the Session; another one waits at most the timeout."""
        if self._pid != os.getpid():
            raise SessionClosed(f"session {self.name!r} was opened before this process was forked; open it again here")
        if not self._lock.acquire(timeout=self._timeout):
            raise SessionBusy(f"{self.namespace}/{self.name}", "another thread")
        try:
            if self._closed:
                raise SessionClosed(f"session {self.name!r} is closed; open it again")
            yield
        finally:
            self._lock.release()

    def _engine_now(self) -> MemoryEngine:
        if self._engine is None:
            first = self._timeline.turns(0, 1)
            head = first[0].tokens if first and first[0].meta.get("head") else 0
            self._engine, self._files = self._make_engine(head)
        return self._engine

    def _head(self) -> tuple[str | None, list[Mapping[str, Any]]]:
        """System prompt and tools; (None, []) without a head."""
        first = self._timeline.turns(0, 1)
        if not first or not first[0].meta.get("head"):
            return None, []
        return first[0].text or None, list(first[0].meta.get("tools", []))

    def _need_head(self) -> None:
        """Some templates open every conversation with ids of their own (BOS); they are the head then."""
        if self._timeline.turn_count == 0:
            self.configure()

    def _recent(self) -> list[Message]:
        turns = self._timeline.turns(max(0, self._timeline.turn_count - HISTORY_SEEN), self._timeline.turn_count)
        return [to_message(turn) for turn in turns if not turn.meta.get("head")]

    def _render(self, message: Message) -> list[int]:
        system, tools = self._head()
        return self._chat.append(message, previous=self._recent(), system=system, tools=tools)

    def _chain(self) -> str:
        return self._timeline.chain or self._root(None, ())

    def _commit(
        self, role: Role, text: str, ids: Sequence[int], meta: dict[str, Any], chain: str, *, name: str | None = None, recall: Any = None
    ) -> Turn:
        tokens = np.asarray(ids, dtype=np.int32)
        return self._timeline.append_turn(role, text, tokens, name=name, chain=chain, meta=meta, recall=recall)


def to_message(turn: Turn) -> Message:
    """The message a turn was made from."""
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in turn.meta.get("tool_calls", ()))
    return Message(turn.role, turn.text, turn.name, calls, turn.meta.get("tool_call_id"))


def _calls_to_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [{"id": call.id, "name": call.name, "arguments": dict(call.arguments)} for call in calls]


def _has_markup(text: str) -> bool:
    return "<tool_call>" in text or "<think>" in text or "</think>" in text
