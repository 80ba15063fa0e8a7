"""A LangChain language model (text in, text out) whose prompts are remembered.

Knows LangChain's plain interface. Each prompt is one new user turn of the Session; there is no history to send.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM, LanguageModelInput
from langchain_core.outputs import GenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig

from agent_memory.types import Message
from langchain_agent_memory.local_model import LocalModel, with_session

if TYPE_CHECKING:
    from agent_memory.history import Request


class AgentMemoryLLM(LocalModel, LLM):
    """A language model that remembers every prompt of its Session. Options as in :class:`LocalModel`."""

    @property
    def _llm_type(self) -> str:
        return "agent-memory"

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> str:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().invoke(input, config, stop=stop, **with_session(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> str:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return await super().ainvoke(input, config, stop=stop, **with_session(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[str]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().stream(input, config, stop=stop, **with_session(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        """As in LangChain; a ``thread_id`` in the configuration names the Session."""
        return super().astream(input, config, stop=stop, **with_session(config, kwargs))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """One :meth:`invoke` for each, since each configuration may name another Session."""
        return Runnable.batch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """One :meth:`ainvoke` for each, since each configuration may name another Session."""
        return await Runnable.abatch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of ``text`` by the model's own tokenizer."""
        return list(self._open()[0].runtime.tokenizer.encode(text, add_special_tokens=False))

    def _call(self, prompt: str, stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any) -> str:
        return "".join(chunk.text for chunk in self._stream(prompt, stop, run_manager, **kwargs))

    async def _acall(
        self, prompt: str, stop: list[str] | None = None, run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> str:
        return "".join([chunk.text async for chunk in self._astream(prompt, stop, run_manager, **kwargs)])

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        histories, request = self._prepare(self._request(prompt, stop, kwargs))
        for delta in histories.stream(request):
            if delta.kind == "text":
                if run_manager is not None:
                    run_manager.on_llm_new_token(delta.text)
                yield GenerationChunk(text=delta.text)

    async def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> AsyncGenerator[GenerationChunk, None]:
        from agent_memory.history import Delta

        histories, request = await asyncio.to_thread(self._prepare, self._request(prompt, stop, kwargs))
        async for delta in histories.astream(request):
            if isinstance(delta, Delta) and delta.kind == "text":
                if run_manager is not None:
                    await run_manager.on_llm_new_token(delta.text)
                yield GenerationChunk(text=delta.text)

    def _request(self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        from agent_memory.history import Request

        return Request(messages=[Message("user", prompt)], given="new", **self._asked(kwargs, stop))
