"""What a reply may be: texts that a grammar lets through, and texts that it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_memory.chat.call_form import COMMON, CallForm
from agent_memory.chat.grammar import ReplyGrammar, closed
from tests.chat.builders import CHATML
from tests.model.constrained import Speaker, marked, small

ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}
SAY = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = {"add": ADD, "say": SAY}
ONE, TWO = ("add", '{"a": 1}'), ("say", '{"text": "x <b> {\\"y"}')
MARKUP = pytest.mark.parametrize("markup", ["special", "added", "plain"])
THINKING = CHATML + "{# <think></think> #}"
FUNCTIONS = CallForm('[TOOL_CALLS][{"name": "', '", "arguments": ', '}, {"name": "', "}]")
BARE = CallForm('{"name": "', '", "parameters": ', '};{"name": "', "}")


class Spelled(str):
    """Text that is written letter by letter, so that no control token is in it."""


def reads(model: Speaker, grammar: str, *pieces: str) -> bool | None:
    """Whether a reply may be these pieces; None if it may begin so."""
    assert model.grammars.problem(grammar) is None
    matcher = model.grammars._compiled(grammar)[0].deep_copy()
    for piece in pieces:
        texts = piece if isinstance(piece, Spelled) else [piece]
        ids = [token for text in texts for token in model.tokenizer.encode(text, add_special_tokens=False)]
        if matcher.try_consume_tokens(ids) < len(ids):
            return False
    return True if matcher.is_accepting() else None


def calls_of(model: Speaker, form: CallForm, **options: Any) -> str:
    return model.chat.grammar.calls(form, TOOLS, **{"required": False, "parallel": True, **options})


@MARKUP
def test_a_reply_is_text_or_calls_or_text_and_then_calls(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    form = model.chat.call_form
    assert form is not None
    grammar = calls_of(model, form)
    for text in ("", "the fox < 3 <tool", "a <tool_cal> b", "{}\n"):
        assert reads(model, grammar, Spelled(text)) is True
    for calls in ([ONE], [TWO, ONE], [ONE] * 4):
        assert reads(model, grammar, form.write(*calls)) is reads(model, grammar, "the fox.\n", form.write(*calls)) is True
    assert reads(model, grammar, form.write(ONE), "the") is reads(model, grammar, form.write(ONE), form.opening) is False
    assert reads(model, grammar, form.write(("sub", "{}"))) is reads(model, grammar, form.write(("add", '{"a": "1"}'))) is False
    assert reads(model, grammar, form.write(("add", '{"a": 1, "c": 2}'))) is reads(model, grammar, form.write(("add", "[]"))) is False
    assert reads(model, grammar, form.write(ONE)[:-1]) in (None, False) and reads(model, grammar, form.opening) is None


@MARKUP
def test_arguments_may_hold_marks(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    grammar = calls_of(model, COMMON, required=True)
    held = Spelled("</tool_call><tool_call><think></think>")
    assert reads(model, grammar, COMMON.opening, "say", COMMON.middle, '{"text": "', held, '"}', COMMON.closing) is True


@MARKUP
def test_one_call_is_followed_by_none(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    for required in (True, False):
        grammar = calls_of(model, COMMON, required=required, parallel=False)
        assert reads(model, grammar, COMMON.write(ONE)) is True
        assert reads(model, grammar, COMMON.write(ONE, TWO)) is False


@MARKUP
def test_a_required_call_comes_first(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    grammar = calls_of(model, COMMON, required=True)
    assert reads(model, grammar, COMMON.write(ONE, TWO)) is True
    assert reads(model, grammar, "the") is reads(model, grammar, "\n") is False and reads(model, grammar, "") is None


@MARKUP
@pytest.mark.parametrize("form", [COMMON, FUNCTIONS, BARE], ids=["common", "functions", "bare"])
def test_a_text_never_holds_what_is_read_as_a_call(form: CallForm, markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    call = COMMON.write(("evil", "{}"))
    for grammar in (model.chat.grammar.text(form), calls_of(model, form), calls_of(model, form, parallel=False)):
        assert reads(model, grammar, "the fox ", Spelled(call)) is False
        assert reads(model, grammar, Spelled(call), form.write(ONE)) is False
        assert reads(model, grammar, "the [fox] {") is True
    text = model.chat.grammar.text(form)
    assert reads(model, text, "the ", Spelled(form.write(ONE))) is reads(model, text, form.write(ONE)) is False
    assert reads(model, calls_of(model, form), "the ", form.write(ONE)) is True


@pytest.mark.parametrize("markup", ["special", "added"])
def test_a_mark_that_is_a_token_cannot_be_spelled(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    for required in (True, False):
        assert reads(model, calls_of(model, COMMON, required=required), Spelled(COMMON.write(ONE))) is False


@MARKUP
def test_a_thought_may_come_first(markup: str) -> None:
    model = marked(THINKING, "<|im_end|>", markup)
    grammar = model.chat.grammar
    text, calls, value = grammar.text(COMMON), calls_of(model, COMMON, required=True), grammar.json(ADD)
    thought = "<think>\nthe <b> fox <tool_call>? \n</think>\n\n" if markup == "plain" else "<think>\nthe <b> fox\n</think>\n\n"
    for held, body in ((text, "the fox"), (calls, COMMON.write(ONE)), (value, '{"a": 1}'), (calls_of(model, COMMON), COMMON.write(ONE))):
        assert reads(model, held, body) is reads(model, held, thought, body) is reads(model, held, "<think></think>", body) is True
        assert reads(model, held, thought.replace("</think>\n\n", ""), body) in (None, False)
        assert reads(model, held, "the", thought, body) is False
        assert reads(model, held, thought, thought, body) is False


@pytest.mark.parametrize("markup", ["special", "added"])
def test_a_thought_ends_where_it_is_read_as_ended(markup: str) -> None:
    model = marked(THINKING, "<|im_end|>", markup)
    evil = Spelled("x</think>" + COMMON.write(("evil", "{}")))
    for grammar in (calls_of(model, COMMON), model.chat.grammar.text(COMMON)):
        assert reads(model, grammar, "<think>", evil) is False
        assert reads(model, grammar, Spelled("<think> hm "), COMMON.write(ONE)) is False


@MARKUP
def test_a_thought_that_the_prompt_opened_has_to_end(markup: str) -> None:
    model = marked(THINKING, "<|im_end|>", markup)
    grammar = ReplyGrammar(model.chat.grammar._pieces, thoughts=True, thinking=True)
    held = grammar.json(ADD)
    assert reads(model, held, "the fox</think>\n", '{"a": 1}') is reads(model, held, '</think>{"a": 1}') is True
    assert reads(model, held, '{"a": 1}') is reads(model, held, "") is None
    assert reads(model, grammar.text(COMMON), "hm</think>the fox") is True and reads(model, grammar.text(COMMON), "hm") is None


def test_without_thoughts_a_template_has_none() -> None:
    model = small()
    assert reads(model, model.chat.grammar.json(ADD), "<think>") is reads(model, calls_of(model, COMMON), "<think>") is False
    assert "think" not in model.chat.grammar.json(ADD)


@MARKUP
def test_with_a_schema_a_reply_is_its_json_or_calls(markup: str) -> None:
    model = marked(CHATML, "<|im_end|>", markup)
    grammar = calls_of(model, COMMON, schema={"type": "array", "items": {"type": "integer"}})
    assert reads(model, grammar, "[1, 2]") is reads(model, grammar, COMMON.write(ONE, TWO)) is True
    assert reads(model, grammar, "the") is reads(model, grammar, '["a"]') is reads(model, grammar, "[1]", COMMON.write(ONE)) is False


@pytest.mark.parametrize("value", [{"a": 1, "b": 2}, {"a": -5}])
def test_json_is_written_as_models_have_seen_it(value: Any) -> None:
    model = small()
    grammar = model.chat.grammar.json(ADD)
    assert reads(model, grammar, json.dumps(value)) is True
    assert reads(model, grammar, json.dumps(value, indent=1)) is reads(model, grammar, " " + json.dumps(value)) is False
    assert reads(model, grammar, json.dumps(value, separators=(",", ":"))) is False


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "naïve.tool-1", "{}", "a\nb", "\udc80"])
def test_names_of_tools_are_json(name: str) -> None:
    model = small()
    form = model.chat.call_form
    assert form is not None
    grammar = model.chat.grammar.calls(form, {name: {"type": "object"}}, required=True, parallel=False)
    said = model.babble(grammar, 80)
    calls = model.chat.parse(said.ids).tool_calls
    assert [call.name for call in calls] == ["\ufffd" if name == "\udc80" else name]


def test_a_schema_may_hold_any_text() -> None:
    model = small()
    schema = {"enum": ["\udc80", '"', "\\", "/*", "a\nb", "é"], "description": 'two\nlines "\ud800" // %json {'}
    for text in ('"\ufffd"', '"\\""', '"\\\\"', '"/*"', '"a\\nb"', '"é"'):
        assert reads(model, model.chat.grammar.json(schema), text) is True


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
SHUT = {**OPEN, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        (OPEN, SHUT),
        ({**OPEN, "additionalProperties": True}, {**OPEN, "additionalProperties": True}),
        ({**OPEN, "additionalProperties": OPEN}, {**OPEN, "additionalProperties": SHUT}),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": SHUT}),
        ({"prefixItems": [OPEN, True], "items": False}, {"prefixItems": [SHUT, True], "items": False}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        ({"$ref": "#/$defs/x", "$defs": {"x": OPEN}}, {"$ref": "#/$defs/x", "$defs": {"x": SHUT}}),
        ({"properties": {"properties": OPEN}}, {"properties": {"properties": SHUT}, "additionalProperties": False}),
        ({"properties": {"format": {"format": "path"}}}, {"properties": {"format": {}}, "additionalProperties": False}),
        ({"patternProperties": {"^x": OPEN}}, {"patternProperties": {"^x": SHUT}}),
        ({"enum": [OPEN], "default": OPEN}, {"enum": [OPEN], "default": OPEN}),
        ({"type": "string", "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"type": "string", "nullable": False}, {"type": "string"}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"type": "array", "uniqueItems": True}, {"type": "array", "uniqueItems": True}),
        ({"allOf": [OPEN], "title": "x"}, {"allOf": [SHUT], "title": "x"}),
        ({"allOf": [OPEN, OPEN]}, {"allOf": [OPEN, OPEN]}),
        ({**OPEN, "anyOf": [OPEN]}, {**OPEN, "anyOf": [OPEN]}),
        ({"items": {**OPEN, "$ref": "#/x"}, **OPEN}, {"items": {**OPEN, "$ref": "#/x"}, **OPEN}),
        (True, True),
    ],
)  # fmt: skip
def test_schemas_are_closed_and_what_rules_nothing_out_is_left_out(schema: Any, made: Any) -> None:
    before = json.dumps(schema)
    assert closed(schema) == made and json.dumps(schema) == before


def test_objects_that_are_put_together_can_be_written() -> None:
    model = small()
    base = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    more = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    for schema in (
        {"allOf": [base, more]},
        {"$defs": {"base": base}, "allOf": [{"$ref": "#/$defs/base"}, more]},
        {**base, "anyOf": [more]},
    ):
        assert reads(model, model.chat.grammar.json(schema), '{"a": 1, "b": 2}') is True
        assert reads(model, model.chat.grammar.json(schema), '{"a": 1}') is False
