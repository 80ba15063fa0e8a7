"""Agents of LlamaIndex on the pocket model: what they send back is what the Session holds, so nothing is read twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, Memory
from llama_index.core.tools import FunctionTool
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryBuffer

from tests.integrations.llama_index_probes import Record, prescribe, user

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called:DeprecationWarning"),
]

CALL = '<tool_call>{"name": "lookup", "arguments": {"name": "%s"}}</tool_call>'
ACTION = 'Thought: I have to look.\nAction: lookup\nAction Input: {"name": "a-tool"}'


@pytest.fixture
def tool() -> FunctionTool:
    def lookup(name: str) -> str:
        """Look up a record."""
        return f"{name} version: 4.1.7"

    return FunctionTool.from_defaults(lookup, description="Look up a record.")


@pytest.fixture(params=["ChatMemoryBuffer", "Memory", "AgentMemoryBuffer"])
async def memory(request: pytest.FixtureRequest, llm: AgentMemory) -> AsyncIterator[BaseMemory]:
    if request.param == "Memory":
        made = Memory.from_defaults(session_id="m", token_limit=10**9)
        yield made
        await made.sql_store._async_engine.dispose()  # type: ignore[attr-defined]
    else:
        yield ChatMemoryBuffer.from_defaults(llm=llm) if request.param == "ChatMemoryBuffer" else AgentMemoryBuffer.from_defaults(llm)


def branches(llm: AgentMemory) -> list[str]:
    return llm._open()[0].branches(str(llm.session_id))


def said(llm: AgentMemory) -> list[str]:
    return [f"{message.role.value}: {message.content or ''}".strip() for message in llm.session_messages()]


def test_plain_chat_makes_no_branch(llm: AgentMemory) -> None:
    conversation: list[ChatMessage] = []
    for question in ("Note: a-tool version: 4.1.7", "What is the version of a-tool?", "What is the version of a-tool?"):
        conversation.append(user(question))
        known = llm.chat(conversation)
        conversation.append(known.message)
    assert branches(llm) == [llm.session_id]
    assert known.additional_kwargs["cache_creation_tokens"] < known.additional_kwargs["cache_read_tokens"]


async def test_function_agent_makes_no_branch(llm: AgentMemory, tool: FunctionTool, memory: BaseMemory) -> None:
    agent = FunctionAgent(tools=[tool], llm=llm, streaming=not isinstance(memory, Memory), system_prompt="Look things up.")
    for question in ("Look up inventory-sync.", "What is the version of inventory-sync?", "Look up other-tool."):
        output: Any = await agent.run(question, memory=memory)
    assert [call.tool_kwargs for call in output.tool_calls] == [{"name": "other-tool"}]
    assert branches(llm) == [llm.session_id]
    assert [message.role for message in llm.session_messages()] == [message.role for message in memory.get_all()]
    assert said(llm)[2] == "tool: inventory-sync version: 4.1.7" and said(llm)[5].endswith("4.1.7")
    assert output.raw["usage"]["cache_read_tokens"] > 0 and output.raw["agent_memory"]["session"] == llm.session_id


async def test_parallel_calls_make_no_branch(llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe(monkeypatch, llm, CALL % "a" + CALL % "b", "Both.", "Four.")
    memory = AgentMemoryBuffer.from_defaults(llm)
    agent = FunctionAgent(tools=[tool], llm=llm)
    output: Any = await agent.run("Look up a and b.", memory=memory)
    assert sorted(call.tool_kwargs["name"] for call in output.tool_calls) == ["a", "b"]
    await agent.run("And now?", memory=memory)
    assert branches(llm) == [llm.session_id]
    assert sorted(said(llm)[2:4]) == ["tool: a version: 4.1.7", "tool: b version: 4.1.7"]


async def test_a_tool_that_returns_directly_or_nothing(llm: AgentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe(monkeypatch, llm, CALL % "a", "Four.")
    memory = AgentMemoryBuffer.from_defaults(llm)
    silent = FunctionTool.from_defaults(lambda name: "", name="lookup", description="Look up.", return_direct=True)
    agent = FunctionAgent(tools=[silent], llm=llm)
    await agent.run("Look up a.", memory=memory)
    memory.put(user("Hello?"))
    assert (await llm.achat_with_tools([silent], chat_history=memory.get())).message.content == "Four."
    assert branches(llm) == [llm.session_id] and said(llm)[2] == "tool: (no output)"


async def test_react_agent_makes_no_branch(
    llm: AgentMemory, tool: FunctionTool, memory: BaseMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes each step anew, and joins them at the end."""
    answers = [ACTION, "Thought: I see.\nAnswer: 4.1.7", "Just so.", ACTION, "Thought: Still.\nAnswer: 4.1.7", "Bye."]
    prescribe(monkeypatch, llm, *answers)
    role = MessageRole.TOOL if isinstance(memory, Memory) else MessageRole.USER
    formatter = ReActChatFormatter(system_header="Tools: {tool_names}.", observation_role=role)
    agent = ReActAgent(tools=[tool], llm=llm, formatter=formatter)
    outputs: list[Any] = [await agent.run(f"Question {number}", memory=memory) for number in range(4)]
    assert [output.response.content for output in outputs] == ["4.1.7", "Just so.", "4.1.7", "Bye."]
    assert branches(llm) == [llm.session_id]
    assert [text.partition(": ")[2] for text in said(llm) if text.startswith("assistant")] == answers
    assert said(llm)[2] == "user: Observation: a-tool version: 4.1.7"


