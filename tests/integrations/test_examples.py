"""Every example runs, on a tiny random model, and leaves in the Store what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from agent_memory.store.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("file", "session", "roles"),
    [
        ("plain_agent.py", "plain-agent", ["tool", "user", "assistant"]),
        ("langchain_chat.py", "langchain-chat", ["user", "assistant"] * 2),
        ("llama_index_chat.py", "llama-index-chat", ["user", "assistant"] * 2),
    ],
)
def test_example_runs(file: str, session: str, roles: list[str], tiny_model: str) -> None:
    spec = importlib.util.spec_from_file_location(Path(file).stem, EXAMPLES / file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(store="memory", model=tiny_model)
    with Store.open("memory") as store:
        assert [turn.role for turn in store.turns(session) if not turn.meta.get("head")] == roles


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"plain_agent.py", "langchain_chat.py", "llama_index_chat.py"}
