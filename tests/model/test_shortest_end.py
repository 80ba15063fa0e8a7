"""Ways out of what has been begun: each ends, and none is much longer than it has to be."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from agent_memory.chat.grammar import ReplyGrammar
from agent_memory.model import shortest_end
from agent_memory.model.shortest_end import ShortestEnd, deeper
from tests.chat.builders import CHATML, byte_level, make
from tests.model.conftest import byte_tokenizer
from tests.model.constrained import ROW, SCHEMAS, Speaker, marked, pocket_sized, small, speaker, valid

TOOL = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def begun(model: Speaker, grammar: str, text: str | list[int] = "") -> tuple[Any, ShortestEnd]:
    """A matcher after some text, and what finds ways out of it."""
    matcher = model.grammars._compiled(grammar)[0].deep_copy()
    ids = model.tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else text
    assert matcher.try_consume_tokens(ids) == len(ids), (text, grammar)
    return matcher, model.grammars._tools()[1]


def way_out(model: Speaker, grammar: str, text: str | list[int] = "") -> str:
    matcher, ends = begun(model, grammar, text)
    path = ends.path(matcher)
    assert path is not None and ends.completes(matcher, path)
    return str(model.tokenizer.decode(path))


@pytest.mark.parametrize("name", SCHEMAS)
def test_there_is_a_way_out_of_wherever_chance_leads(name: str) -> None:
    model = small()
    grammar = model.plain.json(SCHEMAS[name])
    ids = [token for token in model.babble(grammar, 60, 7, {'"': -6.0}).ids if token not in model.chat.end_ids]
    for size in random.Random(7).sample(range(len(ids) + 1), min(6, len(ids))):
        matcher, ends = begun(model, grammar, ids[:size])
        path = ends.path(matcher)
        assert path is not None and valid(SCHEMAS[name], model.tokenizer.decode([*ids[:size], *path]))
        assert ends.path(matcher, len(path)) == path and ends.path(matcher, len(path) - 1) is None


@pytest.mark.parametrize(
    ("name", "text", "out"),
    [
        ("any object", "", ["{}"]),
        ("any object", '{"a": "the', ['"}']),
        ("any object", '{"a": "the ", ', ['"}']),
        ("any object", '{"a": "x\\"', ['"}']),
        ("any object", '{"a": ', ["null}", "true}", "false}"]),
        ("any object", '{"a": {"b": [1, {"c": "x', ['"}]}}']),
        ("rows", '[{"k": "the', ['"}]']),
        ("rows", '[{"k": "the", "n": 4', ["}]"]),
        ("rows", '[{"k": "the"}, ', ['{"k": ""}]']),
        ("optional", "{", ["}"]),
        ("optional", '{"a": "x"', ["}"]),
        ("map", '{"a": "x", "b": 1', ["}"]),
        ("nested", '{"a": {"b": 1}, "d": [1', [", 0]}"]),
        ("linked", "", ['{"next": null}']),
        ("linked", '{"next": {', ['"next": null}}']),
        ("null or long", "", ["null"]),
        ("types", "", ["null"]),
        ("digits", '{"phone": "404', ['"}']),
        ("number", "", ["0"]),
        ("number", "-2", [""]),
        ("list of lists", "[[[", ["]]]"]),
        ("lengths", '"abcdef', ['"']),
    ],
)
@pytest.mark.parametrize("of", [small, pocket_sized], ids=["small", "pocket"])
def test_the_way_out_closes_what_is_open_and_begins_nothing(name: str, text: str, out: list[str], of: Any) -> None:
    if name == "any object" and text.endswith(", "):
        text = text[: -len('", ')]
    assert re.sub("[0-9]+", "0", way_out(of(), of().plain.json(SCHEMAS[name]), text)) in out


def test_tokens_that_go_on_are_not_taken_for_those_that_end() -> None:
    tokenizer = make(byte_level, CHATML, "<|im_end|>")
    tokenizer.add_tokens(['", "', '"}, {"', "},", '"}, ', "}, {", "}]", '": {"', "null, "])
    model = speaker(tokenizer)
    rows = model.plain.json({"type": "array", "items": ROW})
    assert [way_out(model, rows, text) for text in ('[{"k": "the', '[{"k": "the"', '[{"k": "', "[")] == ['"}]', "}]", '"}]', "]"]
    anything = model.plain.json({"type": "object"})
    assert way_out(model, anything, '{"a": "x') == '"}' and way_out(model, anything, '{"a": [') == "]}"
    assert model.least(model.plain.json(SCHEMAS["linked"])) <= 14


@pytest.mark.parametrize("form", ["email", "duration", "hostname", "ipv6", "uri", "date-time", "time"])
def test_the_way_out_of_a_format_does_not_go_in_circles(form: str) -> None:
    model, grammar = (
        small(),
        small().plain.json({"type": "object", "properties": {"x": {"type": "string", "format": form}}, "required": ["x"]}),
    )
    matcher, ends = begun(model, grammar)
    path = ends.path(matcher)
    assert path is not None and len(path) <= 30
    for at in range(len(path)):
        assert form in ("date-time", "time") or not ends.completes(matcher, path[:at] + path[at + 1 :]), "a token that need not be there"


def test_a_way_out_that_is_too_long_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = small().plain.json({"type": "array", "items": {"type": "boolean"}, "minItems": 12})
    matcher, ends = begun(small(), grammar)
    path = ends.path(matcher)
    assert path is not None
    monkeypatch.setattr(shortest_end, "LONGEST", len(path))
    assert ends.path(matcher) == path
    monkeypatch.setattr(shortest_end, "LONGEST", len(path) - 1)
    assert ends.path(matcher) is None


THINKING = CHATML + "{# <think></think> #}"


@pytest.mark.parametrize("markup", ["special", "added", "plain"])
def test_the_way_out_of_a_thought_is_its_end(markup: str) -> None:
    model = marked(THINKING, "<|im_end|>", markup)
    form = model.chat.call_form
    assert form is not None
    grammar = model.chat.grammar.calls(form, {"get": TOOL}, required=True, parallel=True)
    end = model.tokenizer.encode("</think>", add_special_tokens=False)
    call = [form.write(("get", f'{{"a": {number}}}')) for number in (0, 404)]
    assert way_out(model, grammar) in call, "a thought need not be begun"
    for thought in ("<think>", "<think>the quick", "<think>\nthe <b>\n"):
        assert way_out(model, grammar, thought) in [f"</think>{text}" for text in call]
    assert way_out(model, grammar, "<think>the</think>") in call
    assert way_out(model, grammar, "<think>the</think>\n\n") in call
    matcher, ends = begun(model, grammar, "<think>the quick")
    assert (ends.path(matcher) or [])[: len(end)] == end
    opened = ReplyGrammar(model.chat.grammar._pieces, thoughts=True, thinking=True)
    assert way_out(model, opened.json(TOOL), "the quick") in ('</think>{"a": 0}', '</think>{"a": 404}')
    assert way_out(model, opened.text(form), "the quick") == "</think>"


def test_a_thought_whose_end_the_template_does_not_know_ends_in_letters() -> None:
    model = marked(CHATML + "{# <think> #}", "<|im_end|>", "added")
    assert way_out(model, model.chat.grammar.json(TOOL), "<think>the quick") == '</think>{"a": 404}'


def test_tokens_of_one_character_suffice() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    model = speaker(tokenizer)
    digits = model.plain.json({"type": "array", "items": {"type": "string", "pattern": "^[0-9]+$"}})
    matcher, ends = begun(model, digits, '["404')
    assert ends._place(ends.mask(matcher)) == "elsewhere" and way_out(model, digits, '["404') == '"]'
    assert way_out(model, model.plain.json({"type": "object"}), '{"a": ') == '""}'


def test_a_call_is_not_begun_where_less_will_do() -> None:
    model = marked(THINKING, "<|im_end|>", "special")
    tool = {"type": "object", "properties": {"long": {"type": "string", "minLength": 300}}, "required": ["long"]}
    form = model.chat.call_form
    assert form is not None
    grammar = model.chat.grammar.calls(form, {"get": tool}, required=False, parallel=True, schema={"type": "object"})
    assert way_out(model, grammar) == "{}"
    assert way_out(model, model.chat.grammar.calls(form, {"get": tool}, required=False, parallel=True)) == ""


def test_what_may_follow_a_token() -> None:
    model = small()
    matcher, ends = begun(model, model.plain.json(TOOL), '{"a": 1')
    one, brace, quote = (model.tokenizer.convert_tokens_to_ids(text) for text in ("1", "}", '"'))
    assert ends.affords(matcher, one, 1) and not ends.affords(matcher, one, 0)
    assert ends.affords(matcher, brace, 0) and not ends.affords(matcher, quote, 50)
    assert ends.completes(matcher, [one, brace]) and not ends.completes(matcher, [one]) and not ends.completes(matcher, [quote, brace])
    number, _ = begun(model, model.plain.json({"type": "integer"}), "1")
    assert ends.completes(number, []) and ends.completes(number, [one]) and not ends.completes(number, [brace])
    mask = ends.mask(matcher)
    assert mask[brace] and mask[one] and not mask[quote] and mask.shape == (len(model.tokenizer),)


@pytest.mark.parametrize(
    ("place", "texts"),
    [
        ("inside", ['"}}', '"}', '"', '": "', '", "', '"}, {"', "a", "é"]),
        ("inside", ['"', 'x"', "x}}}", '\\"}}']),
        ("opening", ["null", '""', '"', '{"', '"}}']),
        ("opening", ['""', "0", "[", "[{"]),
        ("elsewhere", ["]}", "}", "a", ",", '{"']),
        ("elsewhere", ["]", '": ', ",", "{}", "5", "-", "{", "[[", "\n"]),
        ("elsewhere", ['"}', '"', 'x"', "x", "null, "]),
    ],
)
def test_tokens_are_ordered_by_how_much_they_leave_open(place: str, texts: list[str]) -> None:
    costs = [deeper(text.encode(), place) for text in texts]
    assert costs == sorted(costs)
    assert texts[0] in ('"}}', "null", '""', "]") or costs[0] < costs[-1]
