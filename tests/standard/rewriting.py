"""The pocket model with a chat template that rewrites history, as a folder.

The template is of the Qwen3 kind, written anew: thoughts of answers before the last question are dropped, those after it are kept, and
an answer that is the last message gets an empty thought if it has none. Tools are JSON in the system prompt, their outputs user turns.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from agent_memory import pocket

TEMPLATE = """\
{%- set ns = namespace(last=messages | length - 1, looking=true) -%}
{%- for m in messages[::-1] -%}
{%- set at = messages | length - 1 - loop.index0 -%}
{%- if ns.looking and m.role == 'user' and not m.content.startswith('<tool_response>') -%}
{%- set ns.looking = false -%}{%- set ns.last = at -%}
{%- endif -%}
{%- endfor -%}
{%- set head = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools or head -%}
{{- '<|system|>' + head -}}
{%- if tools -%}
{{- ('\\n\\n' if head else '') + '# Tools\\n<tools>' -}}
{%- for tool in tools -%}
{%- set f = tool.function -%}
{{- '\\n' + {'name': f.name, 'parameters': f.parameters} | tojson -}}
{%- endfor -%}
{{- '\\n</tools>' -}}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- set content = m.content if m.content is string else '' -%}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
{{- '<|' + m.role + '|>' + content + '<|end|>\\n' -}}
{%- elif m.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}
{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|assistant|>' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in m.tool_calls or [] -%}
{{- ('\\n' if content or not loop.first else '') + '<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>\\n' -}}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|user|>' -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_response>\\n' + content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def save_rewriting_model(folder: Path) -> Path:
    """Write the pocket model with that template to ``folder``; its own response parser, which knows no thoughts, is left out."""
    shutil.copytree(pocket.path(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("response_template", None)
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder
