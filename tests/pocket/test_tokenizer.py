"""The pocket tokenizer: lossless on anything, its chat template prefix-stable, its tool calls parsed back."""

# ruff: noqa: S311  (generated text, not secrets)

import random

import pytest

from agent_memory.pocket import data, dialogues, path

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(path())


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "   two  spaces\t\ttabs\r\n\n", "emoji \U0001f642\U0001f3f3\ufe0f\u200d\U0001f308 and \u00fcn\u00efc\u00f6de \u6f22\u5b57",
        "NUL \x00 and \x1b[31m controls", "cafe\u0301 stays decomposed", '{"name": "a", "b": "c"}', "<|not a token|>", "1234567890.00",
    ],
)  # fmt: skip
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_random_bytes_come_back(tokenizer):
    raw = random.Random(0).randbytes(5000)
    for text in (raw.decode("latin-1"), raw.decode("utf-8", errors="replace")):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_names_and_values_are_the_same_tokens_in_every_layout(tokenizer):
    name, value = "quarn-vault_3", "2.14.0rc1"
    wanted_name, wanted_value = (tokenizer(text).input_ids for text in (name, value))
    texts = [data.render_fact(name, "version", value, layout) for layout in data.LAYOUTS]
    for text in [*texts, data.answer(name, "version", value)]:
        ids = tokenizer(text).input_ids
        for wanted in (wanted_name, wanted_value):
            assert any(ids[at : at + len(wanted)] == wanted for at in range(len(ids))), text


def test_fields_are_single_tokens(tokenizer):
    assert all(len(tokenizer(field).input_ids) == 1 for field in data.FIELDS)


def test_rendering_a_beginning_is_the_beginning_of_rendering_all(tokenizer):
    for seed in range(20):
        script = dialogues.script(random.Random(seed), dialogues.Shape(calls=0.5))
        texts = [
            tokenizer.apply_chat_template(script.messages[:count], tools=script.tools or None, tokenize=False)
            for count in range(1, len(script.messages) + 1)
        ]
        assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))


def test_the_renderer_of_training_equals_the_chat_template(tokenizer):
    from agent_memory.pocket.batches import Renderer

    renderer = Renderer(tokenizer)
    for seed in range(20):
        script = dialogues.script(random.Random(seed), dialogues.Shape(calls=0.5))
        stock = tokenizer.apply_chat_template(script.messages, tools=script.tools or None, return_dict=False)
        assert renderer.sequence(script, 10**6).ids == stock


def test_a_tool_call_is_parsed_back(tokenizer):
    tool = dialogues.tool_schema("lookup", "name", "Look up a record.")
    message = dialogues.tool_call(tool, "quarn-vault")
    text = tokenizer.apply_chat_template([message], tokenize=False).removeprefix("<|assistant|>")
    parsed = tokenizer.parse_response(text, prefix="<|assistant|>")
    assert parsed["tool_calls"][0]["function"] == {"name": "lookup", "arguments": {"name": "quarn-vault"}}
    assert tokenizer.parse_response("a b: c<|end|>", prefix="<|assistant|>")["content"] == "a b: c"
