"""A long conversation with facts in it, as LangChain's messages, and a plain chat model that reads all it is given and counts the tokens.

Knows generated text, chat templates and transformers; nothing of memory, nor of what is shown to the model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult

from agent_memory.evaluate.haystack import Needle, Pile, hay, make_haystack, new_name
from agent_memory.evaluate.needle import NEAR_DUPLICATES
from agent_memory.pocket import data, path, values
from agent_memory.pocket.dialogues import DONE, NOTED

WINDOW = 512
ANSWER_TOKENS = 64
"""Longest answer: twice what the longest value takes."""

NOTES = 0.25
"""Share of pieces that are notes of the user; the others are outputs of a tool."""

MENTIONS = 3
"""Lines that name what is asked about but do not answer, for each fact."""

LINE_TOKENS = 24
"""About what a fact or a mention takes; the haystack is made shorter by them, and then filled up to the tokens asked for."""

Group = tuple[BaseMessage, ...]


@dataclass(frozen=True)
class Talk:
    """A conversation up to the first question.

    Attributes:
        groups: what belongs together, each ending with the assistant's reply: a note, or a request with a call and its output.
        needles: the facts, in the order they are asked about.
        told: for each of them the group it was told in, and the line.
        tokens: of the whole conversation.
    """

    groups: tuple[Group, ...]
    needles: tuple[Needle, ...]
    told: tuple[tuple[int, str], ...]
    tokens: int

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages in their order."""
        return [message for group in self.groups for message in group]

    @property
    def text_bytes(self) -> int:
        """Bytes of what the messages say."""
        return sum(len(message.text.encode()) for message in self.messages)

    def until_told(self, number: int) -> list[BaseMessage]:
        """The conversation up to the line of one fact, which is its last."""
        at, line = self.told[number]
        messages = [message for group in self.groups[:at] for message in group]
        for message in self.groups[at]:
            before, found, _ = f"\n{message.text}\n".partition(f"\n{line}\n")
            if found:
                return [*messages, message.model_copy(update={"content": f"{before}\n{line}".strip("\n")})]
            messages.append(message)
        raise LookupError(line)


