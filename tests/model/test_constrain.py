"""A reply that is held to a grammar: whatever a model wants to say, it fits, and it ends before its tokens run out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SuppressTokensLogitsProcessor

from agent_memory.chat.call_form import COMMON
from agent_memory.errors import ConfigError, ModelError
from agent_memory.model import constrain
from agent_memory.model.constrain import LIKELY, Grammars
from agent_memory.types import Sampling
from tests.model.constrained import BIG, SCHEMAS, pocket_sized, small, valid

AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}
BOTH = pytest.mark.parametrize("of", [small, pocket_sized], ids=["small", "pocket"])


@BOTH
@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_logits_the_text_fits_within_the_tokens_there_are(name: str, of: Any) -> None:
    model, schema = of(), SCHEMAS[name]
    grammar = model.plain.json(schema)
    least = model.least(grammar)
    for seed, budget in enumerate((least, least + 1, least + 5, least + 30)):
        said = model.babble(grammar, budget, seed)
        assert valid(schema, said.text) and len(said.ids) <= budget, (budget, said)
    with pytest.raises(ConfigError, match=f"takes {least} tokens; raise it"):
        model.grammars.processor(grammar, least - 1)


@pytest.mark.parametrize(("name", "liked"), [("list of lists", "["), ("linked", "{"), ("any object", "{"), ("tree", "{["), ("rows", ",")])
def test_a_model_that_only_opens_is_brought_to_its_end(name: str, liked: str) -> None:
    model = small()
    grammar = model.plain.json(SCHEMAS[name])
    for budget in (40, 100):
        said = model.babble(grammar, budget, liked=dict.fromkeys(liked, 40.0))
        assert valid(SCHEMAS[name], said.text) and said.text.count(liked[0]) > 1 and len(said.ids) <= budget


@pytest.mark.parametrize("name", ["optional and long", "null or long"])
def test_what_could_not_be_ended_is_not_begun(name: str) -> None:
    model, grammar = small(), small().plain.json(SCHEMAS[name])
    whole = model.least(model.plain.json(BIG))
    for budget in (whole // 2, whole - 1):
        said = model.babble(grammar, budget, liked={"{": 30.0, "big": 30.0})
        assert valid(SCHEMAS[name], said.text) and "part" not in said.text
    said = model.babble(grammar, whole + 40, liked={"{": 30.0, "big": 30.0})
    assert valid(SCHEMAS[name], said.text) and "part8" in said.text


def test_text_keeps_its_least_likely_tokens_while_there_is_room() -> None:
    model = small()
    grammar = model.plain.calls(COMMON, {"look": AB}, required=False, parallel=True)
    scores = torch.linspace(0, 50, model.grammars._vocabulary)[None]
    kept = [
        int(model.grammars.processor(grammar, budget)(torch.tensor([[0]]), scores.clone()).isfinite().sum())
        for budget in (constrain.FREE + 1, constrain.FREE)
    ]
    assert kept[0] > 2 * LIKELY > kept[1] > 0
    string = model.grammars.processor(model.plain.json({"type": "string"}), 2 * constrain.FREE)
    string(torch.tensor([[0]]), scores)  # type: ignore[arg-type]
    quote = model.tokenizer.convert_tokens_to_ids('"')
    assert string(torch.tensor([[0, quote]]), torch.zeros_like(scores)).isfinite().sum() <= LIKELY  # type: ignore[arg-type]


def test_few_new_ways_out_are_looked_for_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looked = small(), list[int]()
    held, ends = model.grammars.processor(model.plain.json({}), 60), model.grammars._tools()[1]
    affords = ends.affords

    def watch(matcher: Any, token: int, left: int) -> bool:
        looked.append(token)
        return affords(matcher, token, left)

    monkeypatch.setattr(ends, "affords", watch)
    held(torch.tensor([[0]]), torch.zeros(1, len(model.tokenizer)))  # type: ignore[arg-type]
    assert len(looked) == constrain.WALKS


def test_text_that_may_end_does_not_begin_what_could_not() -> None:
    model = small()
    grammar = model.plain.calls(COMMON, {"look": BIG}, required=False, parallel=True)
    call = model.least(model.plain.calls(COMMON, {"look": BIG}, required=True, parallel=True))
    assert call > 90
    for budget in (call - 1, call + 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constrain, "FREE", 60)
            said = model.say(model.grammars.processor(grammar, budget), model.script("the fox <tool_call>"), budget)
        assert ("<tool_call>" in said.text) is (budget > call) and len(model.chat.parse(said.ids).tool_calls) == (budget > call)


def test_a_long_reply_is_looked_after_only_near_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "LONGEST", 40)
    model, schema = small(), SCHEMAS["any object"]
    grammar = model.plain.json(schema)
    held = model.grammars.processor(grammar, 90)
    look, asked = held._checked, list[int]()  # type: ignore[attr-defined]

    def watch(mask: Tensor, scores: Tensor, path: list[int]) -> Any:
        asked.append(len(path))
        return look(mask, scores, path)

    monkeypatch.setattr(held, "_checked", watch)
    said = model.say(held, model.noise(3, {"}": -30.0}), 90)
    assert valid(schema, said.text) and len(said.ids) == 90 and len(asked) == 40


@pytest.mark.parametrize("text", ['{"a": 12, "b": "x"}', '{"a": 404, "b": "the {quick} \\"fox\\" é\\n"}'])
def test_a_reply_that_fits_is_not_changed(text: str) -> None:
    model, grammar = small(), small().plain.json(AB)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    for budget in (len(ids), len(ids) + 1, len(ids) + 30, 2000):
        said = model.say(model.grammars.processor(grammar, budget), model.script(text), budget)
        assert said.ids == [*ids, *model.chat.end_ids][:budget] and said.text == text
        assert said.reason == ("length" if budget == len(ids) else "stop")


def test_a_reply_is_changed_from_where_it_no_longer_fits() -> None:
    model, grammar = small(), small().plain.json(AB)
    said = model.say(model.grammars.processor(grammar, 60), model.script('{"a": 12, "c": "x"}'), 60)
    assert said.text.startswith('{"a": 12, "b": ') and valid(AB, said.text)


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ("", '{"a": 0, "b": ""}'),
        ('{"a": 12', '{"a": 12, "b": ""}'),
        ('{"a": 12, "b": "the fox', '{"a": 12, "b": "the fox"}'),
        ('{"a": 12, "b": "x\\', None),
        ('{"a": 1, "b": "x"}', '{"a": 1, "b": "x"}'),
    ],
)
@BOTH
def test_a_model_that_wants_to_end_where_it_may_not_takes_the_shortest_way_out(begun: str, whole: str | None, of: Any) -> None:
    model = of()
    grammar = model.plain.json(AB)
    said = model.say(model.grammars.processor(grammar, 200), model.script(begun), 200)
    assert said.reason == "stop" and valid(AB, said.text) and said.text.startswith(begun)
    assert whole is None or json.loads(said.text)["b"] == json.loads(whole)["b"] and len(said.text) <= len(whole) + 2


def test_the_way_out_is_the_one_from_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, schema, walks = small(), {"type": "array", "items": {"type": "string", "minLength": 30}, "minItems": 2}, list[int]()
    ends, begun = model.grammars._tools()[1], '["' + "the quick brown fox " * 3
    held, path = model.grammars.processor(model.plain.json(schema), 500), ends.path

    def watch(matcher: Any, limit: int) -> Any:
        walks.append(limit)
        return path(matcher, limit)

    monkeypatch.setattr(ends, "path", watch)
    said = model.say(held, model.script(begun), 500)
    assert said.text.startswith(begun + '", "') and valid(schema, said.text)
    assert len(walks) < 6, "a way out that was begun is followed, and not looked for again"


def test_an_end_is_offered_where_nothing_else_can_be_afforded() -> None:
    model = small()
    grammar = model.plain.calls(COMMON, {"look": BIG}, required=False, parallel=True)
    mark = model.tokenizer.convert_tokens_to_ids("<tool_call>")
    logits = torch.full((len(model.tokenizer),), -1e6)
    logits[mark] = 1e6
    said = model.say(model.grammars.processor(grammar, 20), lambda _: logits, 20)
    assert said.ids == list(model.chat.end_ids) and said.reason == "stop"
    logits[:] = 0
    logits[mark], logits[model.tokenizer.convert_tokens_to_ids("Ġfox")] = 30.0, 15.0
    assert model.say(model.grammars.processor(grammar, 20), lambda _: logits, 20).text == " fox" * 20


def test_nothing_is_offered_that_the_grammar_does_not_allow() -> None:
    model, grammar = pocket_sized(), pocket_sized().plain.json(AB)
    for seed in range(4):
        held, ids = model.grammars.processor(grammar, 25), [0]
        scores = model.noise(seed)([])[None]
        scores[0, model.chat.end_ids[0]] = scores.max() - 0.1
        matcher = model.grammars._compiled(grammar)[0].deep_copy()
        while ids[-1] not in model.chat.end_ids and len(ids) < 25:
            offered = held(torch.tensor([ids]), scores).isfinite()[0]  # type: ignore[arg-type]
            assert not (offered.numpy() & ~model.grammars._tools()[1].mask(matcher)).any()
            ids.append(int(offered.nonzero().flatten()[len(ids) % int(offered.sum())]))
            matcher.consume_token(ids[-1])


def test_any_of_several_ids_may_end_a_reply() -> None:
    model = small()
    ends = [model.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|eot|>")]
    grammars = Grammars(model.tokenizer, len(model.tokenizer), ends)
    grammar = model.plain.json(AB)
    for end in ends:
        for text in ('{"a": 1, "b": "x"}', '{"a": 1'):
            held = grammars.processor(grammar, 60)
            ids, scores = [0], torch.zeros(1, len(model.tokenizer))
            while ids[-1] not in ends:
                scores = model.script(text, end)(ids[1:])[None]
                ids.append(int(held(torch.tensor([ids]), scores).argmax()))  # type: ignore[arg-type]
            said = model.tokenizer.decode(ids[1:-1])
            assert ids[-1] == end and (said == text if text.endswith("}") else json.loads(said) == {"a": 1, "b": ""})


@pytest.mark.parametrize("width", [0, 1, 40])
def test_logits_may_be_wider_than_the_tokenizer(width: int) -> None:
    model = small()
    wide = len(model.tokenizer) + width
    logits = torch.cat([torch.zeros(len(model.tokenizer)), torch.full((width,), 50.0)]) + torch.arange(wide) % 7
    for vocabulary in (wide, len(model.tokenizer)):
        held = Grammars(model.tokenizer, vocabulary, model.chat.end_ids).processor(model.plain.json(AB), 30)
        said = model.say(held, lambda _: logits, 30)
        assert valid(AB, said.text) and max(said.ids) < len(model.tokenizer)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=5.0, top_p=0.9), Sampling(temperature=0.7, top_k=5)])
def test_sampled_replies_fit(sampling: Sampling) -> None:
    model = small()
    texts = set()
    for seed in range(4):
        chosen = Sampling(**{**{name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}, "seed": seed})
        held = model.grammars.processor(model.plain.json(AB), 40)
        texts.add(model.say(held, lambda _: torch.zeros(len(model.tokenizer)), 40, chosen).text)
    assert len(texts) == 4 and all(valid(AB, text) for text in texts)


def test_a_sampled_text_may_go_on_with_many_words() -> None:
    model = small()
    held = model.grammars.processor(model.plain.json({"type": "string"}), 20)
    scores = torch.zeros(1, len(model.tokenizer))
    begun = [*model.tokenizer.encode('"the', add_special_tokens=False)]
    for size in range(len(begun)):
        held(torch.tensor([[0, *begun[:size]]]), scores)  # type: ignore[arg-type]
    assert int((held(torch.tensor([begun]), scores) == 0).sum()) > LIKELY // 2  # type: ignore[arg-type]


def test_other_processors_come_first_and_hold() -> None:
    model = small()
    banned = [token for token in range(len(model.tokenizer)) if "7" in model.tokenizer.decode([token])]
    seen = list[Tensor]()

    def watch(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores.clone())
        return scores

    held = model.grammars.processor(model.plain.json(SCHEMAS["nested"]), 90)
    said = model.say([watch, SuppressTokensLogitsProcessor(banned), held], model.noise(5, {"7": 20.0}), 90)
    assert valid(SCHEMAS["nested"], said.text) and "7" not in said.text
    assert all(bool(torch.isfinite(scores).all()) for scores in seen)


def test_processors_that_leave_nothing_are_named() -> None:
    model = small()
    held = model.grammars.processor(model.plain.json(AB), 90)
    banned = [token for token in range(len(model.tokenizer)) if "{" in model.tokenizer.decode([token])]
    with pytest.raises(ModelError, match="another processor rules out every token"):
        model.say([SuppressTokensLogitsProcessor(banned), held], model.noise(0), 90)


def test_a_token_that_the_grammar_does_not_allow_breaks_off() -> None:
    model = small()
    held = model.grammars.processor(model.plain.json(AB), 90)
    scores = torch.zeros(1, len(model.tokenizer))
    held(torch.tensor([[0]]), scores)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="constrained decoding broke off: .*doesn't satisfy the grammar"):
        held(torch.tensor([[0, model.tokenizer.convert_tokens_to_ids("a")]]), scores)  # type: ignore[arg-type]


def test_scores_are_masked_on_a_copy_and_otherwise_as_they_were() -> None:
    model = small()
    held = model.grammars.processor(model.plain.json({"enum": [True, None, 5]}), 20)
    scores = model.noise(1)([])[None]
    before = scores.clone()
    masked = held(torch.tensor([[0]]), scores)  # type: ignore[arg-type]
    kept = torch.isfinite(masked)
    assert torch.equal(scores, before) and torch.equal(masked[kept], before[kept])
    assert {model.tokenizer.decode([token])[:1] for token in kept[0].nonzero().flatten().tolist()} <= {"t", "n", "5"}


def test_a_text_does_not_end_inside_a_character() -> None:
    model = small()
    grammar = model.plain.text(COMMON)
    ids = model.tokenizer.encode("👩‍🚀", add_special_tokens=False)
    for budget in range(1, len(ids) + 1):
        said = model.say(model.grammars.processor(grammar, budget), model.script("👩‍🚀"), budget)
        assert "\ufffd" not in said.text
