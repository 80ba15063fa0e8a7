"""LlamaIndex's messages and what a Session makes of them, and back."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.llms.agent_memory import AgentMemory

from agent_memory.errors import ConfigError, InvalidHistory
from agent_memory.types import Turn
from tests.integrations.llama_index_probes import prescribe, user


def turns(llm: AgentMemory) -> list[Turn]:
    return llm._open()[0].runtime.store.turns(str(llm.session_id), llm.namespace or "default")


def branches(llm: AgentMemory) -> list[str]:
    return llm._open()[0].branches(str(llm.session_id))


def message(role: MessageRole, *blocks: ContentBlock, **kwargs: Any) -> ChatMessage:
    return ChatMessage(role=role, blocks=list(blocks), additional_kwargs=kwargs)


async def test_thoughts_are_streamed_and_stand_in_a_block(llm: AgentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm._open()[0].runtime.tokenizer, "response_template", None)  # the pocket model's own knows no thoughts
    prescribe(monkeypatch, llm, *["<think>\nLet me see.\n</think>\n\nFour."] * 2, "Five.")
    pieces = list(llm.stream_chat([user("one")]))
    thoughts = "".join(piece.additional_kwargs.get("thinking_delta", "") for piece in pieces)
    assert thoughts.strip() == "Let me see." and "".join(piece.delta or "" for piece in pieces) == "Four."
    last = pieces[-1].message
    assert [type(block) for block in last.blocks] == [ThinkingBlock, TextBlock] and last.content == "Four."
    assert isinstance(pieces[3].message.blocks[0], ThinkingBlock)
    llm.chat([user("one"), last, user("two")])
    assert branches(llm) == [llm.session_id]


def test_messages_of_every_kind(llm: AgentMemory) -> None:
    block = ToolCallBlock(tool_call_id="7", tool_name="lookup", tool_kwargs='{"name": "a"}')
    legacy = [{"id": "8", "type": "function", "function": {"name": "lookup", "arguments": '{"name": "b"}'}}]
    cited = CitableBlock(title="t", source="s", content=[TextBlock(text="cited")])
    asked = [
        ChatMessage(role=MessageRole.DEVELOPER, content="Be brief."),
        message(MessageRole.USER, TextBlock(text="a"), CachePoint(cache_control=CacheControl(type="ephemeral")), cited),
        message(MessageRole.MODEL, ThinkingBlock(content="hm"), block),
        message(MessageRole.TOOL, TextBlock(text="A"), tool_call_id="7"),
        message(MessageRole.CHATBOT, TextBlock(text="b"), tool_calls=legacy),
        message(MessageRole.FUNCTION, TextBlock(text="B")),
        user("c"),
    ]
    llm.chat(asked)
    found = [(turn.role, turn.name, turn.text, turn.meta.get("tool_call_id")) for turn in turns(llm)]
    assert found[:-1] == [
        ("system", None, "Be brief.", None),
        ("user", None, "a\ncited", None),
        ("assistant", None, "", None),
        ("tool", "lookup", "A", "7"),
        ("assistant", None, "b", None),
        ("tool", "lookup", "B", "8"),
        ("user", None, "c", None),
    ]
    assert [call["arguments"] for turn in turns(llm) for call in turn.meta.get("tool_calls", ())] == [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (ImageBlock(url="http://localhost/x.png"), "image"),
        (AudioBlock(url="http://localhost/x.mp3"), "audio"),
        (VideoBlock(url="http://localhost/x.mp4"), "video"),
        (DocumentBlock(url="http://localhost/x.pdf"), "document"),
        (CitableBlock(title="t", source="s", content=[ImageBlock(url="http://localhost/x.png")]), "image"),
    ],
)
def test_what_is_no_text_is_refused(block: ContentBlock, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"type '{kind}' cannot be remembered"):
        AgentMemory().chat([message(MessageRole.USER, TextBlock(text="See:"), block)])


def test_a_result_without_its_call_and_arguments_that_are_none_are_refused(llm: AgentMemory) -> None:
    with pytest.raises(InvalidHistory, match="which no message before it makes"):
        llm.chat([user("one"), message(MessageRole.TOOL, TextBlock(text="A"), tool_call_id="7")])
    with pytest.raises(ConfigError, match="arguments of a call of 'lookup' are no JSON object"):
        llm.chat([user("one"), message(MessageRole.ASSISTANT, ToolCallBlock(tool_name="lookup", tool_kwargs="[1"))])
