"""Turning each message into the token ids it adds, and generated ids back into a message.

Knows one tokenizer's way of writing a conversation; it does not know what a Session holds. A message is rendered after a short neutral
history with the roles of the real one, so its cost does not grow with the conversation, and ids once made are never made again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from os.path import commonprefix
from typing import Any

from agent_memory.chat import hashing
from agent_memory.chat.call_form import COMMON, CallForm, find_call_form
from agent_memory.chat.checks import check_head, check_message
from agent_memory.chat.grammar import ReplyGrammar
from agent_memory.chat.reply import MARKUP, ParsedReply, parse_fields, parse_text, silent_ids
from agent_memory.chat.template import Schemas, Template, schema
from agent_memory.errors import ConfigError, EmptyMessage
from agent_memory.types import Message, ToolCall

MAX_PARALLEL = 16
"""Tool outputs of one step that are kept as neutral history."""


class ChatFormat:
    """One tokenizer's conversation format.

    Args:
        tokenizer: a transformers tokenizer with a chat template, else `ConfigError`.
        template_kwargs: further variables of the template, such as `enable_thinking`.

    Attributes:
        stable: rendering a conversation never changes what was rendered of its beginning (probed once). `append` does not need it.
        end_ids: ids that end a reply.
        thinking: a reply begins inside reasoning that the generation prompt opened.
        template_hash: hash of the template and `template_kwargs`, for `root`.
    """

    def __init__(self, tokenizer: Any, *, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = Template(tokenizer, template_kwargs)
        self._encoder = self._template.encoder
        self.template_hash = self._template.hash
        mark = self._template.mark
        user = self._turn(Message("user", mark), (), None, ())[1]
        self._user_header, _, self._user_footer = user.partition(mark)
        assistant = self._turn(Message("assistant", mark), (), None, ())[1]
        self._assistant_header, _, self._assistant_footer = assistant.rpartition(mark)
        self._closing = tuple(self._encoder.after(mark, self._assistant_footer))
        self.end_ids = self._find_end_ids(set(tokenizer.convert_tokens_to_ids(list(MARKUP))))
        self._silent_ids = silent_ids(tokenizer) | set(self.end_ids)
        self.stable = self._is_stable()
        self._prompt = self._prompt_text((), None, ())[1]
        self.thinking = self._prompt.rstrip().endswith("<think>")

    def head(self, system: str | None = None, tools: Schemas = ()) -> list[int]:
        """Ids of the system prompt and the tool schemas, and of BOS if the template writes one; may be empty.

        Raises:
            ConfigError: a system prompt that is no text, or a tool that cannot be described.
        """
        check_head(system, tools)
        text, is_open = self._head_text(system, tools)
        if not is_open:
            return self._encoder.encode(text)
        ends = (self._encoder.encode(text + letter) for letter in "A1")
        return list(commonprefix([*ends]))  # the head ends inside the first user turn: only tokens that any text leaves as they are

    def append(self, message: Message, *, previous: Sequence[Message] = (), system: str | None = None, tools: Schemas = ()) -> list[int]:
        """Ids that `message` adds to a conversation.

        Args:
            message: what is added; without text `EmptyMessage`, but for an assistant's: a model may have had nothing to say.
            previous: what is there, system prompt not counted. Only the last few messages are looked at; none means that
                `message` follows `head(system, tools)` directly.
            system: system prompt of the conversation.
            tools: tool schemas of the conversation.

        Raises:
            ConfigError: a role there is not, or a name, id or call that cannot be kept.
        """
        check_message(message)
        if not message.content.strip() and message.role != "assistant":
            raise EmptyMessage(f"a {message.role} message without text cannot be appended")
        if previous:
            return self._encoder.after(*self._turn(message, previous, system, tools))
        return self._first(message, system, tools)

    def generation_prompt(self, *, previous: Sequence[Message] = (), system: str | None = None, tools: Schemas = ()) -> list[int]:
        """Ids that ask the model for a reply; some templates let them depend on the conversation."""
        return self._encoder.after(*self._prompt_text(previous, system, tools))

    def closing(self, generated: Sequence[int] = ()) -> list[int]:
        """Ids that follow the ids a model generated for a reply (end of turn, newline), without those `generated` ends with."""
        ids = list(self._closing)
        if generated and generated[-1] in self.end_ids and ids and ids[0] in self.end_ids:
            return ids[1:]
        return ids

    def parse(self, ids: Sequence[int], text: str | None = None, tools: Schemas = ()) -> ParsedReply:
        """Take a reply apart, with the tokenizer's own response parser if it has one.

        Args:
            ids: generated ids, with or without the ending one.
            text: the visible text of the reply (see `silent_ids`) if a stop string may have cut it; what was cut is not read.
            tools: tool schemas, by which arguments are cast.
        """
        common = parse_text(self._written(self._visible(ids), text), thinking=self.thinking)
        if getattr(self._tokenizer, "response_template", None):
            try:
                own = parse_fields(self._tokenizer.parse_response(self._written(ids, text), prefix=self._prompt, tools=list(tools) or None))
            except Exception:  # noqa: BLE001 - a malformed reply must not be lost, and parsers fail in many ways
                return common
            more = (common.tool_calls and not own.tool_calls) or (common.reasoning and not own.reasoning)
            return common if more else own
        return common

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the template writes calls, or the common form; whichever is read again as the calls it was. None if neither is."""
        return next((form for form in (self._own_call_form(), COMMON) if form is not None and self._reads(form)), None)

    @cached_property
    def grammar(self) -> ReplyGrammar:
        """Grammars that replies can be held to."""
        thoughts = self.thinking or "<think>" in self._template.source
        return ReplyGrammar(self._encoder.pieces, thoughts=thoughts, thinking=self.thinking)

    def _own_call_form(self) -> CallForm | None:
        names = (f"{self._template.mark}a", f"{self._template.mark}b")
        calls = tuple(ToolCall(f"a1b2c3d4{number}", name, {"value": number}) for number, name in enumerate(names))
        try:
            text = self._turn(Message("assistant", "", tool_calls=calls), (), None, [schema(name) for name in names])[1]
        except ConfigError:
            return None
        header = next((header for header in (self._assistant_header, self._prompt) if text.startswith(header)), "")
        return find_call_form(text[len(header) :], names, (calls[0].arguments, calls[1].arguments), self._assistant_footer)

    def _reads(self, form: CallForm) -> bool:
        parsed = self.parse(self._encoder.encode(form.write(("one", '{"value": 1}'), ("two", "{}"))))
        return [(call.name, call.arguments) for call in parsed.tool_calls] == [("one", {"value": 1}), ("two", {})] and not parsed.content

    def chain(self, previous: str, message: Message) -> str:
        """Hash of the conversation that `previous` is the hash of, and then `message`; begins with `root`."""
        return hashing.link(previous, message, with_name=self._template.uses_names)

    def _written(self, ids: Sequence[int], text: str | None) -> str:
        """What `ids` say, special tokens with it, up to where their visible `text` was cut."""
        visible = "" if text is None else self._decode(self._visible(ids))
        if text is None or visible == text:
            return self._decode(ids)
        if not visible.startswith(text):
            return text
        sizes = range(len(ids) + 1)
        stop = bisect_left(sizes, len(text), key=lambda size: len(self._decode(self._visible(ids[:size]))))
        over = len(self._decode(self._visible(ids[:stop]))) - len(text)
        kept = self._decode(ids[:stop])
        return kept[: len(kept) - over]

    def _visible(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token not in self._silent_ids]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _head_text(self, system: str | None, tools: Schemas) -> tuple[str, bool]:
        """Text before the first user's words, or before its whole turn; True if it ends inside that turn."""
        texts = [self._template.text([Message("user", letter + self._template.mark)], system=system, tools=tools) for letter in "A1"]
        if None in texts:
            raise ConfigError("the chat template refuses this system prompt or these tools")
        text = commonprefix([text or "" for text in texts])
        is_open = not text.endswith(self._user_header)
        return (text if is_open else text[: len(text) - len(self._user_header)]), is_open

    def _first(self, message: Message, system: str | None, tools: Schemas) -> list[int]:
        head, is_open = self._head_text(system, tools)
        text = self._template.text([message], system=system, tools=tools) if message.role == "user" else None
        if text is None or not text.startswith(head):
            text = head + (self._user_footer if is_open else "") + self._turn(message, (), None, ())[1]
        known, whole = self.head(system, tools) if is_open else [], self._encoder.encode(text) if is_open else []
        if known and whole[: len(known)] == known:
            return whole[len(known) :]
        return self._encoder.after(head, text[len(head) :])

    def _turn(self, message: Message, previous: Sequence[Message], system: str | None, tools: Schemas) -> tuple[str, str]:
        """(text of a neutral history, text that `message` adds to it).

        Tried first so that nothing the history rendered to has changed; then (templates that rewrite history) without the head,
        which some templates move to the last question.
        """
        heads = [(system, tools), (None, ())] if system or tools else [(None, ())]
        for strict in (True, False):
            for history in filter(None, (self._neutral(previous), self._usual(message))):
                for head, schemas in heads if strict else heads[-1:]:
                    before = self._template.text(history, system=head, tools=schemas)
                    after = self._template.text([*history, message], system=head, tools=schemas) if before else None
                    if before and after and (added := self._added(before, after, strict=strict)):
                        return before, added
        raise ConfigError(f"the chat template cannot render a {message.role} message")

    def _prompt_text(self, previous: Sequence[Message], system: str | None, tools: Schemas) -> tuple[str, str]:
        before = ""
        for history in (self._neutral(previous), [Message("user", self._template.mark)]):
            before = self._template.text(history, system=system, tools=tools) or "" if history else ""
            after = self._template.text(history, system=system, tools=tools, prompt=True) if before else None
            if after and (added := self._added(before, after, strict=True)):
                return before, added
        header = self._assistant_header  # of a template that does not know `add_generation_prompt`
        return before, header if header.strip() else ""

    def _added(self, before: str, after: str, *, strict: bool) -> str:
        """What `after` has after `before`; "" if it does not go on from there. Not `strict`: what is before the mark may differ."""
        mark = self._template.mark
        if not strict and mark in before and mark in after:
            before, after = before[before.index(mark) :], after[after.index(mark) :]
        return after[len(before) :] if after.startswith(before) else ""

    def _neutral(self, previous: Sequence[Message]) -> list[Message]:
        """The end of `previous` from the last question on, without its words; [] if that is too long."""
        user, mark = Message("user", "."), self._template.mark
        if not previous:
            return []
        last = previous[-1]
        if last.role == "user":
            return [Message("user", mark)]
        recent = previous[-MAX_PARALLEL - 1 :]
        outputs = [Message("tool", ".", item.name, (), item.tool_call_id) for item in takewhile(_is_tool, reversed(recent))][::-1]
        if len(outputs) > MAX_PARALLEL or last.role == "system":
            return []
        asked = recent[-len(outputs) - 1] if len(recent) > len(outputs) else user
        calls = tuple(ToolCall(call.id, call.name, {}) for call in asked.tool_calls)
        if not outputs:
            return [user, Message("assistant", mark, tool_calls=calls)]
        outputs[-1] = Message("tool", mark, last.name, (), last.tool_call_id)
        return [user, *([Message("assistant", ".", tool_calls=calls)] if asked.role == "assistant" else []), *outputs]

    def _usual(self, message: Message) -> list[Message]:
        """A neutral history after which a message of that role is usual."""
        user, mark = Message("user", "."), self._template.mark
        if message.role == "assistant":
            return [Message("user", mark)]
        call = ToolCall(message.tool_call_id or "000000000", message.name or "tool", {})
        return [user, Message("assistant", mark, tool_calls=(call,) if message.role == "tool" else ())]

    def _find_end_ids(self, markup: set[int]) -> tuple[int, ...]:
        found = {self._tokenizer.eos_token_id, *self._closing[:1]}
        call = Message("assistant", "", tool_calls=(ToolCall("000000000", "tool", {}),))
        if self._template.text([Message("user", "."), call]):
            controls = [token for token in self._encoder.after(*self._turn(call, (), None, ())) if token in self._encoder.control_ids]
            found |= {token for token in controls[-1:] if token not in markup}
        return tuple(sorted(found & (self._encoder.control_ids | {self._tokenizer.eos_token_id}) - {None}))

    def _is_stable(self) -> bool:
        call = ToolCall("a1b2c3d4e", "tool", {"value": 1})
        talk = [
            Message("user", "One."), Message("assistant", "<think>\nHm.\n</think>\n\nTwo."), Message("user", "Three."),
            Message("assistant", "", tool_calls=(call, ToolCall("a1b2c3d4f", "tool", {}))), Message("tool", "4", "tool", (), call.id),
            Message("tool", "5", "tool", (), "a1b2c3d4f"), Message("assistant", "Six."), Message("user", "Seven."),
        ]  # fmt: skip
        for system, tools in ((None, ()), (".", (schema("tool"),))):
            texts = (self._template.text(talk[:end], system=system, tools=tools) for end in range(1, len(talk) + 1))
            known = [text for text in texts if text is not None]
            if not all(after.startswith(before) for before, after in pairwise(known)):
                return False
        return True


def _is_tool(message: Message) -> bool:
    return message.role == "tool"
