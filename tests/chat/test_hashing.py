"""Two conversations have the same hash if and only if a model would read the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from agent_memory.chat import ChatFormat, root
from agent_memory.types import Message, ToolCall

TokenizerOf = Callable[[str], Any]
ASKED = Message("assistant", "Hm.", None, (ToolCall("1", "add", {"a": 1, "b": [2]}),))
OUTPUT = Message("tool", "3", "add", (), "1")


def test_what_counts(tokenizer_of: TokenizerOf) -> None:
    chat = ChatFormat(tokenizer_of("chatml"))
    first = chat.chain("0", ASKED)
    same = [
        replace(ASKED, tool_calls=(ToolCall("other", "add", MappingProxyType({"b": [2], "a": 1})),)), replace(ASKED, content="Hm.\n"),
    ]  # fmt: skip
    different = [
        replace(ASKED, content="Hm!"), replace(ASKED, role="user"), replace(ASKED, tool_calls=()),
        replace(ASKED, tool_calls=(ToolCall("1", "add", {"a": 1, "b": [3]}),)), replace(ASKED, tool_calls=ASKED.tool_calls * 2),
        replace(ASKED, tool_calls=(ToolCall("1", "sub", {"a": 1, "b": [2]}),)),
    ]  # fmt: skip
    assert all(chat.chain("0", message) == first for message in same)
    assert len({first, chat.chain("1", ASKED), *(chat.chain("0", message) for message in different)}) == 2 + len(different)
    assert chat.chain("0", OUTPUT) == chat.chain("0", replace(OUTPUT, tool_call_id=None))
    assert chat.chain("0", Message("user", "a ")) != chat.chain("0", Message("user", "a"))
    assert chat.chain("0", Message("user", "\udcff")) == chat.chain("0", Message("user", "\ufffd"))


def test_a_tools_name_counts_where_the_template_shows_it(tokenizer_of: TokenizerOf, custom: Any) -> None:
    hides, shows = ChatFormat(tokenizer_of("chatml")), ChatFormat(tokenizer_of("no_tool"))
    named = custom("{%- for m in messages %}{{- '<|im_start|>' + m.role + (m.name or '') + m.content + '<|im_end|>' }}{%- endfor %}")
    other = replace(OUTPUT, name="sub")
    assert hides.chain("0", OUTPUT) == hides.chain("0", other)
    assert shows.chain("0", OUTPUT) != shows.chain("0", other)
    assert ChatFormat(named).chain("0", OUTPUT) != ChatFormat(named).chain("0", other)


def test_every_part_of_the_root_counts() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    roots = [
        root("a", "m", "t", None), root("b", "m", "t", None), root("a", "n", "t", None), root("a", "m", "u", None),
        root("a", "m", "t", ""), root("a", "m", "t", "s"), root("a", "m", "t", None, tools), root("am", "", "t", None),
    ]  # fmt: skip
    assert len(set(roots)) == len(roots) and root("a", "m", "t", None, tools) == root("a", "m", "t", None, tuple(map(dict, tools)))


def test_the_hash_stays_what_it_is() -> None:
    """It is stored: a change here orphans every stored conversation."""
    from agent_memory.chat.hashing import link

    assert root("default", "model", "template", "Be brief.", []) == "b79b889cdbb376133dd3b158fc3feae895c2fc6400f78240f68f4dc554142412"
    assert link("0", ASKED, with_name=True) == "97f6051f02a37984ce742369a6d073efe778d22005257bed820e7d0f9ef2dca8"
