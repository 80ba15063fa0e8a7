"""What LlamaIndex and its agents expect of a ``FunctionCallingLLM``, as checks for any of them: subclass, and give a fixture ``llm``.

Knows LlamaIndex only. Flags say what a model can; what it cannot is skipped, never passed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool

from tests.integrations.llama_index_probes import Record, grows, heartbeat, listed, listening, user, valid

QUESTION = "Look up inventory-sync."
LONG = "What is the version of inventory-sync?"
"""What a model that knows nothing of it has much to say about."""
TEMPLATE = PromptTemplate("{context_str}\n{query_str}")
FORMATTER = ReActChatFormatter(system_header="Tools: {tool_names}.")


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # workflows look at every attribute of an agent
@pytest.mark.filterwarnings("ignore:is_running called:DeprecationWarning")  # LlamaIndex's ReAct agent does
class FunctionCallingLLMContract:
    """The checks. A subclass says what its model can, and may say what the model holds of its conversation."""

    holds_to_tools = True
    counts_tokens = True
    refuses_what_is_no_text = True
    takes_time = True
    fires_once = True

    @pytest.fixture
    def llm(self) -> FunctionCallingLLM:
        raise NotImplementedError

    @pytest.fixture
    def tool(self) -> FunctionTool:
        def lookup(name: str) -> str:
            """Look up a record."""
            return f"{name} version: 4.1.7"

        return FunctionTool.from_defaults(lookup, description="Look up a record.")

    def remembered(self, llm: FunctionCallingLLM) -> list[ChatMessage] | None:
        """What is held of the conversation; None if nothing ever is."""
        return None

    def need(self, flag: bool) -> None:
        if not flag:
            pytest.skip("this model does not claim to")

    def test_metadata(self, llm: FunctionCallingLLM) -> None:
        assert llm.metadata.is_function_calling_model and llm.metadata.context_window > 0 and llm.metadata.num_output > 0
        assert "FunctionCallingLLM" in [base.__name__ for base in type(llm).__mro__]
        assert llm.to_payload()["class_name"] == llm.class_name()

    def test_serialises(self, llm: FunctionCallingLLM) -> None:
        assert json.loads(json.dumps(llm.to_payload()))["class_name"] == llm.class_name()

    def test_chat(self, llm: FunctionCallingLLM) -> None:
        response = llm.chat([user(QUESTION)])
        assert isinstance(response, ChatResponse) and response.message.role == MessageRole.ASSISTANT and response.message.content

    def test_stream_chat_ends_with_what_chat_says(self, llm: FunctionCallingLLM) -> None:
        pieces = list(llm.stream_chat([user(LONG)]))
        assert grows([(piece.delta, piece.message.content) for piece in pieces])
        assert pieces[-1].message.content == llm.chat([user(LONG)]).message.content

    async def test_achat_says_what_chat_says(self, llm: FunctionCallingLLM) -> None:
        assert (await llm.achat([user(LONG)])).message.content == llm.chat([user(LONG)]).message.content

    async def test_astream_chat_ends_with_what_chat_says(self, llm: FunctionCallingLLM) -> None:
        pieces = await listed(llm.astream_chat([user(LONG)]))
        assert grows([(piece.delta, piece.message.content) for piece in pieces])
        assert pieces[-1].message.content == llm.chat([user(LONG)]).message.content

    def test_complete(self, llm: FunctionCallingLLM) -> None:
        assert llm.complete(LONG).text

    def test_stream_complete_grows_to_its_text(self, llm: FunctionCallingLLM) -> None:
        pieces = list(llm.stream_complete(LONG))
        assert grows([(piece.delta, piece.text) for piece in pieces]) and pieces[-1].text

    async def test_acomplete(self, llm: FunctionCallingLLM) -> None:
        assert (await llm.acomplete(LONG)).text

    async def test_astream_complete_grows_to_its_text(self, llm: FunctionCallingLLM) -> None:
        pieces = await listed(llm.astream_complete(LONG))
        assert grows([(piece.delta, piece.text) for piece in pieces]) and pieces[-1].text

    def test_prepared_tools_are_arguments_of_chat(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        prepared = llm._prepare_chat_with_tools([tool], user(QUESTION), [user("Hello.")], tool_required=True)
        assert [message.content for message in prepared["messages"]] == ["Hello.", QUESTION]
        assert len(prepared["tools"]) == 1
        assert llm.chat(**prepared).message.role == MessageRole.ASSISTANT

    def test_a_question_may_be_text_or_only_history(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        for prepared in (llm._prepare_chat_with_tools([tool], QUESTION), llm._prepare_chat_with_tools([tool], None, [user(QUESTION)])):
            assert [(message.role, message.content) for message in prepared["messages"]] == [(MessageRole.USER, QUESTION)]

    def test_a_required_call_is_valid(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        self.need(self.holds_to_tools)
        for question in (QUESTION, "Hello.", "Do not call anything!"):
            response = llm.chat_with_tools([tool], question, tool_required=True)
            calls = llm.get_tool_calls_from_response(response)
            assert calls and all(call.tool_name == "lookup" and call.tool_id and valid(call.tool_kwargs) for call in calls)

    async def test_a_required_call_is_valid_however_it_is_asked_for(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        self.need(self.holds_to_tools)
        ends = [
            await llm.achat_with_tools([tool], "Hello.", tool_required=True),
            list(llm.stream_chat_with_tools([tool], "Hello.", tool_required=True))[-1],
            (await listed(llm.astream_chat_with_tools([tool], "Hello.", tool_required=True)))[-1],
        ]
        assert all(valid(llm.get_tool_calls_from_response(end)[0].tool_kwargs) for end in ends)

    def test_a_streamed_call_grows(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        self.need(self.holds_to_tools)
        pieces = list(llm.stream_chat_with_tools([tool], QUESTION, tool_required=True))
        written = [block.tool_kwargs for piece in pieces for block in piece.message.blocks if isinstance(block, ToolCallBlock)]
        texts = [part for part in written if isinstance(part, str)]
        assert len(texts) > 2 and all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
        assert json.loads(texts[-1]) == llm.get_tool_calls_from_response(pieces[-1])[0].tool_kwargs
        assert all(isinstance(llm.get_tool_calls_from_response(piece, error_on_no_tool_call=False), list) for piece in pieces)

    def test_calls_are_read_whole_or_partial(self, llm: FunctionCallingLLM) -> None:
        blocks = [
            ToolCallBlock(tool_call_id="1", tool_name="lookup", tool_kwargs={"name": "a"}),
            ToolCallBlock(tool_call_id="2", tool_name="lookup", tool_kwargs='{"name": "b"}'),
            ToolCallBlock(tool_call_id="3", tool_name="lookup", tool_kwargs='{"name": "c", "deep'),
        ]
        calls = llm.get_tool_calls_from_response(ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)))
        assert [(call.tool_id, call.tool_kwargs["name"]) for call in calls] == [("1", "a"), ("2", "b"), ("3", "c")]

    def test_a_response_without_calls(self, llm: FunctionCallingLLM) -> None:
        response = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="No."))
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        self.need(self.holds_to_tools)
        with pytest.raises(ValueError, match="tool"):
            llm.get_tool_calls_from_response(response, error_on_no_tool_call=True)

    def test_one_call_where_several_are_not_allowed(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        response = llm.chat_with_tools([tool], QUESTION, allow_parallel_tool_calls=False)
        assert len(llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)) <= 1

    def test_a_tools_result_is_answered(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        first = llm.chat_with_tools([tool], QUESTION)
        calls = llm.get_tool_calls_from_response(first)
        results = [
            ChatMessage(role=MessageRole.TOOL, blocks=[TextBlock(text="4.1.7")], additional_kwargs={"tool_call_id": call.tool_id})
            for call in calls
        ]
        answer = llm.chat_with_tools([tool], chat_history=[user(QUESTION), first.message, *results])
        assert answer.message.content and not llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)

    async def test_function_agent(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        for streaming in (True, False):
            output: Any = await FunctionAgent(tools=[tool], llm=llm, streaming=streaming).run(QUESTION)
            assert [call.tool_name for call in output.tool_calls] == ["lookup"] and output.response.content

    async def test_react_agent(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        for streaming in (True, False):
            agent = ReActAgent(tools=[tool], llm=llm, formatter=FORMATTER, streaming=streaming)
            output: Any = await agent.run("Hello.")
            assert output.response.content

    async def test_agent_workflow(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        output: Any = await AgentWorkflow.from_tools_or_functions([tool], llm=llm).run(user_msg=QUESTION)
        assert [call.tool_name for call in output.tool_calls] == ["lookup"]

    def test_predict_and_call(self, llm: FunctionCallingLLM, tool: FunctionTool) -> None:
        self.need(self.holds_to_tools)
        assert llm.predict_and_call([tool], QUESTION).response == "inventory-sync version: 4.1.7"

    async def test_structured_predictions(self, llm: FunctionCallingLLM) -> None:
        self.need(self.holds_to_tools)
        prompt = PromptTemplate("{text}")
        assert isinstance(llm.structured_predict(Record, prompt, text="Hello."), Record)
        assert isinstance(await llm.astructured_predict(Record, prompt, text="Hello."), Record)
        assert isinstance(llm.as_structured_llm(Record).complete("Hello.").raw, Record)

    async def test_streamed_structured_predictions(self, llm: FunctionCallingLLM) -> None:
        self.need(self.holds_to_tools)
        prompt = PromptTemplate("{text}")
        assert isinstance(list(llm.stream_structured_predict(Record, prompt, text="Hello."))[-1], Record)
        assert isinstance((await listed(llm.astream_structured_predict(Record, prompt, text="Hello.")))[-1], Record)

    async def test_query_engines(self, llm: FunctionCallingLLM) -> None:
        nodes = [TextNode(text="inventory-sync version: 4.1.7")]
        for index in (SummaryIndex(nodes), VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))):
            engine = index.as_query_engine(llm=llm, text_qa_template=TEMPLATE)
            assert str(engine.query("What is the version?")) and str(await engine.aquery("What is the version?"))

    async def test_tokens_are_counted(self, llm: FunctionCallingLLM) -> None:
        self.need(self.counts_tokens)
        counter = TokenCountingHandler(tokenizer=str.split)
        llm.callback_manager = CallbackManager([counter])
        responses: list[Any] = [
            llm.chat([user(QUESTION)]),
            llm.complete(QUESTION),
            await llm.achat([user(QUESTION)]),
            await llm.acomplete(QUESTION),
        ]
        responses += [list(llm.stream_chat([user(QUESTION)]))[-1], (await listed(llm.astream_chat([user(QUESTION)])))[-1]]
        for response, counted in zip(responses, counter.llm_token_counts, strict=True):
            usage = response.additional_kwargs
            assert (counted.prompt_token_count, counted.completion_token_count) == (usage["prompt_tokens"], usage["completion_tokens"])
            assert usage["prompt_tokens"] > 0 < usage["completion_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    async def test_events_are_fired(self, llm: FunctionCallingLLM) -> None:
        with listening() as heard:
            llm.chat([user(QUESTION)]), await llm.achat([user(QUESTION)])
            list(llm.stream_chat([user(QUESTION)])), await listed(llm.astream_chat([user(QUESTION)]))
            llm.complete(QUESTION), await llm.acomplete(QUESTION)
            list(llm.stream_complete(QUESTION)), await listed(llm.astream_complete(QUESTION))
        for kind in ("Chat", "Completion"):
            assert all(heard.names().count(f"LLM{kind}{when}Event") == 4 for when in ("Start", "End")) or not self.fires_once
            assert all(heard.names().count(f"LLM{kind}{when}Event") >= 4 for when in ("Start", "End"))
            assert heard.names().count(f"LLM{kind}InProgressEvent") >= 2

    async def test_the_event_loop_runs_meanwhile(self, llm: FunctionCallingLLM) -> None:
        self.need(self.takes_time)
        await llm.achat([user(QUESTION)])
        ways: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "achat": lambda: llm.achat([user(LONG)]),
            "astream_chat": lambda: listed(llm.astream_chat([user(LONG)])),
            "acomplete": lambda: llm.acomplete(LONG),
            "astream_complete": lambda: listed(llm.astream_complete(LONG)),
        }
        for name, ask in ways.items():
            async with heartbeat() as beats:
                await ask()
            gap = max(after - before for before, after in zip(beats, beats[1:], strict=False))
            print(f"{name}: the event loop ran {len(beats)} times, the longest gap was {gap * 1000:.0f} ms")
            assert len(beats) > 10, name

    async def test_leaving_a_stream_leaves_nothing_half_made(self, llm: FunctionCallingLLM) -> None:
        debug = LlamaDebugHandler(print_trace_on_end=False)  # keeps every event, and with it the frames of streams that were left
        llm.callback_manager = CallbackManager([debug])
        whole = llm.chat([user(QUESTION)]).message.content
        astream: Any = await llm.astream_chat([user("Hello."), user(LONG)])
        async for _ in astream:
            break
        await astream.aclose()
        stream = llm.stream_chat([user("Hello."), user(LONG)])
        next(stream)
        stream.close()
        assert llm.chat([user(QUESTION)]).message.content == whole
        held = self.remembered(llm)
        assert held is None or all(message.role == MessageRole.USER or message.content == whole for message in held)

    async def test_a_cancelled_task_leaves_nothing_half_made(self, llm: FunctionCallingLLM) -> None:
        self.need(self.takes_time)
        task = asyncio.create_task(llm.achat([user(LONG)]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await llm.achat([user(QUESTION)])).message.content
        held = self.remembered(llm) or []
        assert [message.role for message in held] in ([], [MessageRole.USER], [MessageRole.USER, MessageRole.ASSISTANT])

    async def test_concurrent_calls_do_not_mix(self, llm: FunctionCallingLLM) -> None:
        names = [f"canary-{word}" for word in ("alpha", "bravo", "delta", "tango")]
        talks = [[user(f"Note: {name} version: 4.1.7"), user(f"What is the version of {name}?")] for name in names]
        answers: list[Any] = await asyncio.gather(*(llm.achat(talk) for talk in talks), *(listed(llm.astream_chat(talk)) for talk in talks))
        texts = [str((answer[-1] if isinstance(answer, list) else answer).message.content) for answer in answers]
        for name, text in zip(names * 2, texts, strict=True):
            assert name in text and not any(other in text for other in names if other != name)

    def test_what_is_no_text_is_refused(self, llm: FunctionCallingLLM) -> None:
        self.need(self.refuses_what_is_no_text)
        with pytest.raises(ValueError, match="image"):
            llm.chat([ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text="See:"), ImageBlock(url="http://localhost/x.png")])])
