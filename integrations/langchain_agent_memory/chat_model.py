"""A LangChain chat model whose conversations live in Sessions.

Knows LangChain's chat interface. The Session is named by ``session_id``, or by the ``thread_id`` of a configuration; only messages
that it does not hold yet are read by the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool

from agent_memory.connection import session_named
from agent_memory.errors import ConfigError
from langchain_agent_memory import formats
from langchain_agent_memory.local_model import PROVIDER, LocalModel, with_session

if TYPE_CHECKING:
    from agent_memory.history import Request

UNBOUNDED = 1_000_000_000
"""Input tokens to report: middleware trims and summarises at a share of it, and nothing has to be trimmed here."""


class ChatAgentMemory(LocalModel, BaseChatModel):
    """A chat model on a local model that never forgets.

    Send the whole conversation, as LangChain does: the Session takes what is new. An edited conversation goes on in a branch of the
    Session. Options as in :class:`LocalModel`, and:

    Attributes:
        on_trim: what to do with a conversation that lacks the beginning of what the Session holds: go on (``keep``), begin a branch
            (``fork``), or raise (``error``).
    """

    on_trim: Literal["keep", "fork", "error"] = "keep"

    @property
    def _llm_type(self) -> str:
        return "agent-memory-chat"

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            max_input_tokens=UNBOUNDED,
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=True,
            reasoning_output=True,
            mid_conversation_system_messages=True,
            open_weights=True,
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_name=str(kwargs.get("model", self.model_label)),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if ends := stop or self.stop:
            params["ls_stop"] = ends
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of ``text`` by the model's own tokenizer."""
        return list(self._open()[0].runtime.tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation as the model reads it, with its system prompt and tools."""
        from agent_memory.history import count_tokens
        from langchain_agent_memory.messages import to_messages

        schemas = formats.tool_schemas(tools or ())
        return count_tokens(self._open()[0].runtime.chat, to_messages(messages), schemas)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools in the head of its Sessions.

        Args:
            tools: functions, LangChain tools, pydantic models or schemas.
            tool_choice: None or ``auto``, ``none``, ``any`` (also ``required`` and True), a tool's name, or OpenAI's dict.
            kwargs: further options of the calls, such as ``parallel_tool_calls`` and ``strict``.

        Raises:
            ConfigError: a ``tool_choice`` that cannot be read, or a tool that cannot be described.
        """
        schemas = formats.tool_schemas(tools)
        choice = formats.tool_choice(tool_choice, [schema["function"]["name"] for schema in schemas])
        return cast("Runnable[LanguageModelInput, AIMessage]", self.bind(tools=schemas, tool_choice=choice, **kwargs))

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with replies that are always of a schema; they are held to it while they are made.

        Args:
            schema: pydantic model, TypedDict, or JSON schema.
            include_raw: return a dict with ``raw``, ``parsed`` and ``parsing_error``.
            method: ``json_schema`` and ``json_mode`` replies are JSON of the schema, and the schema is not part of what the model reads;
                ``function_calling`` replies are calls of a tool, which is in the head (a head of its own is a branch of its own).
            strict: with ``function_calling``: taken, though replies are always held to their schema.
            kwargs: further options of the calls.

        Raises:
            ConfigError: no such method, or no such schema.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ConfigError(f"method={method!r} cannot be used; it must be 'json_schema', 'function_calling' or 'json_mode'")
        written = formats.json_schema(schema)
        traced = {"kwargs": {"method": method, "strict": strict}, "schema": written}
        if method == "function_calling":
            name = formats.tool_schemas([schema])[0]["function"]["name"]
            bound = self.bind_tools([schema], tool_choice=name, ls_structured_output_format=traced, **kwargs)
            return formats.parsed(bound, formats.call_parser(schema, name), include_raw=include_raw)
        wanted = formats.response_format(written.get("title", "reply"), written)
        held = self.bind(response_format=wanted, ls_structured_output_format=traced, **kwargs)
        return formats.parsed(cast(Any, held), formats.text_parser(schema), include_raw=include_raw)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().invoke(input, config, stop=stop, **with_session(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return await super().ainvoke(input, config, stop=stop, **with_session(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().stream(input, config, stop=stop, **with_session(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().astream(input, config, stop=stop, **with_session(config, kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().stream_events(input, config, **with_session(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().astream_events(input, config, **with_session(config, kwargs))

    def thread_messages(self, thread_id: str, *, namespace: str | None = None, branch: str | None = None) -> list[BaseMessage]:
        """What a thread holds: of the branch that is named, or that which holds most; an unknown one is empty."""
        from langchain_agent_memory.messages import from_messages

        name = session_named(thread_id)
        histories, tenant = self._open(namespace)
        return from_messages(histories.messages(name, tenant, branch))

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
        from langchain_agent_memory.messages import ReplyChunks

        histories, request = self._prepare(self._request(messages, stop, kwargs))
        chunks, pieces = ReplyChunks(self.model_label), histories.pieces(request)
        with closing(pieces):
            for piece in pieces:
                yield chunks.of(piece)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        from langchain_agent_memory.messages import ReplyChunks

        histories, request = await asyncio.to_thread(lambda: self._prepare(self._request(messages, stop, kwargs)))
        chunks = ReplyChunks(self.model_label)
        async for piece in histories.astream(request):
            yield chunks.of(piece)

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        from agent_memory.history import Request
        from langchain_agent_memory.messages import to_messages

        return Request(
            messages=to_messages(messages),
            tools=kwargs.get("tools") or (),
            format=formats.reply_format(kwargs),
            on_trim=self.on_trim,
            **self._asked(kwargs, stop),
        )
