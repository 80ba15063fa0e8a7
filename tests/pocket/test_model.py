"""The pocket model's weights: small, stock to load, and right inside its window."""

# ruff: noqa: S311  (generated text, not secrets)

import random

import pytest

from agent_memory.pocket import data, dialogues, path

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def loaded():
    from agent_memory.pocket.score import load

    return load(path())


def say(loaded, messages, tools=None):
    """What the model says next, as plain transformers generates it."""
    model, tokenizer = loaded
    ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :])


def test_the_weights_are_small_and_stock(loaded):
    model, tokenizer = loaded
    assert (path() / "model.safetensors").stat().st_size <= 16_000_000
    assert model.config.max_position_embeddings == 512
    assert len(tokenizer) == model.config.vocab_size
    assert model.__class__.__module__.startswith("transformers.")


@pytest.mark.parametrize("real", [False, True])
def test_answers_inside_the_window(loaded, real):
    from agent_memory.pocket import batches, exact
    from agent_memory.pocket.score import PLAIN

    model, tokenizer = loaded
    made = exact.sequences(batches.Renderer(tokenizer), PLAIN, 12, 512, 77, real)
    right, asked = exact.merge(exact.tally(model, made, tokenizer.pad_token_id)[0])
    assert asked >= 40
    assert right / asked >= 0.9


def test_near_duplicates_are_told_apart(loaded):
    rng = random.Random(3)
    right = 0
    for _ in range(6):
        first = data.make_record(rng, n_fields=1)
        ((key, value),) = first.fields.items()
        twin = data.Record(data.make_name(rng, like=first.name), {key: value[::-1]})
        records = [first, twin]
        rng.shuffle(records)
        text = "\n".join(data.render(record, "lines") for record in records)
        messages = [{"role": "tool", "name": "lookup", "content": text}]
        messages.append({"role": "user", "content": data.question(first.name, key)})
        right += say(loaded, messages) == data.answer(first.name, key, value) + "<|end|>"
    assert right >= 5


def test_a_tool_is_called_and_its_output_read(loaded):
    tools = [dialogues.tool_schema("lookup", "name", "Look up a record.")]
    messages = [{"role": "user", "content": data.lookup("quarn-vault")}]
    said = say(loaded, messages, tools)
    assert said == '<tool_call>{"name": "lookup", "arguments": {"name": "quarn-vault"}}</tool_call><|end|>'
    record = data.Record("quarn-vault", {"version": "2.14.0", "license": "MIT"})
    messages += [dialogues.tool_call(tools[0], "quarn-vault"), {"role": "tool", "name": "lookup", "content": data.render(record, "json")}]
    assert say(loaded, messages, tools) == f"{dialogues.DONE}<|end|>"
    messages += [{"role": "assistant", "content": dialogues.DONE}, {"role": "user", "content": data.question("quarn-vault", "version")}]
    assert say(loaded, messages, tools) == "quarn-vault version: 2.14.0<|end|>"


def test_teacher_forced_exactness_is_what_greedy_decoding_says(loaded):
    from agent_memory.pocket import batches, exact

    model, tokenizer = loaded
    shape = dialogues.Shape(facts=3, questions=2, noise=0.0, calls=0.0)
    script = dialogues.script(random.Random(5), shape)
    sequence = batches.Renderer(tokenizer).sequence(script, 512)
    _, wrong = exact.tally(model, [sequence], tokenizer.pad_token_id)
    last = script.messages[-1]["content"] + "<|end|>"
    start = sequence.spans[-1][0]
    exactly = not any(len(said) == len(sequence.ids) - start and kind == sequence.spans[-1][2] for _, kind, said in wrong)
    assert (say(loaded, script.messages[:-1]) == last) == exactly