async def test_react_agent_goes_on_after_a_restart(llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe(monkeypatch, llm, ACTION, "Thought: I see.\nAnswer: 4.1.7", "Bye.")
    agent = ReActAgent(tools=[tool], llm=llm, formatter=ReActChatFormatter(system_header="Tools: {tool_names}."))
    await agent.run("One?", memory=AgentMemoryBuffer.from_defaults(llm))
    await agent.run("Two?", memory=AgentMemoryBuffer.from_defaults(llm))
    assert branches(llm) == [llm.session_id] and said(llm)[-2:] == ["user: Two?", "assistant: Bye."]


async def test_react_agent_goes_on_in_its_branch(llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe(monkeypatch, llm, "Hello.", ACTION, "Thought: I see.\nAnswer: 4.1.7", "Bye.")
    llm.chat([user("Hello.")])
    agent = ReActAgent(tools=[tool], llm=llm, formatter=ReActChatFormatter(system_header="Tools: {tool_names}."))
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    for question in ("One?", "Two?"):
        await agent.run(question, memory=memory)
    assert branches(llm) == [llm.session_id, f"{llm.session_id}/1"] and said(llm)[-1] == "assistant: Bye."


async def test_an_agent_with_another_answer_gets_a_branch(llm: AgentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    prescribe(monkeypatch, llm, "Thought: I see.\nAnswer: 4.1.7", "Bye.")
    llm.chat([user("One?")])
    llm.chat([user("One?"), ChatMessage(role=MessageRole.ASSISTANT, content="Thought: I see.\nAnswer: 5"), user("Two?")])
    assert branches(llm) == [llm.session_id, f"{llm.session_id}/1"]


@pytest.mark.filterwarnings("ignore::agent_memory.errors.HistoryRewritten")  # of the head, and meant
async def test_agents_that_hand_over(llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a head of its own, so a branch of its own; what they said to each other is read by both, once."""
    over = '<tool_call>{"name": "handoff", "arguments": {"to_agent": "finder", "reason": "It finds."}}</tool_call>'
    prescribe(monkeypatch, llm, over, CALL % "a", "Found.", "Bye.")
    first = FunctionAgent(name="asker", description="Asks.", system_prompt="Ask.", tools=[], llm=llm, can_handoff_to=["finder"])
    second = FunctionAgent(name="finder", description="Finds.", system_prompt="Find.", tools=[tool], llm=llm, can_handoff_to=[])
    memory = AgentMemoryBuffer.from_defaults(llm)
    workflow = AgentWorkflow(agents=[first, second], root_agent="asker")
    output: Any = await workflow.run(user_msg="Find a.", memory=memory)
    assert (output.current_agent_name, output.response.content) == ("finder", "Found.")
    assert branches(llm) == [llm.session_id, f"{llm.session_id}/1"]
    found = AgentMemoryBuffer.from_defaults(llm).get_all()
    assert [message.role for message in found] == [message.role for message in memory.get_all()] and found[-1].content == "Found."
    await workflow.run(user_msg="Thanks.", memory=memory)
    assert branches(llm) == [llm.session_id, f"{llm.session_id}/1"]


async def test_a_first_tool_may_be_prescribed(llm: AgentMemory, tool: FunctionTool) -> None:
    agent = FunctionAgent(tools=[tool], llm=llm, initial_tool_choice="lookup")
    output: Any = await agent.run("Hello.")
    assert [call.tool_name for call in output.tool_calls] == ["lookup"]


async def test_an_agent_may_answer_in_a_schema(llm: AgentMemory, tool: FunctionTool) -> None:
    output: Any = await FunctionAgent(tools=[tool], llm=llm, output_cls=Record).run("Look up inventory-sync.")
    assert Record.model_validate(output.structured_response)
    assert len(AgentMemoryBuffer.from_defaults(llm).get_all()) == 4


async def test_the_state_of_a_workflow_is_part_of_what_was_asked(llm: AgentMemory, tool: FunctionTool) -> None:
    memory = AgentMemoryBuffer.from_defaults(llm)
    workflow = AgentWorkflow.from_tools_or_functions([tool], llm=llm, initial_state={"step": 1})
    for question in ("Look up inventory-sync.", "Look up other-tool."):
        await workflow.run(user_msg=question, memory=memory)
    assert branches(llm) == [llm.session_id] and "step" in said(llm)[0]
