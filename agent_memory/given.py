"""What is given from outside, looked at before anything is made of it: plain JSON, JSON schemas, descriptions of tools, URLs.

Knows values, and what the rooms above read of them; standard library only. Each function says in words what is wrong, or None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 100
"""Levels of lists and objects inside each other. What walks them calls itself for each, and Python bounds that at about a thousand."""

MAPS = ("properties", "$defs", "definitions", "patternProperties")
"""Keywords of a JSON schema that hold schemas by name."""

LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords that hold several schemas."""

ONES = ("items", "additionalProperties")
"""Keywords that hold one schema; older schemas have a list of them under ``items``."""


_CREDENTIALS = re.compile(r"(?<=://)[^/\s]\S*@")  # up to the last @, since a password may hold one; what begins with / has no host


def without_credentials(value: Any) -> Any:
    """``value`` (a text, or lists and mappings of them) with user and password taken out of every URL, to be shown."""
    if isinstance(value, str):
        return _CREDENTIALS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_credentials(part) for key, part in value.items()}
    return [without_credentials(part) for part in value] if isinstance(value, (list, tuple)) else value


def text_problem(text: str) -> str | None:
    """Why a text cannot be encoded, if it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"it is not valid Unicode: character {error.start + 1} is the lone surrogate {ascii(text[error.start])}; replace it"
    return None


def json_problem(value: Any, *, unicode: bool = False) -> str | None:
    """Why ``value`` is no plain JSON, if it is none: another type, no finite number, more than ``MAX_DEPTH`` levels, itself inside itself.

    Args:
        value: what was given.
        unicode: texts have to be valid Unicode too.
    """
    return _json_problem(value, unicode, [])


def _json_problem(value: Any, unicode: bool, around: list[int]) -> str | None:
    if value is None or isinstance(value, (bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is no number of JSON"
    if isinstance(value, str):
        problem = text_problem(value) if unicode else None
        return problem and f"in a text of it, {problem}"
    if not isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__} is no JSON"
    if id(value) in around:
        return "it holds itself"
    if len(around) == MAX_DEPTH:
        return f"it is nested deeper than {MAX_DEPTH} levels"
    inside = [part for pair in value.items() for part in pair] if isinstance(value, Mapping) else value
    found = (_json_problem(part, unicode, [*around, id(value)]) for part in inside)
    return next((problem for problem in found if problem), None)


def schema_problem(schema: Any) -> str | None:
    """Why ``schema`` is no JSON schema, if it is none. Keywords that nothing here reads, and what references lead to, are not looked at."""
    return json_problem(schema, unicode=True) or _schema_problem(schema)


def _schema_problem(schema: Any) -> str | None:
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, Mapping):
        return f"{_shown(schema)} stands where a schema has to be (an object, true or false)"
    for keyword, (fits, wanted) in _KEYWORDS.items():
        if keyword in schema and not fits(schema[keyword]):
            return f"{keyword!r} must be {wanted}, not {_shown(schema[keyword])}"
    return next((problem for part in parts(schema) if (problem := _schema_problem(part))), None)


def parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that stand right inside ``schema``, which may be malformed."""
    for key in ONES:
        if key in schema:
            yield from schema[key] if isinstance(schema[key], (list, tuple)) else (schema[key],)
    yield from (part for key in MAPS if isinstance(schema.get(key), Mapping) for part in schema[key].values())
    yield from (part for key in LISTS if isinstance(schema.get(key), (list, tuple)) for part in schema[key])


def parameters_problem(tool: Any) -> str | None:
    """Why the parameters in ``{"function": {"parameters": ..}}`` are no schema of an object, if they are none; there may be none at all."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        return f"it must be {{'type': 'function', 'function': {{'name': .., 'parameters': ..}}}}, not {_shown(tool)}"
    if problem := json_problem(function, unicode=True):
        return problem
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        return f"'parameters' must be the JSON schema of an object, not {_shown(parameters)}"
    return None if parameters is None else _schema_problem(parameters)


def tool_problem(tool: Any) -> str | None:
    """Why ``tool`` cannot be described to a model, if it cannot."""
    if problem := parameters_problem(tool):
        return problem
    function = tool.get("function", tool)
    if not isinstance(function.get("name"), str) or not function["name"]:
        return "its name is missing"
    if not isinstance(function.get("description"), str | None):
        return f"its description must be text, not {_shown(function['description'])}"
    return None


def _shown(value: Any) -> str:
    """A value in few words; a container by its kind, since it may be of any size, or hold itself."""
    return type(value).__name__ if isinstance(value, (Mapping, list, tuple, set, frozenset)) else ascii(value)[:80]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


_Rule = tuple[Callable[[Any], bool], str]
_KEYWORDS: Mapping[str, _Rule] = {
    "type": (lambda value: _is_text(value) or _are_texts(value), "a word or a list of words"),
    "enum": (_is_list, "a list"),
    "required": (_are_texts, "a list of words"),
    "$ref": (_is_text, "a text"),
    **dict.fromkeys(MAPS, (_is_map, "an object")),
    **dict.fromkeys(LISTS, (_is_list, "a list")),
}
