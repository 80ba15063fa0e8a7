"""LangChain's and OpenAI's ways to say what a reply has to be, and ours. Knows both; nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from agent_memory.chat.checks import check_tools
from agent_memory.errors import ConfigError, first_line
from agent_memory.given import schema_problem
from agent_memory.types import ReplyFormat

ANY_JSON: Mapping[str, Any] = {"type": "object"}
"""What OpenAI's ``json_object`` asks for."""

_CHOICES = {"any": "required", "required": "required", "auto": "auto", "none": "none"}


def tool_schemas(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, of functions, LangChain tools, pydantic models or schemas.

    Raises:
        ConfigError: what is none of these, or cannot be described to a model.
    """
    schemas = [_converted(convert_to_openai_tool, tool, "a tool") for tool in tools]
    check_tools(schemas)
    return schemas


def json_schema(given: Any) -> dict[str, Any]:
    """JSON schema of a reply, of a pydantic model, TypedDict or JSON schema.

    Raises:
        ConfigError: what is none of these.
    """
    schema = _converted(convert_to_json_schema, given, "a schema of replies")
    if problem := schema_problem(schema):
        raise ConfigError(f"the schema of the reply cannot be used: {problem}")
    return schema


def _converted(convert: Callable[[Any], dict[str, Any]], given: Any, what: str) -> dict[str, Any]:
    if isinstance(given, Mapping) and (problem := schema_problem(given)):
        raise ConfigError(f"{what} cannot be used: {problem}")
    try:
        return convert(given)
    except Exception as error:  # whatever a function, a class or a dict makes of LangChain's converters
        raise ConfigError(f"{what} cannot be made of a {type(given).__name__}: {type(error).__name__}: {first_line(error)}") from error


def tool_choice(given: Any, names: Sequence[str]) -> str:
    """``auto``, ``none``, ``required`` or a tool's name, of every form in which LangChain's users say so.

    Raises:
        ConfigError: no such form, or no such tool.
    """
    if given is None or given is False:
        return "auto"
    if given is True:
        return "required"
    name = _chosen(given)
    if name in _CHOICES:
        return _CHOICES[name]
    if name not in names:
        raise ConfigError(f"tool_choice={given!r} names no tool that is bound; bound are: {', '.join(names) or 'none'}")
    return name


def _chosen(given: Any) -> str:
    if isinstance(given, Mapping):
        function = given.get("function")
        given = function.get("name") if isinstance(function, Mapping) else given.get("name", given.get("type"))
    if not isinstance(given, str):
        raise ConfigError(f"tool_choice={given!r} cannot be read; use 'auto', 'none', 'any', a tool's name, or OpenAI's dict")
    return given


def reply_format(kwargs: Mapping[str, Any]) -> ReplyFormat:
    """What the options of a call say a reply has to be.

    Raises:
        ConfigError: a ``tool_choice`` or ``response_format`` that cannot be read, or a tool that cannot be described.
    """
    check_tools(kwargs.get("tools") or ())
    names = [tool["function"]["name"] for tool in kwargs.get("tools") or ()]
    schema = _schema(kwargs.get("response_format"))
    return ReplyFormat(
        tool_choice=tool_choice(kwargs.get("tool_choice"), names),
        parallel=kwargs.get("parallel_tool_calls") is not False,
        schema=schema,
        strict=bool(kwargs.get("strict")),
    )


def _schema(given: Any) -> Mapping[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        if given.get("type") == "json_object":
            return ANY_JSON
        inner = given.get("json_schema")
        if given.get("type") == "json_schema" and isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            schema: Mapping[str, Any] = inner["schema"]
            return schema
        if given.get("type") == "text":
            return None
    raise ConfigError(f"response_format={given!r} cannot be read; use {{'type': 'json_schema', 'json_schema': {{'schema': ..}}}}")


def response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's ``response_format`` of a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema)}}


def call_parser(schema: Any, name: str) -> Runnable[AIMessage, Any]:
    """Reads the call of the one tool that is a schema."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def text_parser(schema: Any) -> Runnable[AIMessage, Any]:
    """Reads a reply that is JSON of a schema."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def parsed(model: Runnable[Any, AIMessage], parser: Runnable[AIMessage, Any], *, include_raw: bool) -> Runnable[Any, Any]:
    """``model`` and then ``parser``; with ``include_raw`` a dict of ``raw``, ``parsed`` and ``parsing_error``."""
    if not include_raw:
        return model | parser
    tried = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | tried.with_fallbacks([failed], exception_key="parsing_error")
