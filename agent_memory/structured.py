"""From what a reply has to be to what holds it to that.

Knows how the chat format writes calls, and the grammars it can be held to; nothing of Sessions or of how tokens are chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .chat import ChatFormat
from .chat.call_form import CallForm
from .errors import ConfigError
from .model.constrain import Grammars
from .types import ReplyFormat

if TYPE_CHECKING:
    from transformers import LogitsProcessor

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

Schemas = Mapping[str, Mapping[str, Any]]


class StructuredReplies:
    """Makes processors for replies of one model.

    Args:
        chat: how calls and thoughts are written.
        grammars: of the model's tokenizer.
    """

    def __init__(self, chat: ChatFormat, grammars: Grammars) -> None:
        self._chat, self._grammars = chat, grammars

    def processor(self, wanted: ReplyFormat, tools: Sequence[Mapping[str, Any]], max_new_tokens: int) -> LogitsProcessor | None:
        """What holds one reply to ``wanted``; None if nothing has to.

        Args:
            wanted: what the reply has to be.
            tools: schemas of the tools in the Session's head.
            max_new_tokens: tokens the reply may have.

        Raises:
            ConfigError: there is no such tool, a schema cannot be enforced, ``max_new_tokens`` are too few, or llguidance is missing.
        """
        grammar = self._needed(wanted, tools)
        return None if grammar is None else self._grammars.processor(grammar, max_new_tokens)

    def check(self, wanted: ReplyFormat, tools: Sequence[Mapping[str, Any]], max_new_tokens: int) -> None:
        """Raise what :meth:`processor` would."""
        grammar = self._needed(wanted, tools)
        if grammar is not None:
            self._grammars.processor(grammar, max_new_tokens)

    def _needed(self, wanted: ReplyFormat, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The grammar of ``wanted``, if it needs one, or can have one and need not."""
        forced = wanted.schema is not None or wanted.tool_choice not in ("auto", "none") or (wanted.strict and bool(tools))
        if not forced and (not tools or self._grammars.missing or self._chat.call_form is None):
            return None
        if self._grammars.missing:
            raise ConfigError(self._grammars.missing)
        return self._grammar(wanted, tools)

    def _grammar(self, wanted: ReplyFormat, tools: Sequence[Mapping[str, Any]]) -> str:
        if wanted.schema is not None:
            self._check(wanted.schema)
            if wanted.tool_choice == "none" or not tools:
                return self._chat.grammar.json(wanted.schema)
        if wanted.tool_choice == "none":
            return self._chat.grammar.text(self._form)
        one = wanted.tool_choice not in ("auto", "required")
        named = _named(wanted.tool_choice, tools)
        schemas = {name: self._enforced(name, schema, wanted) for name, schema in named.items()}
        required, parallel = wanted.tool_choice != "auto", wanted.parallel and not one
        return self._chat.grammar.calls(self._form, schemas, required=required, parallel=parallel, schema=wanted.schema)

    def _check(self, schema: Mapping[str, Any]) -> None:
        if problem := self._grammars.problem(self._chat.grammar.json(schema)):
            raise ConfigError(f"the schema of the reply cannot be enforced: {problem}")

    def _enforced(self, name: str, schema: Mapping[str, Any], wanted: ReplyFormat) -> Mapping[str, Any]:
        """``schema``, or any object where it cannot be enforced and need not be."""
        problem = self._grammars.problem(self._chat.grammar.json(schema))
        if problem is None:
            return schema
        said = f"the arguments of tool {name!r} cannot be held to their schema: {problem}"
        if wanted.tool_choice != "auto" or wanted.strict:
            raise ConfigError(said)
        warnings.warn(f"{said}; they are any JSON object", stacklevel=2)
        return ANY_OBJECT

    @property
    def _form(self) -> CallForm:
        if self._chat.call_form is None:
            raise ConfigError("the chat template writes tool calls in a form that cannot be read back, so replies cannot be held to it")
        return self._chat.call_form


def _named(choice: str, tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """Schemas of the arguments of the tools a reply may call, by name."""
    functions = [tool.get("function", tool) for tool in tools]
    named = {function["name"]: function.get("parameters") or ANY_OBJECT for function in functions}
    if not named:
        raise ConfigError(f"tool_choice={choice!r} needs tools, and this session has none")
    if choice in ("auto", "required"):
        return named
    if choice not in named:
        raise ConfigError(f"tool_choice={choice!r} is not a tool of this session; its tools are: {', '.join(named)}")
    return {choice: named[choice]}
