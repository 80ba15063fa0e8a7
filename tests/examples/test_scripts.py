"""Every example that is one script: what it answers on the pocket model, and that it can be run again over the same memory."""

from __future__ import annotations

import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

from agent_memory.store.store import Store
from examples import langchain_chat, langchain_tools, llama_index_agent, llama_index_chat, plain_agent, two_namespaces

EXAMPLES = Path(__file__).parents[2] / "examples"
WINDOW = 512

ANSWER = "inventory-sync version: 4.1.7"


def run_again(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``python examples/<name>`` prints, over the memory that is there."""
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def turn_counts() -> dict[str, int]:
    with Store.open("memory") as store:
        return {info.name: info.turns for info in store.sessions(branches=True)}


def test_a_plain_agent_remembers_what_a_tool_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_agent.main() == ANSWER
    assert run_again("plain_agent.py", capsys).splitlines()[-1] == ANSWER
    assert turn_counts() == {"plain-agent": 6}


def test_a_langchain_chat_remembers_a_note_and_goes_on_when_it_is_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert [answer.text for answer in langchain_chat.main()] == ["Noted.", ANSWER]
    assert run_again("langchain_chat.py", capsys).count(ANSWER) == 1
    assert turn_counts() == {"langchain-chat": 8}


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
def test_a_llama_index_chat_remembers_a_note_and_goes_on_when_it_is_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert [answer.message.content for answer in llama_index_chat.main()] == ["Noted.", ANSWER]
    assert run_again("llama_index_chat.py", capsys).count(ANSWER) == 1
    assert turn_counts() == {"llama-index-chat": 8}


def test_a_langchain_agent_answers_from_a_tool_call_that_left_the_window(capsys: pytest.CaptureFixture[str]) -> None:
    answer = langchain_tools.main()
    assert answer.text == f"alembic version: {version('alembic')}"
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] > 2 * WINDOW
    facts = answer.response_metadata["agent_memory"]
    assert facts["prefilled"] < 100
    assert any(turn["role"] == "tool" and turn["turn"] == 3 and turn["tokens_ago"] > WINDOW for turn in facts["recalled"])
    printed = capsys.readouterr().out
    assert "recalled tool turn 3" in printed and f"alembic version: {version('alembic')}" in printed
    assert turn_counts() == {"packages": 23}
    assert run_again("langchain_tools.py", capsys) == printed
    assert turn_counts() == {"packages": 23}


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # workflows look at every attribute of an agent
def test_a_llama_index_agent_looks_up_once_and_answers_in_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = llama_index_agent.main()
    answer, wanted = said[-1], f"alembic version: {version('alembic')}"
    assert (len(said), answer.response.content) == (len(llama_index_agent.PACKAGES) + 1, wanted)
    assert answer.raw is not None and answer.raw["usage"]["cache_read_tokens"] > 2 * WINDOW
    recalled = answer.raw["agent_memory"]["recalled"]
    assert any(turn["role"] == "tool" and turn["turn"] == 3 and turn["tokens_ago"] > WINDOW for turn in recalled)
    printed = run_again("llama_index_agent.py", capsys)
    assert wanted in printed and "Look up" not in printed
    assert turn_counts() == {"llama-index-packages": 25}


def test_agents_in_two_namespaces_know_nothing_of_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert two_namespaces.main() == {"alice": "deploy-bot port: 8417", "bob": "deploy-bot port: 60225"}
    alice, bob = capsys.readouterr().out.split("bob asks")
    assert "Ines Duarte" in alice and "eu-north" in bob
    assert "Ines Duarte" not in bob and "60225" not in alice and "eu-north" not in alice and "8417" not in bob
    with Store.open("memory") as store:
        assert [[turn.text for turn in store.turns("ops", name) if turn.role == "user"] for name in ("alice", "bob")] == [
            [*two_namespaces.TOLD[name], two_namespaces.QUESTION] for name in ("alice", "bob")
        ]
    assert run_again("two_namespaces.py", capsys).count("hears 'deploy-bot port: 60225'") == 1
