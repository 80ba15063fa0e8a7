"""The tiny model, an empty Store, and a quiet environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integrations.tiny import save_tiny_model

if TYPE_CHECKING:
    from llama_index.llms.agent_memory import AgentMemory

pytest.register_assert_rewrite("tests.integrations.llama_index_contract")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AGENT_MEMORY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentMemory]:
    """LlamaIndex's model over the pocket model, loaded once for the tests of a file."""
    from llama_index.llms.agent_memory import AgentMemory

    made = AgentMemory(store=str(tmp_path_factory.mktemp("pocket")), max_tokens=48)
    yield made
    made.close()


@pytest.fixture
def llm(pocket: AgentMemory, own_folder: Path) -> AgentMemory:
    """The same in a Session of the test's own."""
    return pocket.with_session(own_folder.name)
