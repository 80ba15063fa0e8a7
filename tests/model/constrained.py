"""Models that say anything, and what a reply that is held to a schema must be all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from agent_memory import pocket
from agent_memory.chat import ChatFormat
from agent_memory.chat.grammar import ReplyGrammar
from agent_memory.model.constrain import Grammars
from agent_memory.model.decode import decode
from agent_memory.types import GenerationRequest, Sampling
from tests.chat.builders import CHATML, PLAIN_ADDED, SPECIAL, byte_level, make

jsonschema: Any = pytest.importorskip("jsonschema")

NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
NEXT = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"]}
ROW = {"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "number"}}, "required": ["k"]}
BIG = {"type": "object", "properties": {f"part{number}": {"type": "string"} for number in range(9)}}
BIG["required"] = list(BIG["properties"])

SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": {
        "type": "object",
        "properties": {
            "a": {"type": "object", "properties": {"b": {"type": "integer"}, "c": {"type": "string"}}, "required": ["b"]},
            "d": {"type": "array", "items": {"type": "number"}, "minItems": 2},
        },
        "required": ["a", "d"],
    },
    "rows": {"type": "array", "items": ROW, "minItems": 1},
    "enum": {"enum": ["red", "green", 3, None, [1, 2]]},
    "const": {"const": {"a": [1, "x"]}},
    "number": {"type": "number", "minimum": -3, "maximum": 5.5},
    "integer": {"type": "integer", "minimum": 10, "exclusiveMaximum": 2000},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "types": {"type": ["string", "null", "integer"]},
    "any of": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "integer"}, ROW]},
    "one of": {"oneOf": [{"const": "a"}, {"type": "integer"}]},
    "optional": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "boolean"}}},
    "optional and long": {"type": "object", "properties": {"a": {"type": "integer"}, "big": BIG}},
    "null or long": {"anyOf": [{"type": "null"}, BIG]},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email"},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
    "digits": {"type": "object", "properties": {"phone": {"type": "string", "pattern": "^[0-9]+$"}}, "required": ["phone"]},
    "lengths": {"type": "string", "minLength": 4, "maxLength": 9},
    "long text": {"type": "string", "minLength": 40},
    "tree": {"$defs": {"node": {**NODE, "required": ["v", "kids"]}}, "$ref": "#/$defs/node"},
    "list of lists": {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "$ref": "#/$defs/node"},
    "linked": {"$defs": {"node": NEXT}, "$ref": "#/$defs/node"},
    "any object": {"type": "object"},
    "map": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": {"type": "integer"}},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
}


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is of a schema, formats with it."""
    checks = jsonschema.Draft202012Validator
    return bool(checks(schema, format_checker=checks.FORMAT_CHECKER).is_valid(value))


@dataclass(frozen=True)
class Said:
    """A reply: its ids, its text, and why it ended."""

    ids: list[int]
    text: str
    reason: str


@dataclass(frozen=True)
class Speaker:
    """A tokenizer, and models that would say anything."""

    tokenizer: Any
    chat: ChatFormat
    grammars: Grammars

    @property
    def plain(self) -> ReplyGrammar:
        """Grammars without thoughts."""
        return ReplyGrammar(self.chat.grammar._pieces, thoughts=False, thinking=False)

    def least(self, grammar: str) -> int:
        """Tokens of the shortest reply."""
        return int(self.grammars._compiled(grammar)[1])

    def say(
        self,
        held: LogitsProcessor | Sequence[Any],
        logits: Callable[[list[int]], Tensor],
        budget: int,
        sampling: Sampling | None = None,
    ) -> Said:
        """A reply of a model whose next logits are a function of what it said."""
        ids, text = list[int](), ""
        request = GenerationRequest(max_new_tokens=budget, end_ids=self.chat.end_ids, sampling=sampling or Sampling())
        processors = LogitsProcessorList([held] if isinstance(held, LogitsProcessor) else held)
        pieces = decode(lambda token: logits(ids), self.tokenizer, request, processors=processors)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return Said(ids, text, end.value)
            ids.append(piece.token)
            text += piece.text

    def babble(self, grammar: str, budget: int, seed: int = 0, liked: Mapping[str, float] | None = None) -> Said:
        """A reply held to a grammar, of random logits; tokens that hold a text of ``liked`` get so much more."""
        return self.say(self.grammars.processor(grammar, budget), self.noise(seed, liked), budget)

    def noise(self, seed: int, liked: Mapping[str, float] | None = None) -> Callable[[list[int]], Tensor]:
        """Random logits, always the same."""
        random = torch.Generator().manual_seed(seed)
        more = torch.zeros(len(self.tokenizer))
        for text, much in (liked or {}).items():
            more += torch.tensor([much * (text in written) for written in _texts(self.tokenizer)])
        return lambda said: more + 6 * torch.randn(len(more), generator=random)

    def script(self, text: str, then: int | None = None) -> Callable[[list[int]], Tensor]:
        """Logits of a model that says a text, token by token, and then wants to end."""
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.chat.end_ids[0] if then is None else then]

        def logits(said: list[int]) -> Tensor:
            made = torch.zeros(len(self.tokenizer))
            made[ids[min(len(said), len(ids) - 1)]] = 20.0
            return made

        return logits


@cache
def _texts(tokenizer: Any) -> list[str]:
    return [tokenizer.decode([token]) for token in range(len(tokenizer))]


def speaker(tokenizer: Any) -> Speaker:
    chat = ChatFormat(tokenizer)
    return Speaker(tokenizer, chat, Grammars(tokenizer, len(tokenizer), chat.end_ids))


def marked(template: str, end: str, markup: str, kind: Callable[[], Any] = byte_level) -> Speaker:
    """A tokenizer with the marks of thoughts and calls as ``special`` tokens, as ``added`` ones that are not, or as ``plain`` text."""
    if markup == "added":
        return speaker(make(kind, template, end))
    wrap: Any = PreTrainedTokenizerFast
    tokenizer = wrap(tokenizer_object=kind(), clean_up_tokenization_spaces=False, bos_token="<s>", eos_token=end, pad_token="<pad>")  # noqa: S106
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *(PLAIN_ADDED if markup == "special" else ())]})
    tokenizer.chat_template = template
    return speaker(tokenizer)


@cache
def small() -> Speaker:
    """Four hundred byte-level tokens."""
    return speaker(make(byte_level, CHATML, "<|im_end|>"))


@cache
def pocket_sized() -> Speaker:
    """The pocket model's tokens, of which many go on where one may end: ``", "`` and the like."""
    return speaker(AutoTokenizer.from_pretrained(str(pocket.path())))


def valid(schema: dict[str, Any], text: str) -> bool:
    """Whether a text is JSON of a schema."""
    try:
        return fits(schema, json.loads(text))
    except ValueError:
        return False
