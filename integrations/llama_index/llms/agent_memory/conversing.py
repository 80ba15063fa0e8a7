"""What both LlamaIndex models have: chat and completion, sync and async, whole and streamed, in Sessions.

Knows LlamaIndex's interface of a model; nothing of tools. Only messages that the Session does not hold yet are read by the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_serializer
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.llms.agent_memory.messages import from_messages, to_messages
from llama_index.llms.agent_memory.options import CallOptions, ReplySettings
from llama_index.llms.agent_memory.react import as_remembered, has_steps
from llama_index.llms.agent_memory.responses import completion, finished
from llama_index.llms.agent_memory.streams import acompletions, astreamed, completions, ending, streamed

from agent_memory.connection import Connection, session_named, tenant_named
from agent_memory.given import without_credentials
from agent_memory.turns import to_message
from agent_memory.types import Message

if TYPE_CHECKING:
    from agent_memory.history import Given, Histories, Request

UNBOUNDED = 1_000_000_000
"""The context window to report: LlamaIndex trims a history to a share of it, and nothing has to be trimmed here."""


class ConversingLLM(ReplySettings, LLM):
    """A local model that never forgets. ``chat`` takes whole conversations, ``complete`` one new user message.

    The model is loaded at the first call, once in a process for the same settings. A keyword of a call sets what an attribute of the
    same name sets for all calls; ``session_id=None`` there is a Session that is deleted after the call. A ``system_prompt`` begins the
    conversations that do not bring one of their own.

    Attributes:
        session_id: Session to talk in; None is one that is deleted after the call.
        model: local folder, GGUF file, hub id, or ``smollm2``; None is the pocket model. ``gguf_file``, ``store``, ``namespace`` and
            ``method`` as in Settings.
        options: further Settings, such as ``{"device": "8GiB", "dtype": "bfloat16"}``.
        max_tokens: longest reply.
        temperature, top_p, top_k, seed: how tokens are chosen; greedy by default.
        stop: strings that end the reply.
        on_trim: what becomes of a history whose beginning is missing; it goes on (``keep``), is a branch (``fork``), or an ``error``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(default=None, description="Local folder, GGUF file, hub id, or smollm2; None is the pocket model.")
    gguf_file: str | None = Field(default=None, description="GGUF file in that folder or hub repository.")
    store: str | None = Field(default=None, description="Folder of the Store.")
    method: str | None = Field(default=None, description="How memory takes part in attention.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further Settings.")
    _connection: Connection = PrivateAttr(default_factory=Connection)

    @field_serializer("model", "store", "options")
    def _without_credentials(self, value: Any) -> Any:
        """Callbacks are given, and write down, what a model is made of."""
        return without_credentials(value)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is printed of the model: no password in a URL."""
        return ((name, without_credentials(value)) for name, value in super().__repr_args__())

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model; the context window is unbounded (:attr:`attention_window` is the model's own)."""
        return LLMMetadata(
            context_window=UNBOUNDED,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=False,
            model_name="pocket" if self.model is None else self.model,
            system_role=MessageRole.SYSTEM,
        )

    @property
    def attention_window(self) -> int:
        """Tokens the model attends to at once. Loads the model."""
        return self._open()[0].runtime.window

    def with_session(self, session_id: str | None, namespace: str | None = None) -> Self:
        """A copy that talks in another Session; model and memory are shared.

        Args:
            session_id: name of the Session; None is one that is deleted after each call.
            namespace: tenant; None leaves it as it is.

        Raises:
            InvalidName: a name that cannot be; an empty one cannot.
        """
        name = None if session_id is None else session_named(session_id)
        return self.model_copy(update={"session_id": name, "namespace": self._tenant(namespace)})

    def session_messages(self, session_id: str | None = None, namespace: str | None = None) -> list[ChatMessage]:
        """The conversation in a Session, its head left out: that of the branch which holds most. Loads the model.

        Args:
            session_id: name of the Session; None is the model's own.
            namespace: tenant; None is the model's own.

        Raises:
            InvalidName: a name that cannot be; an empty one cannot.
        """
        name, meant = self.session_id if session_id is None else session_named(session_id), self._tenant(namespace)
        histories, own = self._open()
        return [] if name is None else from_messages(histories.messages(name, own if meant is None else meant))

    def delete_session(self, session_id: str, namespace: str | None = None) -> None:
        """Forget a conversation with its branches; one that is not there is forgotten already.

        Raises:
            InvalidName: a name that cannot be; an empty one cannot.
        """
        name, meant = session_named(session_id), self._tenant(namespace)
        histories, own = self._open()
        histories.delete(name, own if meant is None else meant)

    def reset(self) -> None:
        """Forget the conversation in the model's own Session; without one there is nothing to forget."""
        if self.session_id is not None:
            self.delete_session(self.session_id)

    def load(self) -> None:
        """Load the model now instead of at the first call: in a server before its event loop starts, which importing torch holds up."""
        _ = self._open()[0].runtime

    def close(self) -> None:
        """Close the model and its Sessions, for all that share them; the next call opens them again."""
        self._connection.close(self._settings)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The reply to a whole conversation.

        Raises:
            ConfigError: content that is not text, or an option that cannot be.
            InvalidHistory: a tool's result without its call.
        """
        histories, request = self._request(messages, "whole", kwargs)
        return finished(histories.reply(request))

    @ending
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The reply to a whole conversation, piece by piece; ids of calls and usage come last. Closing the generator cancels the reply."""
        return streamed(*self._request(messages, "whole", kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The reply to one new user message."""
        histories, request = self._request(self._asked(prompt, formatted), "new", kwargs)
        return completion(finished(histories.reply(request)))

    @ending
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The reply to one new user message, piece by piece; usage comes last."""
        return completions(streamed(*self._request(self._asked(prompt, formatted), "new", kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """:meth:`chat` without blocking the event loop; cancelling it cancels the reply."""
        histories, request = await asyncio.to_thread(self._request, messages, "whole", kwargs)
        return finished(await histories.areply(request))

    @ending
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """:meth:`stream_chat` without blocking the event loop."""
        return astreamed(*await asyncio.to_thread(self._request, messages, "whole", kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """:meth:`complete` without blocking the event loop."""
        histories, request = await asyncio.to_thread(self._request, self._asked(prompt, formatted), "new", kwargs)
        return completion(finished(await histories.areply(request)))

    @ending
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """:meth:`stream_complete` without blocking the event loop."""
        return acompletions(astreamed(*await asyncio.to_thread(self._request, self._asked(prompt, formatted), "new", kwargs)))

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        text = prompt if formatted or self.completion_to_prompt is None else self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=text)]

    def _tenant(self, given: str | None) -> str | None:
        """The namespace that is meant where a method names ``given``; None is that of the settings."""
        meant = self.namespace if given is None else given
        return None if meant is None else tenant_named(meant, meant)

    def _open(self) -> tuple[Histories, str]:
        return self._connection.open(self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        """Those that decide which Histories are meant; the namespace is told to these with each request."""
        return {"model": self.model, "gguf_file": self.gguf_file, "store": self.store, "method": self.method, **self.options}

    def _request(self, messages: Sequence[ChatMessage], given: Given, kwargs: Mapping[str, Any]) -> tuple[Histories, Request]:
        """Whom to ask, and what. Imports torch, and may load the model, so not for an event loop's thread."""
        options, asked = CallOptions.read(self, kwargs), to_messages(messages)
        histories, namespace = self._open()
        if self.system_prompt and asked[:1] and asked[0].role != "system":
            asked = [*to_messages(self._extend_messages([])), *asked]
        request = options.request(asked, given, namespace)
        if given == "whole" and has_steps(asked):
            request = _remembered(histories, request)
        return histories, request


def _remembered(histories: Histories, request: Request) -> Request:
    """``request`` with the steps of a ReAct agent as its Session, if it has one, holds them."""
    if request.session is None:
        return request
    memories = (_held(histories, branch, request.namespace) for branch in histories.branches(request.session, request.namespace))
    rest = list(dropwhile(lambda message: message.role == "system", request.messages))
    system = request.messages[: len(request.messages) - len(rest)]
    return replace(request, messages=[*system, *as_remembered(rest, memories)])


def _held(histories: Histories, branch: str, namespace: str | None) -> list[Message]:
    turns = histories.runtime.store.turns(branch, tenant_named(namespace, "default"))
    return [to_message(turn) for turn in turns if not turn.meta.get("head")]
