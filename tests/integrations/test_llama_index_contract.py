"""The contract of LlamaIndex's models, on the pocket model, in a Session and without one, and on LlamaIndex's own mock."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.llms.agent_memory import AgentMemory

from tests.integrations.llama_index_contract import FunctionCallingLLMContract


class TestInASession(FunctionCallingLLMContract):
    """Every check has a Session of its own."""

    @pytest.fixture
    def llm(self, pocket: AgentMemory, own_folder: Path) -> AgentMemory:
        return pocket.with_session(own_folder.name)

    def remembered(self, llm: FunctionCallingLLM) -> list[ChatMessage] | None:
        assert isinstance(llm, AgentMemory)
        return llm.session_messages()


class TestWithoutASession(FunctionCallingLLMContract):
    """Each call has a Session that is gone afterwards."""

    @pytest.fixture
    def llm(self, pocket: AgentMemory) -> AgentMemory:
        return pocket.with_session(None, namespace="alone")

    def remembered(self, llm: FunctionCallingLLM) -> list[ChatMessage] | None:
        assert isinstance(llm, AgentMemory)
        assert not llm._open()[0].runtime.store.sessions("alone", branches=True)
        return None


class TestAnotherModel(FunctionCallingLLMContract):
    """LlamaIndex's mock says what it is told, at once, and calls every tool without arguments."""

    holds_to_tools = counts_tokens = refuses_what_is_no_text = takes_time = fires_once = False

    @pytest.fixture
    def llm(self) -> MockFunctionCallingLLM:
        return MockFunctionCallingLLM()
