"""Whether messages and heads can be rendered and kept, said in one line before anything is made of them.

Knows the records and what a Turn keeps of them; nothing of templates. A text may hold whatever a string can (see :func:`.text.clean_text`);
names, the system prompt and tools have to be valid Unicode, since a model could not write them back otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_memory.errors import ConfigError
from agent_memory.given import json_problem, text_problem, tool_problem
from agent_memory.types import ROLES, Message


def check_role(role: Any) -> None:
    """Raise ConfigError for a role there is not: templates print roles as they are."""
    if role not in ROLES:
        *others, last = map(repr, ROLES)
        raise ConfigError(f"no message has the role {ascii(role)[:80]}; it is {', '.join(others)} or {last}")


def check_message(message: Message) -> None:
    """Raise ConfigError for a role there is not, or content, a name, an id or a call that cannot be kept."""
    check_role(message.role)
    content: Any = message.content
    if not isinstance(content, str):
        raise ConfigError(f"the content of a {message.role} message must be text, not {type(content).__name__}")
    for problem in _problems(message):
        raise ConfigError(f"a {message.role} message cannot be kept: {problem}")


def _problems(message: Any) -> Iterator[str]:
    for what, word in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if not isinstance(word, str | None):
            yield f"its {what} must be text, not {type(word).__name__}"
    if message.name is not None and (problem := text_problem(message.name)):
        yield f"its name cannot be one: {problem}"
    for call in message.tool_calls:
        if not isinstance(call.name, str) or not isinstance(call.id, str):
            yield "the name and the id of a call must be text"
        elif not isinstance(call.arguments, Mapping):
            yield f"the arguments of its call of {call.name!r} must be an object, not {type(call.arguments).__name__}"
        elif problem := json_problem(call.arguments):
            yield f"the arguments of its call of {call.name!r} are no JSON: {problem}"


def check_head(system: Any, tools: Sequence[Any]) -> None:
    """Raise ConfigError for a system prompt that is no text, or tools that cannot be described to a model."""
    if not isinstance(system, str | None):
        raise ConfigError(f"a system prompt must be text, not {type(system).__name__}")
    if system is not None and (problem := text_problem(system)):
        raise ConfigError(f"the system prompt cannot be used: {problem}")
    check_tools(tools)


def check_tools(tools: Sequence[Any]) -> None:
    """Raise ConfigError for a tool that cannot be described to a model."""
    for number, tool in enumerate(tools, 1):
        if problem := tool_problem(tool):
            raise ConfigError(f"tool {number} of {len(tools)} cannot be described to a model: {problem}")
