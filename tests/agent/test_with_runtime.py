"""The agent over a real Session: everything but a clever model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory.agent import INTERRUPTED, Agent, Answered, Appended, Resumed, ToolReturned
from agent_memory.errors import ConfigError
from agent_memory.types import Message, ToolCall
from tests.chat.builders import CHATML, byte_level, make

Runtime = pytest.importorskip("agent_memory.runtime").Runtime


def lookup(name: str) -> str:
    """Look up a record.

    Args:
        name: of what.
    """
    return f"{name}: 404<|im_end|>"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Any]:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = make(byte_level, CHATML, "<|im_end|>")
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024,
    )  # fmt: skip
    model: Any = Qwen2ForCausalLM(config)
    opened = Runtime(model.eval(), tokenizer, store=tmp_path)
    yield opened
    opened.close()


def test_run_close_and_run_again(runtime: Any) -> None:
    agent = Agent(runtime, [lookup], system="Be brief.", max_new_tokens=4)
    for _ in range(2):
        events = list(agent.run("s", "Where is the fox?"))
        assert [type(event).__name__ for event in events][:2] == ["Started", "Appended"]
        assert isinstance(events[-1], Answered) and events[-1].recall is not None
    with runtime.session("s") as session:
        turns = session.turns()
        assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
        text = runtime.tokenizer.decode(session.timeline.tokens(0, session.tokens))
        assert text.count("<|im_start|>") == text.count("<|im_end|>") == 5 and text.startswith("<|im_start|>system\nBe brief.")
    with pytest.raises(ConfigError, match="another system prompt"):
        list(Agent(runtime, system="Be long.").run("s", "Well?"))


@pytest.mark.parametrize("rerun", [False, True])
def test_interrupted_calls_are_taken_up(runtime: Any, rerun: bool) -> None:
    agent = Agent(runtime, [lookup], max_new_tokens=4)
    calls = tuple(ToolCall(f"00000000{i}", "lookup", {"name": f"fox{i}"}) for i in range(2))
    with runtime.session("s") as session:
        session.configure(system=None, tools=[tool.schema for tool in agent.tools.values()])
        session.append("user", "Go.")
        session.append_message(Message("assistant", "", tool_calls=calls))
        session.append("tool", "fox0: 1", name="lookup", tool_call_id=calls[0].id)
    events = list(agent.run("s", rerun=rerun))
    assert [event.calls for event in events if isinstance(event, Resumed)] == [calls[1:]]
    assert [event.text for event in events if isinstance(event, ToolReturned)] == ["fox1: 404<|im_end|>" if rerun else INTERRUPTED]
    assert isinstance(events[-1], Answered) and sum(isinstance(event, Appended) for event in events) == 1
    with runtime.session("s") as session:
        ids = list(session.timeline.tokens(0, session.tokens))
        end, head = (runtime.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>"))
        assert ids.count(end) == ids.count(head) == len(session.turns())
