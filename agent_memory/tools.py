"""Plain Python functions as tools: described to a model, called with what it wrote, never able to hang or crash the agent.

Knows functions, JSON schemas and threads; it does not know models or Sessions.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, overload

from agent_memory.errors import ToolError, message_of
from agent_memory.given import parameters_problem, text_problem
from agent_memory.types import ToolCall

MAX_ERROR_CHARS = 2_000
"""Characters of an exception's message that the model sees."""

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, (list, tuple)),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call came to: its output, or one line about what went wrong (``ok`` False)."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call.

    Attributes:
        name: what the model calls it.
        schema: ``{"type": "function", "function": {"name", "description", "parameters"}}``.
        call: the function; it may be a coroutine function.
        timeout: seconds it may take; None leaves that to the agent.

    Raises:
        ToolError: no name, or a schema that is none.
    """

    name: str
    schema: Mapping[str, Any]
    call: Callable[..., Any]
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or text_problem(self.name):
            raise ToolError(f"a tool cannot be called {ascii(self.name)}; give it a name that is text")
        described = isinstance(self.schema, Mapping) and "function" in self.schema
        problem = parameters_problem(self.schema) if described else "it has no 'function'"
        if problem:
            raise ToolError(f"the schema of tool {self.name!r} cannot be used: {problem}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function."""
        return self.call(*args, **kwargs)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, timeout: float | None = None) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, *, name: str | None = None, timeout: float | None = None) -> Any:
    """Decorator that makes a Tool of a function with type hints and a docstring with an ``Args:`` section.

    Args:
        function: the function.
        name: name for the model; the function's own by default.
        timeout: seconds a call may take; the agent's by default.
    """
    if function is None:
        return lambda function: describe(function, name=name, timeout=timeout)
    return describe(function, name=name, timeout=timeout)


def describe(function: Callable[..., Any], *, name: str | None = None, timeout: float | None = None) -> Tool:
    """A Tool of `function`; `ToolError` names the function and what its description lacks."""
    from transformers.utils.chat_template_utils import get_json_schema

    label = name or getattr(function, "__name__", "") or type(function).__name__
    if timeout is not None and timeout <= 0:
        raise ToolError(f"tool {label!r}: a timeout must be more than 0 seconds, not {timeout:g}")
    try:
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        schema = get_json_schema(function)
    except Exception as error:  # transformers raises bare exceptions of several kinds
        raise ToolError(f"tool {label!r} cannot be described to a model: {_one_line(error)}") from error
    if kinds - {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        raise ToolError(f"tool {label!r} cannot be described to a model: it takes positional-only, * or ** parameters")
    schema["function"]["name"] = label
    return Tool(label, schema, function, timeout)


def as_tools(tools: Iterable[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    """Tools by name; `ToolError` if one cannot be described or two have the same name."""
    found: dict[str, Tool] = {}
    for item in tools:
        made = item if isinstance(item, Tool) else describe(item)
        if made.name in found:
            raise ToolError(f"two tools are called {made.name!r}; give one another name with @tool(name=...)")
        found[made.name] = made
    return found


def run(tools: Mapping[str, Tool], call: ToolCall, timeout: float) -> ToolResult:
    """Run one call and wait for it: `start` and its answer."""
    return start(tools, call, timeout)()


def start(tools: Mapping[str, Tool], call: ToolCall, timeout: float) -> Callable[[], ToolResult]:
    """Start `call` in a daemon thread; the function returned waits for its result.

    Whatever goes wrong (no such tool, arguments that do not fit, an exception, more than `timeout` seconds) is a ToolResult for
    the model to read. A thread cannot be stopped: one that timed out goes on by itself, and its output is dropped.
    """
    found = tools.get(call.name)
    if found is None:
        return _failed(f"there is no tool {call.name!r}; the tools are: {', '.join(sorted(tools)) or 'none'}")
    if problem := check_arguments(found, call.arguments):
        return _failed(problem)
    limit = found.timeout or timeout
    results: queue.SimpleQueue[ToolResult] = queue.SimpleQueue()
    context = contextvars.copy_context()
    work = threading.Thread(
        target=lambda: results.put(context.run(_outcome, found.call, call.arguments)), name=f"tool {call.name}", daemon=True
    )
    deadline = time.monotonic() + limit
    work.start()

    def wait() -> ToolResult:
        try:
            return results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return ToolResult(False, f"error: timed out after {limit:g} s")

    return wait


def check_arguments(described: Tool, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with `arguments`, in words the model can act on; None if they fit the schema."""
    parameters = described.schema["function"].get("parameters") or {}
    properties = parameters.get("properties", {})
    takes = f"{described.name} takes: {', '.join(properties) or 'no arguments'}"
    for name in arguments:
        if name not in properties:
            return f"unknown argument {name!r}; {takes}"
    for name in parameters.get("required", ()):
        if name not in arguments:
            return f"missing argument {name!r}; {takes}"
    for name, value in arguments.items():
        if not _fits(value, properties[name]):
            return f"argument {name!r} must be {_wanted(properties[name])}, not {_shown(value)}"
    return None


def _fits(value: Any, schema: Mapping[str, Any] | bool) -> bool:
    if isinstance(schema, bool):
        return schema
    if value is None and schema.get("nullable"):
        return True
    if "anyOf" in schema:
        return any(_fits(value, choice) for choice in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(_TYPES.get(kind, lambda _: True)(value) for kind in kinds):
        return False
    items = schema.get("items")
    return not (isinstance(items, (Mapping, bool)) and isinstance(value, (list, tuple))) or all(_fits(item, items) for item in value)


def _wanted(schema: Mapping[str, Any] | bool) -> str:
    if isinstance(schema, bool):
        return "any value" if schema else "left out"
    if "enum" in schema:
        return f"one of {_shown(schema['enum'])}"
    if "anyOf" in schema:
        return " or ".join(_wanted(choice) for choice in schema["anyOf"])
    kinds = schema.get("type", "any value")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    return f"{kind} of {_wanted(schema['items'])}" if isinstance(schema.get("items"), Mapping) else kind


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:100] + "..."


def _outcome(function: Callable[..., Any], arguments: Mapping[str, Any]) -> ToolResult:
    try:
        value = function(**arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_settle(value))
        return ToolResult(True, _as_text(value))
    except BaseException as error:  # sys.exit() in a tool must not look like a tool that never returns
        return ToolResult(False, f"error: {_one_line(error)}")


async def _settle(value: Awaitable[Any]) -> Any:
    return await value


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def _one_line(error: BaseException) -> str:
    """``ValueError: what it says``, on one line."""
    message = " ".join(message_of(error).split())
    return f"{type(error).__name__}: {message}"[:MAX_ERROR_CHARS] if message else type(error).__name__


def _failed(problem: str) -> Callable[[], ToolResult]:
    return lambda: ToolResult(False, f"error: {problem}")