@dataclass
class Rendering:
    """Conversations as the model reads them."""

    tokenizer: Any
    _known: dict[str, int] = field(default_factory=dict)

    def ids(self, messages: Sequence[BaseMessage]) -> list[int]:
        """Token ids of a conversation and of what a reply begins with."""
        text = self._text(convert_to_openai_messages(list(messages)), reply=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def count(self, messages: Iterable[Any]) -> int:
        """How many :meth:`ids` there are. Special tokens part the messages, so each is counted once and then known."""
        return sum(self._one(part) for part in convert_to_openai_messages(list(messages))) + 1

    def text_tokens(self, text: str) -> int:
        """Tokens of a text for itself."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _one(self, part: dict[str, Any]) -> int:
        key = json.dumps(part)
        if key not in self._known:
            self._known[key] = self.text_tokens(self._text([part], reply=False))
        return self._known[key]

    def _text(self, parts: Any, reply: bool) -> str:
        return str(self.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=reply))


def make_talk(tokens: int, questions: int, seed: int, rendering: Rendering) -> Talk:
    """A conversation of at least ``tokens`` with facts spread evenly over it, and near-duplicates and mentions of each anywhere.

    Args:
        tokens: of the conversation as the model reads it.
        questions: facts.
        seed: of everything random.
        rendering: counts.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible
    depths = [(number + 0.5) / questions for number in range(questions)]
    rest = max(tokens // 2, tokens - questions * (1 + NEAR_DUPLICATES + MENTIONS) * LINE_TOKENS)
    stack = make_haystack(rng, rest, depths, lambda text: rendering.count(_group(text)) - 1)
    made = Pile(list(stack.pieces), [rendering.text_tokens(piece) for piece in stack.pieces])
    for line in _distractors(rng, stack.needles):
        at = made.at(rng.random())
        made.put(at, made.spot(rng, at), line)
    groups = [_group(piece) for piece in made.pieces]
    more = hay(rng, None)
    last = _group(data.noise(rng, 2), note=True)
    while rendering.count(message for group in [*groups, last] for message in group) < tokens:
        groups.append(_group(next(more)))
    groups.append(last)
    needles = list(stack.needles)
    rng.shuffle(needles)
    told = [_told(groups, needle) for needle in needles]
    total = rendering.count(message for group in groups for message in group)
    return Talk(tuple(groups), tuple(needles), tuple(told), total)


def _distractors(rng: random.Random, needles: Sequence[Needle]) -> Iterator[str]:
    """Facts on the same field of other things with nearly the name, and lines that only name the thing."""
    taken = {needle.name for needle in needles}
    for needle in needles:
        for _ in range(NEAR_DUPLICATES):
            value = values.value(rng, needle.field)
            while value == needle.value:
                value = values.value(rng, needle.field)
            yield replace(needle, name=new_name(rng, taken, like=needle.name), value=value).line(rng)
        for _ in range(MENTIONS):
            # Its version is another fact, and may be the one that is asked about.
            yield data.mention(rng, needle.name, needle.value if needle.field == "version" else None)


def _group(text: str, note: bool | None = None) -> Group:
    """A piece of text as messages; which, and their names, depends on nothing but the text."""
    rng = random.Random(text)  # noqa: S311 - reproducible
    if note or (note is None and rng.random() < NOTES):
        return HumanMessage(text), AIMessage(NOTED)
    file, call = values.file_path(rng), f"call-{rng.randrange(10**9)}"
    calls = [{"name": "read", "args": {"path": file}, "id": call}]
    return (
        HumanMessage(f"Read {file}."),
        AIMessage("", tool_calls=calls),
        ToolMessage(text, name="read", tool_call_id=call),
        AIMessage(DONE),
    )


def _told(groups: Sequence[Group], needle: Needle) -> tuple[int, str]:
    lines = {data.render_fact(needle.name, needle.field, needle.value, layout) for layout in data.LAYOUTS}
    for number, group in enumerate(groups):
        for line in (line for message in group for line in message.text.split("\n")):
            if line in lines:
                return number, line
    raise LookupError(f"nobody told the {needle.field} of {needle.name}")


@dataclass
class Meter:
    """Tokens fed to a model before its first new token, and made by it."""

    prefilled: int = 0
    generated: int = 0


class PlainChat(BaseChatModel):
    """A chat model over plain transformers: renders the messages it is given, reads all of them, and answers greedily.

    Attributes:
        model, rendering: from transformers, and how its conversations are written.
        max_tokens: longest answer.
        meter: what was read and written so far.
        kv: keys and values kept from one call to the next, which has to begin with the same tokens; None: none are.
    """

    model: Any
    rendering: Rendering
    max_tokens: int = ANSWER_TOKENS
    meter: Any
    kv: Any = None

    def keep_kv(self) -> None:
        """Keep keys and values from now on."""
        from transformers import DynamicCache

        self.kv = DynamicCache(config=self.model.config)

    @property
    def _llm_type(self) -> str:
        return "plain-transformers"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> ChatResult:
        ids = torch.tensor([self.rendering.ids(messages)])
        known = 0 if self.kv is None else self.kv.get_seq_length()
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": self.max_tokens, "do_sample": False}
        with torch.inference_mode():
            out = self.model.generate(input_ids=ids, past_key_values=self.kv, **options)
        new = out[0, ids.shape[1] :]
        self.meter.prefilled += ids.shape[1] - known
        self.meter.generated += len(new)
        text = self.rendering.tokenizer.decode(new, skip_special_tokens=True).strip()
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


class Recorded(BaseChatModel):
    """A chat model that gives the replies of a recording as long as there are any, and then another's."""

    then: BaseChatModel
    replies: list[BaseMessage]

    @property
    def _llm_type(self) -> str:
        return "recorded"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> ChatResult:
        reply = self.replies.pop() if self.replies else self.then.invoke(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply.text))])


@dataclass
class Plain:
    """The weights as transformers loads them, and their tokenizer: the same for everybody."""

    model: Any
    rendering: Rendering

    def chat(self, meter: Meter, max_tokens: int = ANSWER_TOKENS) -> PlainChat:
        """A chat model that counts on ``meter``."""
        return PlainChat(model=self.model, rendering=self.rendering, max_tokens=max_tokens, meter=meter)


def load_plain() -> Plain:
    """The pocket model, with torch's own attention."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path(), attn_implementation="sdpa", dtype=torch.float32).eval()
    return Plain(model, Rendering(AutoTokenizer.from_pretrained(path())))
