"""A tokenizer's chat template as a function from messages to text that answers or refuses.

Knows what a template accepts, found by probing once; it does not know token ids. What a template refuses is put in terms it takes:
a tool's output becomes a user turn headed `[tool NAME]`, a system prompt opens the first user turn, tool schemas join the system prompt.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from agent_memory.chat.reply import split_reasoning
from agent_memory.chat.text import TextEncoder
from agent_memory.errors import ConfigError
from agent_memory.types import Message, ToolCall

Schemas = Sequence[Mapping[str, Any]]

_TOOLS_INTRODUCTION = (
    "You can call tools. To call one, write a line like\n"
    '<tool_call>{"name": "tool_name", "arguments": {"argument": "value"}}</tool_call>\n'
    "and wait for its output. Tools:"
)


class Template:
    """A chat template, and what it accepts.

    Args:
        tokenizer: a transformers tokenizer with a chat template, else `ConfigError`.
        template_kwargs: further variables of the template, such as `enable_thinking`.

    Attributes:
        hash: of the template's source and `template_kwargs`.
        mark: a word that occurs in no text from outside; stands for the content of a neutral message.
        uses_names: the name of a tool shows in what its output is rendered to.
    """

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None) -> None:
        self._tokenizer = tokenizer
        self._kwargs = dict(template_kwargs or {})
        source = tokenizer.chat_template
        if not source:
            raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template; set tokenizer.chat_template to one")
        self.source = source if isinstance(source, str) else json.dumps(source, sort_keys=True)
        self.hash = hashlib.sha256(json.dumps([self.source, self._kwargs], sort_keys=True, default=str).encode()).hexdigest()
        self.encoder = TextEncoder(tokenizer, self.source)
        self.mark = "m" + secrets.token_hex(8)
        self._probe()

    def _probe(self) -> None:
        """Find out what the template accepts: it has to answer, and to show what it was given."""
        mark = self.mark
        user: dict[str, Any] = {"role": "user", "content": "."}
        if not self._shows([{"role": "user", "content": mark}]):
            raise ConfigError(f"the chat template of {self._tokenizer.name_or_path!r} cannot render a user message")
        self._system = self._shows([{"role": "system", "content": mark}, user])
        self._later_system = self._shows([user, {"role": "assistant", "content": "."}, {"role": "system", "content": mark}])
        self._tools = self._shows([user], tools=[schema(mark)])
        self._calls: Literal["object", "text", "inline"] = "inline"
        self._tool_role = self.uses_names = False
        call = ToolCall("a1b2c3d4e", "probe", {"value": mark})
        for style in ("object", "text"):
            asked = [user, {"role": "assistant", "content": "", "tool_calls": [_call(call, style)]}]
            if self._shows(asked) or self._shows(asked, tools=[schema("probe")]):
                self._calls = "object" if style == "object" else "text"
                break
        self._probe_tool_role(call)

    def _probe_tool_role(self, call: ToolCall) -> None:
        asked = [Message("user", "."), Message("assistant", "", tool_calls=(replace(call, arguments={}),))]
        self._tool_role = True
        texts = {name: self.text([*asked, Message("tool", self.mark, name, (), call.id)]) for name in ("probe", "other")}
        self._tool_role = self.mark in (texts["probe"] or "")
        self.uses_names = not self._tool_role or texts["probe"] != texts["other"]

    def _shows(self, messages: list[dict[str, Any]], tools: Schemas = ()) -> bool:
        return self.mark in (self._render(messages, tools) or "")

    def text(self, messages: Sequence[Message], *, system: str | None = None, tools: Schemas = (), prompt: bool = False) -> str | None:
        """The rendered conversation, defused (see `TextEncoder`), or None if the template refuses it.

        Args:
            messages: the conversation; the first one is from the user if the template takes no system prompt.
            system: system prompt.
            tools: tool schemas.
            prompt: add the generation prompt.
        """
        opening = system or ""
        if tools and not self._tools:
            opening = "\n".join(filter(None, (opening, _TOOLS_INTRODUCTION, *(json.dumps(tool, ensure_ascii=False) for tool in tools))))
        messages = [self._accepted(message) for message in messages]
        if opening and not self._system and messages and messages[0].role == "user":
            messages[0] = replace(messages[0], content=f"{opening}\n\n{messages[0].content}")
        dicts = [self._as_dict(message) for message in messages]
        if opening and self._system:
            dicts.insert(0, {"role": "system", "content": self.encoder.defuse(opening)})
        return self._render(dicts, self.encoder.defuse(list(tools)) if self._tools else (), prompt)

    def _accepted(self, message: Message) -> Message:
        """`message` in a role the template takes."""
        if message.role == "tool" and not self._tool_role:
            return Message("user", f"[tool {message.name}]\n{message.content}" if message.name else f"[tool]\n{message.content}")
        if message.role == "system" and not self._later_system:
            return Message("user", f"[system]\n{message.content}")
        if message.tool_calls and self._calls == "inline":
            calls = (json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in message.tool_calls)
            lines = (message.content, *(f"<tool_call>{call}</tool_call>" for call in calls))
            return replace(message, content="\n".join(filter(None, lines)), tool_calls=())
        return message

    def _as_dict(self, message: Message) -> dict[str, Any]:
        content, fields = message.content, dict[str, Any]()
        if message.role == "assistant" and "reasoning_content" in self.source:
            reasoning, content = split_reasoning(content)
            fields |= {"reasoning_content": reasoning} if reasoning else {}
        if message.tool_calls:
            fields["tool_calls"] = [_call(call, self._calls) for call in message.tool_calls]
        if message.role == "tool":
            fields |= {"name": message.name or "tool", "tool_call_id": message.tool_call_id or "000000000"}
        defused: dict[str, Any] = self.encoder.defuse({"content": content, **fields})
        return {"role": message.role, **defused}

    def _render(self, messages: list[dict[str, Any]], tools: Schemas = (), prompt: bool = False) -> str | None:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False, **self._kwargs
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            return None  # the ways in which templates say, or show, that they do not take such messages
        return str(text)


def schema(name: str) -> dict[str, Any]:
    """Schema of a tool without parameters, to probe with."""
    function = {"name": name, "description": "Probe.", "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def _call(call: ToolCall, style: str) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False) if style == "text" else dict(call.arguments)
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}}
