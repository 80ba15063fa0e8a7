"""What a client asks, what comes while the reply is made, and what came of it. Knows these records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent_memory.chat.checks import check_message, check_tools
from agent_memory.store.names import check_name
from agent_memory.types import Message, Recall, ReplyFormat, Sampling, Turn

Given = Literal["whole", "new"]
OnTrim = Literal["keep", "fork", "error"]


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
        namespace: tenant; None is that of the Histories.
        format: what the reply has to be.
        on_trim: a history that lacks the beginning of what the Session holds goes on (``keep``), is a branch of its own (``fork``), or
            an error.

    Raises:
        InvalidName: a session or namespace that cannot be one; an empty one is no name.
        ConfigError: a message that cannot be kept, or a tool that cannot be described to a model.
    """

    session: str | None
    messages: Sequence[Message]
    given: Given = "whole"
    tools: Sequence[Mapping[str, Any]] = ()
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    namespace: str | None = None
    format: ReplyFormat = field(default_factory=ReplyFormat)
    on_trim: OnTrim = "keep"

    def __post_init__(self) -> None:
        if self.session is not None:
            check_name(self.session)
        if self.namespace is not None:
            check_name(self.namespace, "namespace")
        check_tools(self.tools)
        for message in self.messages:
            check_message(message)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply while it is made.

    Attributes:
        kind: ``text``, ``thought``, or ``call``.
        text: the piece; of a call, a piece of its arguments as JSON.
        index: number of the call in the reply.
        name: the tool's name, with the first piece of a call.
    """

    kind: Literal["text", "thought", "call"]
    text: str
    index: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a Request.

    Attributes:
        session: the Session it stands in: the one asked for, or a branch of it.
        turn: the assistant turn.
        message: its text and tool calls.
        known: tokens the Session held before the request.
        added: tokens the request appended.
        prefilled: tokens the model read before the reply's first one: those appended, those of the reply before, and what was left of
            a group of queries.
        recall: what memory contributed.
    """

    session: str
    turn: Turn
    message: Message
    known: int
    added: int
    prefilled: int
    recall: Recall

    @property
    def generated(self) -> int:
        """Tokens the model made."""
        return int(self.turn.meta.get("generated", 0))

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered."""
        return str(self.turn.meta.get("reasoning", ""))

    def facts(self) -> dict[str, Any]:
        """Where it stands, tokens the Session holds with it and that were read for it, why it ended, and what was recalled: from where,
        and with what attention (``score`` and ``peak`` of :class:`agent_memory.types.RecalledTurn`)."""
        names = ("turn", "role", "name", "tokens_ago", "score", "peak", "tier")
        return {
            "session": self.session,
            "turn": self.turn.index,
            "tokens": self.turn.stop,
            "finish_reason": self.turn.meta.get("finish_reason"),
            "prefilled": self.prefilled,
            "recalled": [{name: getattr(hit, name) for name in names} for hit in self.recall.turns],
            "exact": self.recall.exact,
        }
