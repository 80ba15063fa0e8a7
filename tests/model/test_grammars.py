"""Grammars that are compiled once, and what is said of those that cannot be, or where none can."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory.errors import ConfigError
from agent_memory.model import constrain
from agent_memory.model.constrain import Grammars
from tests.chat.builders import CHATML, byte_level, make
from tests.model.constrained import Speaker, small, speaker, valid

AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}


def test_a_grammar_is_compiled_once() -> None:
    model = speaker(make(byte_level, CHATML, "<|im_end|>"))
    grammar = model.plain.json(AB)
    for _ in range(3):
        assert model.grammars.problem(grammar) is None
        assert valid(AB, model.babble(grammar, 50).text)
    assert (model.grammars._compiled.cache_info().misses, model.grammars._compiled.cache_info().hits) == (1, 5)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema"),
        ({"type": "string", "minLength": 30, "format": "date"}, "Unsatisfiable schema"),
        ({"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}, "no text of at most 1024 tokens"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3000}, "no text of at most 1024 tokens"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_in_one_line(schema: dict[str, Any], said: str) -> None:
    grammars, grammar = small().grammars, small().plain.json(schema)
    problem = grammars.problem(grammar)
    assert problem is not None and said in problem and "\n" not in problem and "%json" not in problem and "failed to compile" not in problem
    with pytest.raises(ConfigError, match="cannot be held to this grammar: ") as caught:
        grammars.processor(grammar, 5000)
    assert said in str(caught.value)


def _without_end() -> Speaker:
    tokenizer = make(byte_level, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "<|im_end|>")
    tokenizer.eos_token = None
    return speaker(tokenizer)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small().tokenizer
    assert small().grammars.missing is None
    assert "set tokenizer.eos_token" in str(_without_end().grammars.missing)

    class Slow:
        is_fast = False

        def __len__(self) -> int:
            return 3

    assert "needs a fast tokenizer, and Slow is not one" in str(Grammars(Slow(), 3, [1]).missing)  # type: ignore[arg-type]
    monkeypatch.setattr(constrain, "find_spec", lambda name: None)
    assert "pip install 'agent-kv-memory[structured]'" in str(Grammars(tokenizer, len(tokenizer), [1]).missing)
