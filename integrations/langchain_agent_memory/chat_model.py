"""A LangChain chat model whose conversations live in Sessions.

Knows LangChain's chat interface. The Session is named by ``session_id``, or by the ``thread_id`` of a configuration; only messages
that it does not hold yet are read by the model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from agent_memory.errors import ConfigError
from agent_memory.types import Sampling

if TYPE_CHECKING:
    from agent_memory.history import Histories, Request


class ChatAgentMemory(BaseChatModel):
    """A chat model on a local model that never forgets.

    Send the whole conversation, as LangChain does: the Session takes what is new. An edited or shortened conversation goes on in a
    branch of the Session. The model is loaded at the first call.

    Attributes:
        session_id: Session to talk in, unless a call or a ``thread_id`` names one; None is a Session that is deleted after the call.
        model: local folder or hub id; None is the pocket model. ``store``, ``namespace`` and ``method`` as in Settings.
        options: further Settings, such as ``{"device": "8GiB", "dtype": "bfloat16"}``.
        max_tokens: longest reply.
        temperature, top_p, top_k, seed: how tokens are chosen; greedy by default.
        stop: strings that end a reply.
    """

    session_id: str | None = None
    model: str | None = None
    store: str | None = None
    namespace: str | None = None
    method: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    cache: bool | None = False
    _histories: Histories | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "agent-memory-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "namespace", "method", "session_id", "max_tokens", "temperature", "top_p", "top_k", "seed")
        return {name: getattr(self, name) for name in names}

    def close(self) -> None:
        """Close its Sessions and its model; the next call opens them again."""
        if self._histories is not None:
            self._histories.close()

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools in the head of its Sessions.

        Raises:
            ConfigError: a ``tool_choice`` that forces a call; the model decides here.
        """
        if tool_choice not in (None, "auto"):
            raise ConfigError(f"tool_choice={tool_choice!r} cannot be forced; leave it out, and the model decides")
        return cast("Runnable[LanguageModelInput, AIMessage]", self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs))

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().invoke(input, config, stop=stop, **_with_thread(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return await super().ainvoke(input, config, stop=stop, **_with_thread(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().stream(input, config, stop=stop, **_with_thread(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().astream(input, config, stop=stop, **_with_thread(config, kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = [chunk async for chunk in self._astream(messages, stop, **kwargs)]
        return generate_from_stream(iter(chunks))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        from langchain_agent_memory.messages import facts, tool_chunks, usage

        request = self._request(messages, stop, kwargs)
        pieces = self._open().stream(request)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                reply = end.value
                break
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        last = AIMessageChunk(
            content="",
            tool_call_chunks=tool_chunks(reply),
            usage_metadata=usage(reply),
            response_metadata=facts(reply, self.model or "pocket"),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last, generation_info={"finish_reason": reply.turn.meta.get("finish_reason")})

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        from agent_memory.history import in_one_thread

        async for chunk in in_one_thread(cast(Any, self._stream(messages, stop, **kwargs))):
            yield chunk

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        from agent_memory.history import Request
        from langchain_agent_memory.messages import to_messages

        sampling = Sampling(
            temperature=kwargs.get("temperature", self.temperature),
            top_p=kwargs.get("top_p", self.top_p),
            top_k=kwargs.get("top_k", self.top_k),
            seed=kwargs.get("seed", self.seed),
        )
        return Request(
            session=kwargs.get("session_id", self.session_id),
            messages=to_messages(messages),
            tools=kwargs.get("tools", ()),
            max_new_tokens=kwargs.get("max_tokens", self.max_tokens),
            sampling=sampling,
            stop=stop or self.stop or (),
        )

    def _open(self) -> Histories:
        if self._histories is None:
            from agent_memory.opening import open_histories

            given = {"model": self.model, "store": self.store, "namespace": self.namespace, "method": self.method}
            self._histories = open_histories(**given, **self.options)
        return self._histories


def _with_thread(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with ``session_id`` from the configuration's ``thread_id``, unless the call names one itself."""
    thread = ensure_config(config).get("configurable", {}).get("thread_id")
    return kwargs if thread is None or "session_id" in kwargs else {**kwargs, "session_id": str(thread)}
