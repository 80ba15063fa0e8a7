"""Structured outputs of LlamaIndex, held to their schema token by token: as a tool's arguments, or as a reply that is JSON.

Knows LlamaIndex's programs; what holds a reply is known elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.program.function_program import FunctionCallingProgram, get_function_tool
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.agent_memory.conversing import ConversingLLM
from llama_index.llms.agent_memory.options import to_schemas

Keywords = dict[str, Any] | None


class PredictingLLM(ConversingLLM):
    """A model whose structured outputs are valid. LlamaIndex asks for a call of a tool, or for JSON in text; the first only of models
    that call tools, and not of streamed ones as if it had to be."""

    def structured_predict(self, output_cls: type[Any], prompt: Any, llm_kwargs: Keywords = None, **prompt_args: Any) -> Any:
        """An object of ``output_cls``."""
        return super().structured_predict(output_cls, prompt, self._held(output_cls, llm_kwargs), **prompt_args)

    async def astructured_predict(self, output_cls: type[Any], prompt: Any, llm_kwargs: Keywords = None, **prompt_args: Any) -> Any:
        """:meth:`structured_predict` without blocking the event loop."""
        return await super().astructured_predict(output_cls, prompt, self._held(output_cls, llm_kwargs), **prompt_args)

    def _structured_stream_call(
        self, output_cls: type[Any], prompt: Any, llm_kwargs: Keywords = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        if self._by_calls:
            return self._program(output_cls, prompt).stream_call(llm_kwargs=llm_kwargs, **prompt_args)
        return super()._structured_stream_call(output_cls, prompt, self._held(output_cls, llm_kwargs), **prompt_args)

    async def _structured_astream_call(
        self, output_cls: type[Any], prompt: Any, llm_kwargs: Keywords = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        if self._by_calls:
            return await self._program(output_cls, prompt).astream_call(llm_kwargs=llm_kwargs, **prompt_args)
        return await super()._structured_astream_call(output_cls, prompt, self._held(output_cls, llm_kwargs), **prompt_args)

    @property
    def _by_calls(self) -> bool:
        named = self.pydantic_program_mode
        return self.metadata.is_function_calling_model and named in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)

    def _held(self, output_cls: type[Any], llm_kwargs: Keywords) -> dict[str, Any]:
        """Arguments of the call: a program that reads text gets text that it can read."""
        return {**({} if self._by_calls else {"response_format": output_cls}), **(llm_kwargs or {})}

    def _program(self, output_cls: type[Any], prompt: Any) -> FunctionCallingProgram[Any]:
        name = to_schemas([get_function_tool(output_cls)])[0]["function"]["name"]
        return FunctionCallingProgram.from_defaults(output_cls, prompt=prompt, llm=self, tool_choice=name)
