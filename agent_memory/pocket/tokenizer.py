"""The pocket model's tokenizer: trained on generated text, byte-level, lossless.

Knows how text is cut so that names and values become the same tokens wherever they stand, and the chat
template. It knows no model. `python -m agent_memory.pocket.tokenizer` writes it into the weights folder.
"""

# ruff: noqa: S311  (generated text, not secrets)

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_memory.pocket import path, values, words

VOCABULARY = 3072
WINDOW = 512
PAD, END = "<|pad|>", "<|end|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<tool_call>", "</tool_call>")

# One separator between name and field, one between field and value: then a fact in any layout lines up, token
# for token, with the answer that restates it, and copying after a match needs no notion of the layout.
SEPARATORS = (
    '{"name": "', '", "arguments": {"', '"}}', '": "', '", "', '"}', " is the ", " me the ", " up the ", " does ", " have",
    " of ", " is ", " has ", " up ", " = ", " | ", ": ", ", ", "==", ">=", "<=", "~=", "://", " (", "Note: ",
)  # fmt: skip

# What `tokenizer.parse_response` needs to turn generated text back into a message.
RESPONSE = {
    "start_anchor": "<|assistant|>",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {"content": "text", "close": END},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}

TEMPLATE = """\
{%- set head = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' -%}
{%- if tools or head %}{{- '<|system|>' + head }}
{%- if tools %}{{- '\\n' if head }}{{- 'Tools:' }}
{%- for tool in tools %}{%- set f = tool.function if tool.function is defined else tool %}
{{- '\\n' + f.name + '(' }}
{%- if f.parameters is defined and f.parameters.properties is defined %}{{- f.parameters.properties | list | join(', ') }}{%- endif %}
{{- '): ' + (f.description or '').split('\\n')[0] }}
{%- endfor %}{%- endif %}{{- '<|end|>' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'system' %}{%- if not loop.first %}{{- '<|system|>' + m.content + '<|end|>' }}{%- endif %}
{%- elif m.role == 'tool' %}{{- '<|tool|>' + (m.name + '\\n' if m.name is defined and m.name else '') + m.content + '<|end|>' }}
{%- elif m.role == 'assistant' %}{{- '<|assistant|>' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}{%- set f = call.function if call.function is defined else call %}
{%- set a = f.arguments if f.arguments is string else f.arguments | tojson %}
{{- '<tool_call>{"name": "' + f.name + '", "arguments": ' + a + '}</tool_call>' }}
{%- endfor %}{{- '<|end|>' }}
{%- else %}{{- '<|user|>' + m.content + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""


def pattern() -> str:
    """The cut: separators whole, camel-case words, digits by three, runs of spaces, all else alone."""
    import re

    fixed = "|".join(re.escape(text).replace("\\ ", " ") for text in SEPARATORS)
    return rf"{fixed}|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]{{1,3}}| +|[^A-Za-z0-9 ]"


def _corpus(seed: int, count: int) -> Iterator[str]:
    """Pieces to merge, the ones that must become single tokens again and again."""
    rng = random.Random(seed)
    forced = (*SEPARATORS, *words.FIELDS, "What", "Tell", "Which", "Look", "Tools", "Noted", "Done", "know", "lookup", "name")
    for _ in range(count // 40):
        yield from forced
    for number in range(1000):
        yield from [f"{number:03d}"] * (count // 200)
    for number in range(100):
        yield from [f"{number:02d}"] * (count // 20)
    plain = (*values.plain_words(), *values.tech_words())
    for _ in range(count):
        yield values.pseudo(rng)
        yield from (rng.choice(plain), rng.choice(plain))
        if rng.random() < 0.25:
            yield values.word(rng).capitalize()
            yield rng.choice((rng.choice(words.FIRST), rng.choice(words.TITLES), rng.choice(words.LICENSES)))
        if rng.random() < 0.05:
            yield rng.choice((rng.choice(words.SECTIONS), rng.choice(words.STATES), values.url(rng), values.version(rng)))
        if rng.random() < 0.1:
            yield rng.choice((*words.PRIORITIES, *words.ARCHITECTURES, *words.PLACES))


def train(seed: int = 0, count: int = 60_000) -> Any:
    """The trained tokenizer, as transformers wraps it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(pattern()), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False, max_token_length=24,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(_corpus(seed, count), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, additional_special_tokens=list(SPECIAL[2:6]),
        model_max_length=WINDOW, clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip
    wrapped.chat_template = TEMPLATE
    wrapped.response_template = RESPONSE
    return wrapped


def main() -> None:
    """Train and write the tokenizer."""
    parser = argparse.ArgumentParser(description="Train the pocket tokenizer on generated text.")
    parser.add_argument("--out", type=Path, default=path())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = train(args.seed)
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} tokens in {args.out}")


if __name__ == "__main__":
    main()
