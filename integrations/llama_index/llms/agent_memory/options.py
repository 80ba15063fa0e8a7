"""What may be set of a reply: for a model, and for one call of it.

Knows LlamaIndex's and OpenAI's ways to say so, and ours; nothing of messages or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from llama_index.core.tools import BaseTool

from agent_memory.errors import ConfigError
from agent_memory.types import Message, ReplyFormat, Sampling

if TYPE_CHECKING:
    from agent_memory.history import Given, Request

_ALIASES = {"num_output": "max_tokens", "max_new_tokens": "max_tokens"}
_CHOICES = {"any": "required"}


class ReplySettings(BaseModel):
    """What a model is set to, and a call may set otherwise."""

    session_id: str | None = Field(default=None, description="Session to talk in; None is one that is deleted after the call.")
    namespace: str | None = Field(default=None, description="Tenant of the Sessions.")
    max_tokens: int = Field(default=256, gt=0, description="Longest reply, in tokens.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="1 is off.")
    top_k: int = Field(default=0, ge=0, description="0 is off.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: list[str] = Field(default_factory=list, description="Strings that end the reply.")
    on_trim: Literal["keep", "fork", "error"] = Field(
        default="keep", description="What becomes of a history whose beginning is missing: it goes on, is a branch, or an error."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop


class CallOptions(ReplySettings):
    """What one call sets; made by :meth:`read`.

    Attributes:
        tools: tool schemas, part of the conversation's head.
        tool_choice: as in :class:`agent_memory.types.ReplyFormat`; None is ``auto`` in a chat, and ``none`` in a completion.
        parallel_tool_calls: several calls in one reply.
        strict: a tool whose schema cannot be enforced is an error.
        response_format: a Pydantic class, a JSON schema, or OpenAI's dict; the reply is JSON of it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    tools: list[Any] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    strict: bool = False
    response_format: Any = None

    @classmethod
    def read(cls, settings: ReplySettings, given: Mapping[str, Any]) -> CallOptions:
        """What ``given`` sets, and for the rest what the model is set to.

        Args:
            settings: of the model.
            given: keyword arguments of a call; None counts as not given, but for ``session_id``.

        Raises:
            ConfigError: an option there is not, or a value it cannot have.
        """
        base = {name: getattr(settings, name) for name in ReplySettings.model_fields}
        said = {_ALIASES.get(name, name): value for name, value in given.items() if value is not None or name == "session_id"}
        try:
            return cls.model_validate({**base, **said})
        except ValidationError as problem:
            raise ConfigError("; ".join(_one_line(error) for error in problem.errors())) from None

    def request(self, messages: Sequence[Message], given: Given, namespace: str) -> Request:
        """What is asked of the Histories. Imports torch.

        Args:
            messages: what was sent.
            given: whether that is the ``whole`` conversation or what is ``new``.
            namespace: tenant, unless the options name one.

        Raises:
            ConfigError: a ``tool_choice`` or ``response_format`` that cannot be read.
            InvalidName: a session or namespace that cannot be; an empty one cannot.
        """
        from agent_memory.history import Request

        return Request(
            session=self.session_id,
            messages=messages,
            given=given,
            tools=to_schemas(self.tools),
            max_new_tokens=self.max_tokens,
            sampling=Sampling(self.temperature, self.top_p, self.top_k, seed=self.seed),
            stop=self.stop,
            namespace=namespace if self.namespace is None else self.namespace,
            format=self._format("auto" if given == "whole" else "none"),
            on_trim=self.on_trim,
        )

    def _format(self, choice: str) -> ReplyFormat:
        """What the reply has to be; a completion is text, so in a Session with tools it is held to that."""
        schema = _to_schema(self.response_format)
        chosen = choice if self.tool_choice is None else _to_choice(self.tool_choice)
        return ReplyFormat(tool_choice=chosen, parallel=self.parallel_tool_calls, schema=schema, strict=self.strict)


def to_schemas(tools: Sequence[BaseTool | Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Tool schemas in OpenAI's form, of tools or such schemas.

    Raises:
        ConfigError: what is neither.
    """
    return [_tool_schema(tool) for tool in tools]


def _tool_schema(tool: object) -> Mapping[str, Any]:
    if isinstance(tool, BaseTool):
        return tool.metadata.to_openai_tool(skip_length_check=True)
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping) and tool["function"].get("name"):
        return tool
    raise ConfigError(f"{tool!r} cannot be a tool; use a LlamaIndex tool, or {{'type': 'function', 'function': {{'name': ..}}}}")


def _to_choice(given: str | Mapping[str, Any]) -> str:
    chosen = given if isinstance(given, str) else (given.get("function") or given).get("name")
    if not isinstance(chosen, str) or not chosen:
        raise ConfigError(f"tool_choice={given!r} cannot be read; use 'auto', 'none', 'required', a tool's name, or OpenAI's dict")
    return _CHOICES.get(chosen, chosen)


def _to_schema(given: Any) -> Mapping[str, Any] | None:
    if isinstance(given, type) and issubclass(given, BaseModel):
        return given.model_json_schema()
    if given is None or (isinstance(given, Mapping) and given.get("type") == "text"):
        return None
    if isinstance(given, Mapping) and given.get("type") == "json_object":
        return {"type": "object"}
    found = given
    if isinstance(given, Mapping) and given.get("type") == "json_schema":
        inner = given.get("json_schema")
        found = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(found, Mapping):
        raise ConfigError(f"response_format={given!r} cannot be read; use a Pydantic class, a JSON schema, or OpenAI's dict")
    return found


def _one_line(error: Any) -> str:
    name = error["loc"][0]
    if error["type"] == "extra_forbidden":
        known = ", ".join([*CallOptions.model_fields, *_ALIASES])
        return f"{name}={error['input']!r}: a call has no such option; it has {known}"
    return f"{name}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
