"""Small trained tokenizers, and chat templates of the shapes that are out there."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>",
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHATML = """\
{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'system' and not loop.first or m.role == 'user' %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>tool\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Tools stand in the first user turn, as in Llama 3.1; a tool's output is JSON.
LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(first=true) %}
{%- for m in messages %}
{%- set content = m.content | trim %}
{%- if tools and m.role == 'user' and ns.first %}{%- set ns.first = false %}
{%- set content = 'Given these functions:\n\n' + (tools | tojson) + '\n\n' + content %}{%- endif %}
{%- if m.role == 'tool' %}{{- '<|header|>ipython<|/header|>\n\n' }}{{- content | tojson }}{{- '<|eot|>' }}
{%- elif m.tool_calls %}{{- '<|header|>assistant<|/header|>\n\n' }}
{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}{{- m.tool_calls[0].function.arguments | tojson }}{{- '}<|eot|>' }}
{%- else %}{{- '<|header|>' + m.role + '<|/header|>\n\n' + content + '<|eot|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{%- endif %}"""

# System prompt and tools stand before the last user turn; strict alternation; call ids of nine characters; no generation prompt.
MISTRAL = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set talk = messages[1:] %}
{%- else %}{%- set talk = messages %}{%- endif %}
{%- set user = talk | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- set ns = namespace(turn=0) %}
{%- for m in talk %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}
{%- set ns.turn = ns.turn + 1 %}{%- endif %}
{%- if m.role == 'user' %}
{%- if tools and m == user[-1] %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- if m == user[-1] and system is defined %}{{- '[INST]' + system + '\n\n' + m.content + '[/INST]' }}
{%- else %}{{- '[INST]' + m.content + '[/INST]' }}{%- endif %}
{%- elif m.tool_calls %}{{- '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('call ids must have nine characters') }}{%- endif %}
{{- call.function | tojson }}{{- ', ' if not loop.last }}{%- endfor %}{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}
{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}
{%- if m.role not in ['user', 'assistant'] %}{{- raise_exception('unknown role') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

NO_TOOL = """\
{%- for m in messages %}
{%- if m.role not in ['system', 'user', 'assistant'] %}{{- raise_exception('no tools here') }}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Drops the reasoning of replies before the last question, and puts outputs of one step into one user turn.
FORGETFUL = """\
{%- if tools %}{{- '<|im_start|>system\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content.split('</think>')[-1].lstrip('\n') if '</think>' in m.content else m.content %}
{%- set thought = m.reasoning_content if m.reasoning_content is defined else '' %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- content }}
{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>\n' }}{{- call.function | tojson }}{{- '\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

TEMPLATES = {
    "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "no_tool": NO_TOOL, "forgetful": FORGETFUL,
}  # fmt: skip
ENDS = {
    "chatml": "<|im_end|>", "llama3": "<|eot|>", "mistral": "</s>", "gemma": "<end_of_turn>", "no_tool": "<|im_end|>",
    "forgetful": "<|im_end|>",
}  # fmt: skip

CORPUS = [
    "the quick brown fox jumps over the lazy dog and returns 404 not found", "user assistant system tool model ipython",
    '{"type": "function", "function": {"name": "lookup", "description": "Look up.", "parameters": {}}}',
    "What is the answer?\n\nIt is 42.\n",
]  # fmt: skip


def byte_level() -> Any:
    """GPT-2 style."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return inner


def sentence_piece() -> Any:
    """Llama-2 style: a space is put before the first word of the sequence."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    octets = [f"<0x{value:02X}>" for value in range(256)]
    inner.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *octets], show_progress=False))
    # The octets are ordinary vocabulary in real tokenizers; keep the trained model, drop their special matching.
    clean = Tokenizer(inner.model)
    clean.pre_tokenizer, clean.decoder = inner.pre_tokenizer, inner.decoder
    return clean


def compatible() -> Any:
    """Byte-level after NFKC, with added tokens matched on the normalised text."""
    inner = byte_level()
    inner.normalizer = normalizers.NFKC()
    return inner


KINDS = {"byte_level": byte_level, "sentence_piece": sentence_piece}


def make(kind: Any, template: str, end: str) -> Any:
    """A transformers tokenizer."""
    wrap: Any = PreTrainedTokenizerFast
    tokens = {"bos_token": "<s>", "eos_token": end, "pad_token": "<pad>"}
    tokenizer = wrap(tokenizer_object=kind(), clean_up_tokenization_spaces=False, **tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.add_tokens(list(PLAIN_ADDED))
    tokenizer.chat_template = template
    return tokenizer
