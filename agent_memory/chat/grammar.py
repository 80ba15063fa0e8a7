"""What a reply has to be, as a grammar: text, thoughts, calls of given tools, JSON of a schema.

Knows how calls are written and what is enforced of a JSON schema; it writes Lark in the dialect of llguidance, and knows nothing of logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent_memory.chat.call_form import COMMON, CallForm
from agent_memory.chat.text import clean_text
from agent_memory.given import LISTS, MAPS, ONES, parts

Pieces = Callable[[str], list[int | str]]
"""Cuts text into control tokens (their ids) and plain text."""

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How ``json.dumps``, and so a template's ``tojson``, writes; models have seen no other."""

FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""Formats of strings that can be enforced. JSON Schema lets a validator pass over any other."""

_ANYTHING = "(.|\\n)"


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
        return self._lines("body", [f"body: {_value(schema)}"])

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
            lines += [f"call{number}: {self._literal(_json(name)[1:-1] + form.middle)} arguments{number}"]
            lines += [f"arguments{number}: {_value(arguments)}"]
        if required:
            return self._lines("calls", lines)
        if schema is not None:
            return self._lines("answer", ["answer: calls | body", f"body: {_value(schema)}", *lines])
        mark, *others = self._marks(form)
        lines[0] = f"calls: lead {self._literal(form.opening.removeprefix(mark))} call {more} {self._literal(form.closing)}"
        lead = self._up_to("lead", mark, others)
        return self._lines("answer", ["answer: TEXT | calls", f"TEXT: {_text('*', mark, *others)}", *lead, *lines])

    def text(self, form: CallForm) -> str:
        """A reply that is text and calls no tool."""
        return self._lines("TEXT", [f"TEXT: {_text('*', *self._marks(form))}"])

    def _lines(self, body: str, lines: Sequence[str]) -> str:
        if not self._thoughts:
            return "\n".join([f"start: {body}", *lines, ""])
        thought = "thought BREAK" if self._thinking else f"({self._literal('<think>')} thought BREAK)?"
        return "\n".join([f"start: {thought} {body}", *self._up_to("thought", "</think>"), "BREAK: /\\n*/", *lines, ""])

    def _up_to(self, rule: str, mark: str, others: Sequence[str] = ()) -> list[str]:
        """A rule: any text up to and with ``mark``, without the others. A mark that is no control token has to be part of the expression,
        and lazily: a text is read as far as it goes, and would swallow all of the mark but its last character."""
        name = f"{rule.upper()}_TEXT"
        if all(isinstance(piece, int) for piece in self._pieces(mark)):
            return [f"{rule}: {name}? {self._literal(mark)}", f"{name}: {_text('+', mark, *others)}"]
        return [f"{rule}[lazy]: {name}", f"{name}: /{_ANYTHING}*{_escaped(mark)}/{''.join(map(_without, others))}"]

    def _marks(self, form: CallForm) -> list[str]:
        """What a text cannot hold because it begins a call, in this form or the one that is always read, or a thought."""
        thought = ["<think>"] if self._thoughts else []
        return list(dict.fromkeys([_mark(form.opening), _mark(COMMON.opening), *thought]))

    def _literal(self, text: str) -> str:
        """``text`` as the grammar writes it; a control token is its id, which no text from a model can be taken for."""
        return " ".join(f"<[{piece}]>" if isinstance(piece, int) else _json(piece) for piece in self._pieces(text))


def closed(schema: Any) -> Any:
    """``schema`` with objects that list their properties closed to others, unless they say so or are put together from several schemas.

    OpenAPI's ``nullable`` becomes JSON Schema, and what rules nothing out is left out: a format that is not in ``FORMATS``.
    """
    return _adapted(schema, close=not _put_together(schema))


def _adapted(schema: Any, *, close: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    made |= {key: _adapted(made[key], close=close) for key in ONES if key in made}
    made |= {key: {name: _adapted(part, close=close) for name, part in made[key].items()} for key in MAPS if _is_map(made, key)}
    made |= {key: [_adapted(part, close=close) for part in made[key]] for key in LISTS if _is_list(made, key)}
    if close and "properties" in made:
        made.setdefault("additionalProperties", False)
    if made.get("format") not in FORMATS:
        made.pop("format", None)
    if made.get("uniqueItems") is False:
        del made["uniqueItems"]
    if made.pop("nullable", False):
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _put_together(schema: Any) -> bool:
    """Whether the properties of one object stand in several schemas, each of which, if it were closed, would rule out all others'."""
    if not isinstance(schema, Mapping):
        return False
    beside = "properties" in schema and any(key in schema for key in ("$ref", "anyOf", "oneOf", "allOf"))
    return beside or len(schema.get("allOf", ())) > 1 or any(map(_put_together, parts(schema)))


def _is_map(schema: Mapping[str, Any], key: str) -> bool:
    return isinstance(schema.get(key), Mapping)


def _is_list(schema: Mapping[str, Any], key: str) -> bool:
    return isinstance(schema.get(key), (list, tuple))


def _value(schema: Mapping[str, Any]) -> str:
    return f"%json {_json({**closed(schema), 'x-guidance': JSON_STYLE})}"


def _json(value: Any) -> str:
    return clean_text(json.dumps(value, ensure_ascii=False))


def _mark(opening: str) -> str:
    """What begins a call: the opening's tag, or all of it."""
    tag = re.match(r"<[^>]+>|\[[A-Z_]+\]", opening)
    return tag[0] if tag else opening


def _text(times: str, *marks: str) -> str:
    """A terminal: any text that holds none of ``marks``."""
    return f"/{_ANYTHING}{times}/{''.join(map(_without, marks))}"


def _without(mark: str) -> str:
    return f" & ~/{_ANYTHING}*{_escaped(mark)}{_ANYTHING}*/"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", "\\/")
