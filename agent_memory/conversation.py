"""The words of a Session: messages become turns of token ids, committed one by one.

Knows the timeline and the chat format; does not know keys and values, threads, or who waits for a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .chat import ChatFormat, clean_text
from .errors import ConfigError, HeadTooLong, TurnTooLarge
from .turns import calls_to_json, head_of, meta_of, to_message
from .types import Message, Recall, Role, Turn

if TYPE_CHECKING:
    from .store.timeline import Timeline

HISTORY_SEEN = 20
"""Turns before a new one that its rendering may depend on."""

Root = Callable[[str | None, Sequence[Mapping[str, Any]]], str]


class Conversation:
    """One Session's turns.

    Args:
        timeline: where they are committed.
        chat: how messages become token ids.
        root: hash a history begins with, of system prompt and tools.
        head_limit: tokens the head may have.
        max_turn_tokens: tokens a turn may have.
        made_by: what keys and values depend on beside the tokens (method, window, border), of a Session that is new; plain JSON types.
    """

    def __init__(
        self,
        timeline: Timeline,
        chat: ChatFormat,
        root: Root,
        *,
        head_limit: int,
        max_turn_tokens: int,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.timeline = timeline
        self._chat, self._root = chat, root
        self._head_limit, self._max_turn_tokens, self._made_by = head_limit, max_turn_tokens, dict(made_by or {})

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a reply."""
        return self._chat.end_ids

    @property
    def tools(self) -> list[Mapping[str, Any]]:
        """Schemas of the tools in the head."""
        return self._head()[1]

    @property
    def head_tokens(self) -> int:
        """Tokens of system prompt and tool schemas."""
        first = self.timeline.turns(0, 1)
        return first[0].tokens if first and first[0].meta.get("head") else 0

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What keys and values depend on beside the tokens, for as long as the Session lives: ``method``, ``window`` and ``border``.

        It is written with the first turn: another version, machine or day would have other defaults, and measure another border. What
        was not written, as in Sessions of the first version, is not there.
        """
        first = self.timeline.turns(0, 1)
        if not first:
            return self._made_by
        return {name: first[0].meta[name] for name in ("method", "window", "border") if name in first[0].meta}

    def configure(self, system: str | None, tools: Sequence[Mapping[str, Any]]) -> None:
        """Commit the head; the same one again changes nothing.

        Raises:
            HeadTooLong: over ``head_limit``.
            ConfigError: there is another head, or turns without one.
        """
        if self.timeline.turn_count:
            if self._head() != (system, list(tools)):
                name = self.timeline.name
                raise ConfigError(f"session {name!r} has another system prompt or other tools; fork it, or use a new session")
            return
        ids = self._chat.head(system, tools)
        if len(ids) > self._head_limit:
            raise HeadTooLong(
                f"system prompt and tools take {len(ids)} tokens, more than a quarter of the window ({self._head_limit}); shorten them"
            )
        if system is not None or tools or ids:
            self._commit("system", system or "", ids, {"head": True, "tools": list(tools)}, self._root(system, tools))

    def append(self, message: Message) -> Turn:
        """Commit a message.

        Raises:
            EmptyMessage: no text; only the assistant may have had nothing to say.
            TurnTooLarge: over ``max_turn_tokens``; nothing was written.
        """
        self._need_head()
        system, tools = self._head()
        ids = self._chat.append(message, previous=self._recent(), system=system, tools=tools)
        if len(ids) > self._max_turn_tokens:
            raise TurnTooLarge(f"a turn of {len(ids)} tokens is over max_turn_tokens={self._max_turn_tokens}; split it, or raise the limit")
        chain = self._chat.chain(self._chain(), message)
        return self._commit(message.role, clean_text(message.content), ids, meta_of(message), chain, name=message.name)

    def prompt(self) -> list[int]:
        """Ids that ask the model for a reply now."""
        self._need_head()
        system, tools = self._head()
        return self._chat.generation_prompt(previous=self._recent(), system=system, tools=tools)

    def append_reply(self, prompt: Sequence[int], generated: Sequence[int], text: str, reason: str, recall: Recall) -> Turn:
        """Commit what a model generated after ``prompt``: its ids as they are, its text and calls parsed, and its Recall."""
        _, tools = self._head()
        parsed = self._chat.parse(generated, text, tools)
        meta: dict[str, Any] = {"finish_reason": reason, "generated": len(generated)}
        if parsed.tool_calls:
            meta["tool_calls"] = calls_to_json(parsed.tool_calls)
        if parsed.reasoning:
            meta["reasoning"] = parsed.reasoning
        chain = self._chat.chain(self._chain(), Message("assistant", parsed.content, None, parsed.tool_calls))
        ids = [*prompt, *generated, *self._chat.closing(generated)]
        return self._commit("assistant", parsed.content, ids, meta, chain, recall=recall)

    def _need_head(self) -> None:
        """Some templates open every conversation with ids of their own (BOS); they are the head then."""
        if self.timeline.turn_count == 0:
            self.configure(None, ())

    def _head(self) -> tuple[str | None, list[Mapping[str, Any]]]:
        return head_of(self.timeline.turns(0, 1))

    def _recent(self) -> list[Message]:
        count = self.timeline.turn_count
        turns = self.timeline.turns(max(0, count - HISTORY_SEEN), count)
        return [to_message(turn) for turn in turns if not turn.meta.get("head")]

    def _chain(self) -> str:
        return self.timeline.chain or self._root(None, ())

    def _commit(
        self,
        role: Role,
        text: str,
        ids: Sequence[int],
        meta: Mapping[str, Any],
        chain: str,
        *,
        name: str | None = None,
        recall: Recall | None = None,
    ) -> Turn:
        record = None if recall is None else recall.to_dict()
        if self.timeline.turn_count == 0:
            meta = {**meta, **self._made_by}
        return self.timeline.append_turn(role, text, np.asarray(ids, dtype=np.int32), name=name, chain=chain, meta=meta, recall=record)
