"""LlamaIndex's models over Sessions: one that calls tools, and a plain one.

Knows LlamaIndex's tools; conversations and structured outputs are known elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole, ToolCallBlock
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index.llms.agent_memory.messages import answer
from llama_index.llms.agent_memory.options import to_schemas
from llama_index.llms.agent_memory.structured import PredictingLLM

from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool


class AgentMemory(PredictingLLM, FunctionCallingLLM):
    """A local model that never forgets, and calls tools. ``chat`` takes whole conversations, ``complete`` one new user message.

    The model is loaded at the first call. What a reply has to be, a call of a certain tool, say, or arguments that are JSON of a tool's
    schema, it is held to token by token. :class:`.ConversingLLM` has the attributes.
    """

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised configurations."""
        return "AgentMemory"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model."""
        return super().metadata.model_copy(update={"is_function_calling_model": True})

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of ``chat``. A ``tool_choice`` among ``kwargs`` is a tool's name, or as in :class:`CallOptions`."""
        asked = [ChatMessage(role=MessageRole.USER, content=user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
        choice = kwargs.pop("tool_choice", None) or "auto"
        return {
            **kwargs,
            "messages": [*(chat_history or []), *asked],
            "tools": to_schemas(tools),
            "tool_choice": "required" if tool_required and choice == "auto" else choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
        }

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        """``response``, with its first call alone where several are not allowed and nothing could hold the model to that."""
        message = response.message
        calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        if not allow_parallel_tool_calls and len(calls) > 1:
            thoughts = [block for block in message.blocks if block.block_type == "thinking"]
            kept = answer(message.content or "", calls[:1])
            response.message = kept.model_copy(update={"blocks": [*thoughts, *kept.blocks]})
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a response; arguments of a call that is still being written are what can be read of them by now.

        Raises:
            ConfigError: there are none, unless ``error_on_no_tool_call`` is False.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ConfigError("the response calls no tool; use tool_required=True to hold the model to calling one")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=_readable(call.tool_kwargs))
            for call in calls
        ]


class AgentMemoryCustomLLM(PredictingLLM, CustomLLM):
    """The same local model as a plain ``CustomLLM``: text in, text out, no tools. :class:`.ConversingLLM` has the attributes."""

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised configurations."""
        return "AgentMemoryCustomLLM"


def _readable(arguments: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    try:
        found = parse_partial_json(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
