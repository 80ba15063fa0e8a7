"""What a reply has to be, as a grammar: text, thoughts, calls of given tools, JSON of a schema.

Knows how calls are written and JSON schemas; it writes Lark in the dialect of llguidance, and knows nothing of tokens' logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent_memory.chat.call_form import CallForm

Pieces = Callable[[str], list[int | str]]
"""Cuts text into control tokens (their ids) and plain text."""

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How ``json.dumps``, and so a template's ``tojson``, writes; models have seen no other."""

_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties")


class ReplyGrammar:
    """Grammars of one tokenizer's replies.

    Args:
        pieces: cuts text at control tokens.
        thoughts: the model may think first, between ``<think>`` and ``</think>``.
        thinking: it does: the prompt has opened its thoughts.
    """

    def __init__(self, pieces: Pieces, *, thoughts: bool, thinking: bool) -> None:
        self._pieces, self._thoughts, self._thinking = pieces, thoughts, thinking

    def json(self, schema: Mapping[str, Any]) -> str:
        """A reply that is one JSON value of ``schema``."""
        return self._lines("body", [f"body: %json {_json(closed(schema))}"])

    def calls(
        self,
        form: CallForm,
        tools: Mapping[str, Mapping[str, Any]],
        *,
        required: bool,
        parallel: bool,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """A reply that calls tools, or (unless ``required``) is text, or text and then calls; with a ``schema``, calls or its JSON.

        Args:
            form: how calls are written.
            tools: JSON schemas of the arguments, by the tools' names.
            required: at least one call, and no text before it.
            parallel: several calls, one after another.
            schema: JSON schema of what is said instead of text.
        """
        more = f"({self._literal(form.between)} call)*" if parallel else ""
        lines = [f"calls: {self._literal(form.opening)} call {more} {self._literal(form.closing)}"]
        lines.append("call: " + " | ".join(f"call{number}" for number in range(len(tools))))
        for number, (name, arguments) in enumerate(tools.items()):
            lines += [
                f"call{number}: {self._literal(name + form.middle)} arguments{number}",
                f"arguments{number}: %json {_json(closed(arguments))}",
            ]
        if required:
            return self._lines("calls", lines)
        if schema is not None:
            return self._lines("answer", ["answer: calls | body", f"body: %json {_json(closed(schema))}", *lines])
        mark = _mark(form.opening)
        lines[0] = f"calls: lead {self._literal(form.opening.removeprefix(mark))} call {more} {self._literal(form.closing)}"
        return self._lines("answer", ["answer: TEXT | calls", f"TEXT: {_without(mark)}", *self._up_to("lead", mark), *lines])

    def text(self, form: CallForm) -> str:
        """A reply that is text and calls no tool."""
        return self._lines("TEXT", [f"TEXT: {_without(_mark(form.opening))}"])

    def _lines(self, body: str, lines: Sequence[str]) -> str:
        if not self._thoughts:
            return "\n".join([f"start: {body}", *lines, ""])
        thought = "thought BREAK" if self._thinking else f"({self._literal('<think>')} thought BREAK)?"
        return "\n".join([f"start: {thought} {body}", *self._up_to("thought", "</think>"), "BREAK: /\\n*/", *lines, ""])

    def _up_to(self, rule: str, mark: str) -> list[str]:
        """A rule: any text up to and with ``mark``. One that is no control token has to be part of the expression, and lazily: a text
        is read as far as it goes, and would swallow all of the mark but its last character."""
        if all(isinstance(piece, int) for piece in self._pieces(mark)):
            return [f"{rule}: {rule.upper()}_TEXT? {self._literal(mark)}", f"{rule.upper()}_TEXT: /(.|\\n)+/"]
        return [f"{rule}[lazy]: /(.|\\n)*{_escaped(mark)}/"]

    def _literal(self, text: str) -> str:
        """``text`` as the grammar writes it; a control token is its id, which no text from a model can be taken for."""
        return " ".join(f"<[{piece}]>" if isinstance(piece, int) else _quoted(piece) for piece in self._pieces(text))


def closed(schema: Any) -> Any:
    """``schema`` with objects that list their properties closed to others unless they say so, and OpenAPI's ``nullable`` as JSON Schema."""
    if not isinstance(schema, Mapping):
        return schema
    made = {key: closed(value) if key in _ONES else value for key, value in schema.items()}
    made |= {key: {name: closed(value) for name, value in schema[key].items()} for key in _MAPS if isinstance(schema.get(key), Mapping)}
    made |= {key: [closed(value) for value in schema[key]] for key in _LISTS if isinstance(schema.get(key), (list, tuple))}
    if "properties" in made:
        made.setdefault("additionalProperties", False)
    if made.pop("nullable", False):
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _mark(opening: str) -> str:
    """What a text cannot hold because it begins a call: the opening's tag, or all of it."""
    tag = re.match(r"<[^>]+>|\[[A-Z_]+\]", opening)
    return tag[0] if tag else opening


def _without(mark: str) -> str:
    """A terminal: any text that does not hold ``mark``."""
    return f"/(.|\\n)*/ & ~/(.|\\n)*{_escaped(mark)}(.|\\n)*/"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", "\\/")
