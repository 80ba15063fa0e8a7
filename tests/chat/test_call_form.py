"""How templates write calls, and that what a model is held to is read back as the calls it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_memory.chat import ChatFormat
from agent_memory.chat.call_form import COMMON, CallForm, find_call_form
from agent_memory.chat.text import CUT
from agent_memory.structured import StructuredReplies
from agent_memory.types import Message, ReplyFormat, ToolCall
from tests.chat.builders import CHATML, ENDS, KINDS, TEMPLATES, byte_level, make
from tests.chat.test_reply import RESPONSE_TEMPLATE
from tests.model.constrained import Speaker, fits, marked, speaker
from tests.standard.rewriting import TEMPLATE as REWRITING

OPENED = CHATML.replace("assistant\n' }}{%- endif %}", "assistant\n<think>\n' }}{%- endif %}{# </think> #}")
EVERY = {name: (text, ENDS[name]) for name, text in TEMPLATES.items()}
EVERY |= {"rewriting": (REWRITING, "</s>")}
HAVE_THE_MARK = ("chatml", "forgetful", "rewriting")
SPACED = CallForm('<tool_call>\n{"name": "', '", "arguments": ', '}\n</tool_call>\n<tool_call>\n{"name": "', "}\n</tool_call>")
OWN = {"chatml": SPACED, "forgetful": SPACED}
NEWLINE = CallForm('<tool_call>{"name": "', '", "arguments": ', '}</tool_call>\n<tool_call>{"name": "', "}</tool_call>")
SCHEMAS: dict[str, dict[str, Any]] = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
    "say": {"type": "object", "properties": {"text": {"type": "string"}, "on": {"type": "string", "format": "date"}}, "required": ["text"]},
    "any": {"type": "object"},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "description": "Do.", "parameters": made}} for name, made in SCHEMAS.items()]


def suits(name: str, kind: str, markup: str) -> bool:
    """A token that is not special and that the template does not write is no control token, and so no mark; and not all of the rest."""
    if kind == "sentence_piece" and name not in ("chatml", "mistral"):
        return False
    return name in HAVE_THE_MARK if markup == "added" else name != "forgetful"


SOME = [(name, kind, markup) for name in EVERY for kind in sorted(KINDS) for markup in ("special", "added", "plain")]
MADE = [made for made in SOME if suits(*made)]


@pytest.fixture(scope="module")
def speakers() -> dict[tuple[str, str, str], Speaker]:
    return {}


@pytest.fixture
def model(request: pytest.FixtureRequest, speakers: dict[tuple[str, str, str], Speaker]) -> Speaker:
    name, kind, markup = request.param
    if request.param not in speakers:
        speakers[request.param] = marked(*EVERY[name], markup, KINDS[kind])
    return speakers[request.param]


every = pytest.mark.parametrize("model", MADE, ids="-".join, indirect=True)


@pytest.mark.parametrize(("name", "kind", "markup"), MADE, ids=lambda value: str(value))
def test_the_form_is_the_templates_own_or_the_common_one(name: str, kind: str, markup: str, speakers: Any) -> None:
    model = speakers.setdefault((name, kind, markup), marked(*EVERY[name], markup, KINDS[kind]))
    own = NEWLINE if name == "rewriting" or (name in ("gemma", "no_tool") and markup == "plain") else OWN.get(name, COMMON)
    assert model.chat.call_form == own
    if name in OWN:
        calls = [ToolCall(f"00000000{number}", "add", {"a": number, "b": 2}) for number in range(2)]
        ids = model.chat.append(Message("assistant", "", tool_calls=tuple(calls)), previous=[Message("user", "Hi.")], tools=TOOLS)
        assert own.write(*[(call.name, json.dumps(call.arguments)) for call in calls]) in model.tokenizer.decode(ids)


def said(model: Speaker, wanted: ReplyFormat, budget: int, seed: int, **liked: float) -> Any:
    """(what was parsed of a random reply held to a format, its text)"""
    held = StructuredReplies(model.chat, model.grammars).processor(wanted, TOOLS, budget)
    assert held is not None
    reply = model.say(held, model.noise(seed, liked), budget)
    assert len(reply.ids) <= budget
    parsed = model.chat.parse(reply.ids, reply.text, TOOLS)
    assert all(fits(SCHEMAS[call.name], dict(call.arguments)) for call in parsed.tool_calls)
    assert "<tool_call>" not in parsed.content
    return parsed, reply.text


@every
def test_whatever_a_model_says_it_is_read_back_as_calls(model: Speaker) -> None:
    parsed, text = said(model, ReplyFormat("required"), 90, 1)
    assert parsed.tool_calls and not parsed.content, text
    parsed, text = said(model, ReplyFormat("say"), 70, 3)
    assert [call.name for call in parsed.tool_calls] == ["say"] and not parsed.content, text
    parsed, text = said(model, ReplyFormat("required", parallel=False), 70, 4)
    assert len(parsed.tool_calls) == 1 and not parsed.content, text


@every
def test_text_alone_calls_nothing(model: Speaker) -> None:
    for seed, choice in enumerate(("none", "auto")):
        parsed, text = said(model, ReplyFormat(choice), 30, seed, **{"<tool": -40.0})
        assert not parsed.tool_calls and (model.chat.grammar._thoughts or parsed.content.strip() == text.strip())


@every
def test_a_model_that_may_call_may_also_talk_first(model: Speaker) -> None:
    form, budget = model.chat.call_form, 110
    assert form is not None
    text = f"the fox {form.write(('add', '{}'))}"
    held = StructuredReplies(model.chat, model.grammars).processor(ReplyFormat(), TOOLS, budget)
    assert held is not None
    reply = model.say(held, model.script(text), budget)
    parsed = model.chat.parse(reply.ids, reply.text, TOOLS)
    assert parsed.content == "the fox" and [call.name for call in parsed.tool_calls] == ["add"]
    assert fits(SCHEMAS["add"], dict(parsed.tool_calls[0].arguments)) and reply.reason == "stop"


@pytest.mark.parametrize("markup", ["special", "added", "plain"])
@pytest.mark.parametrize("template", [OPENED, TEMPLATES["forgetful"]], ids=["opened", "forgetful"])
def test_a_thought_comes_to_its_end_before_the_tokens_run_out(template: str, markup: str) -> None:
    model = marked(template, "<|im_end|>", markup)
    grammar, begin = model.chat.grammar, "" if template == OPENED else "<think>"
    assert model.chat.thinking is (template == OPENED)
    calls = [grammar.calls(SPACED, SCHEMAS, required=required, parallel=True) for required in (True, False)]
    for number, held in enumerate((*calls, grammar.text(SPACED), grammar.json(SCHEMAS["add"]))):
        script = model.script(begin + "the quick brown fox jumps over the lazy dog and " * 20)
        reply = model.say(model.grammars.processor(held, 120), script, 120)
        parsed = model.chat.parse(reply.ids, reply.text, TOOLS)
        assert parsed.reasoning.startswith("the quick brown fox") and "</think>" in reply.text and len(reply.ids) <= 120
        assert bool(parsed.tool_calls) is (number == 0)
        if number == 3:
            assert fits(SCHEMAS["add"], json.loads(parsed.content))


def test_a_form_of_the_tokenizers_own_parser_is_used() -> None:
    template = CHATML.replace("\n<tool_call>\n", "<<").replace("}\n</tool_call>", "}>>")
    tokenizer = make(byte_level, template, "<|im_end|>")
    assert ChatFormat(tokenizer).call_form == COMMON
    tokenizer.response_template = RESPONSE_TEMPLATE
    model = speaker(tokenizer)
    assert model.chat.call_form == CallForm('<<{"name": "', '", "arguments": ', '}>><<{"name": "', "}>>")
    parsed, text = said(model, ReplyFormat("required"), 90, 1)
    assert parsed.tool_calls and text.startswith("<<") and text.endswith(">>")


NAMES, ARGUMENTS = ("xa", "xb"), ({"value": 0}, {"value": 1})


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('[{"name": "xa", "arguments": {"value": 0}}, {"name": "xb", "arguments": {"value": 1}}]<e>',
         CallForm('[{"name": "', '", "arguments": ', '}, {"name": "', "}]")),
        ('\n xa({"value": 0});xb({"value":1});<e>', CallForm("", "(", ");", ");")),
        ('xa {"value": 0}xb {"value": 1}', CallForm("", " ", "", "")),
        ('xa({"value": 0}) xb[{"value": 1}]', None),
        ('xa({"value": 0})', None),
        ('xb({"value": 1}) xa({"value": 0})', None),
        ('xa({"value": 5}) xb({"value": 1})', None),
        ('xa(value=0) xb(value=1)', None),
        ('xa("{\\"value\\": 0}") xb("{\\"value\\": 1}")', None),
        ('xa {"value": 0', None),
        (f'<to{CUT}ol>xa({{"value": 0}})xb({{"value": 1}})', None),
        ("", None),
    ],
)  # fmt: skip
def test_a_form_is_a_name_and_then_an_object_twice(text: str, form: CallForm | None) -> None:
    assert find_call_form(text, NAMES, ARGUMENTS, "<e>") == form
    if form is not None:
        again = form.write(*((name, json.dumps(value)) for name, value in zip(NAMES, ARGUMENTS, strict=True)))
        assert again.replace(" ", "") == text.strip().removesuffix("<e>").replace(" ", "")
