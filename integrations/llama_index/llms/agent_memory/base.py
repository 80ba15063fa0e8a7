"""A LlamaIndex language model whose conversations live in Sessions.

Knows LlamaIndex's chat and completion interface. Only messages that the Session does not hold yet are read by the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from agent_memory.errors import ConfigError
from agent_memory.types import Message, Role, Sampling

if TYPE_CHECKING:
    from agent_memory.history import Given, Histories, Reply, Request

UNBOUNDED = 1_000_000_000
"""The context window to report: LlamaIndex trims a history to a share of it, and nothing has to be trimmed here."""

_ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.TOOL: "tool",
}


class AgentMemory(CustomLLM):
    """A language model on a local model that never forgets. ``chat`` takes whole conversations, ``complete`` one new user message.

    The model is loaded at the first call.

    Attributes:
        session_id: Session to talk in, unless a call names one; None is a Session that is deleted after the call.
        model: local folder or hub id; None is the pocket model. ``store``, ``namespace`` and ``method`` as in Settings.
        options: further Settings, such as ``{"device": "8GiB", "dtype": "bfloat16"}``.
        max_tokens: longest reply.
        temperature: 0 is greedy.
    """

    session_id: str | None = Field(default=None, description="Session to talk in.")
    model: str | None = Field(default=None, description="Local folder or hub id; None is the pocket model.")
    store: str | None = Field(default=None, description="Folder of the Store.")
    namespace: str | None = Field(default=None, description="Tenant.")
    method: str | None = Field(default=None, description="How memory takes part in attention.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further Settings.")
    max_tokens: int = Field(default=256, gt=0, description="Longest reply, in tokens.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 is greedy.")
    _histories: Histories | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised configurations."""
        return "AgentMemory"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model; the context window is unbounded."""
        return LLMMetadata(context_window=UNBOUNDED, num_output=self.max_tokens, is_chat_model=True, model_name=self.model or "pocket")

    def close(self) -> None:
        """Close its Sessions and its model; the next call opens them again."""
        if self._histories is not None:
            self._histories.close()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The reply to a whole conversation."""
        reply = self._open().reply(self._request(_to_messages(messages), "whole", kwargs))
        return ChatResponse(message=_answer(reply.message.content), additional_kwargs=_facts(reply))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The reply to a whole conversation, piece by piece; the last response carries the usage."""
        request = self._request(_to_messages(messages), "whole", kwargs)

        def pieces() -> ChatResponseGen:
            for text, delta, facts in _growing(self._open(), request):
                yield ChatResponse(message=_answer(text), delta=delta, additional_kwargs=facts)

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The reply to one new user message."""
        reply = self._open().reply(self._request([Message("user", prompt)], "new", kwargs))
        return CompletionResponse(text=reply.message.content, additional_kwargs=_facts(reply))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The reply to one new user message, piece by piece; the last response carries the usage."""
        request = self._request([Message("user", prompt)], "new", kwargs)

        def pieces() -> CompletionResponseGen:
            for text, delta, facts in _growing(self._open(), request):
                yield CompletionResponse(text=text, delta=delta, additional_kwargs=facts)

        return pieces()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """:meth:`chat` in a thread."""
        return await asyncio.to_thread(self.chat, messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """:meth:`stream_chat` in a thread."""
        from agent_memory.history import in_one_thread

        return in_one_thread(self.stream_chat(messages, **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """:meth:`complete` in a thread."""
        return await asyncio.to_thread(self.complete, prompt, formatted, **kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """:meth:`stream_complete` in a thread."""
        from agent_memory.history import in_one_thread

        return in_one_thread(self.stream_complete(prompt, formatted, **kwargs))

    def _request(self, messages: list[Message], given: Given, kwargs: dict[str, Any]) -> Request:
        from agent_memory.history import Request

        return Request(
            session=kwargs.get("session_id", self.session_id),
            messages=messages,
            given=given,
            max_new_tokens=kwargs.get("max_tokens", self.max_tokens),
            sampling=Sampling(temperature=kwargs.get("temperature", self.temperature)),
            stop=kwargs.get("stop") or (),
        )

    def _open(self) -> Histories:
        if self._histories is None:
            from agent_memory.opening import open_histories

            given = {"model": self.model, "store": self.store, "namespace": self.namespace, "method": self.method}
            self._histories = open_histories(**given, **self.options)
        return self._histories


def _growing(histories: Histories, request: Request) -> Any:
    """(text so far, what is new of it, facts) after each piece; the facts come with the last."""
    text, pieces = "", histories.stream(request)
    while True:
        try:
            delta = next(pieces)
        except StopIteration as end:
            yield text, "", _facts(end.value)
            return
        text += delta
        yield text, delta, {}


def _to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    found = []
    for message in messages:
        role = _ROLES.get(message.role)
        if role is None or message.content is None:
            raise ConfigError(f"a {message.role.value} message without text, or of an unknown kind, cannot be remembered")
        answered = message.additional_kwargs.get("tool_call_id")
        found.append(Message(role, message.content, message.additional_kwargs.get("name"), (), answered))
    return found


def _answer(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _facts(reply: Reply) -> dict[str, Any]:
    """Token counts under the names that LlamaIndex reads, and where the reply stands."""
    prompt = reply.known + reply.added
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reply.generated,
        "total_tokens": prompt + reply.generated,
        "cache_read_tokens": reply.known,
        "cache_creation_tokens": reply.added,
        "agent_memory": {"session": reply.session, "turn": reply.turn.index, "recalled": [hit.turn for hit in reply.recall.turns]},
    }
