"""The LlamaIndex models beyond what LlamaIndex expects of any: Sessions, options, formats, what a response tells."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    MessageRole,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryCustomLLM

from agent_memory.errors import ConfigError, InvalidHistory
from agent_memory.history import Histories
from agent_memory.store.store import Store
from agent_memory.types import Turn
from tests.integrations.llama_index_probes import Record, listed, prescribe, user

Model = AgentMemory | AgentMemoryCustomLLM
ENDLESS = "What is the version of inventory-sync?"
"""The pocket model knows nothing of it, and says so at length."""


@pytest.fixture
def shared(pocket: AgentMemory) -> str:
    return str(pocket.store)


@pytest.fixture(params=[AgentMemory, AgentMemoryCustomLLM])
def model(request: pytest.FixtureRequest, shared: str, own_folder: Path) -> Model:
    made: Model = request.param(store=shared, session_id=own_folder.name, max_tokens=16)
    return made


@pytest.fixture
def tool() -> FunctionTool:
    return FunctionTool.from_defaults(lambda name: name, name="lookup", description="Look up a record.")


def turns(llm: Model) -> list[Turn]:
    return llm._open()[0].runtime.store.turns(str(llm.session_id), llm.namespace or "default")


def branches(llm: Model) -> list[str]:
    return llm._open()[0].branches(str(llm.session_id))


def test_chat_takes_a_whole_conversation(model: Model) -> None:
    system = ChatMessage(role=MessageRole.SYSTEM, content="Be brief.")
    first = model.chat([system, user("one")])
    second = model.chat([system, user("one"), first.message, user("two")])
    assert first.additional_kwargs["cache_read_tokens"] == 0
    assert second.additional_kwargs["cache_read_tokens"] >= first.additional_kwargs["total_tokens"]
    assert second.additional_kwargs["cache_creation_tokens"] < first.additional_kwargs["total_tokens"]
    assert [turn.role for turn in turns(model)] == ["system", "user", "assistant", "user", "assistant"]


def test_complete_takes_one_new_message(model: Model) -> None:
    model.complete("one")
    model.complete("one")
    assert [turn.text for turn in turns(model) if turn.role == "user"] == ["one", "one"] and branches(model) == [model.session_id]


async def test_every_way_says_the_same(model: Model) -> None:
    asked = [user(ENDLESS)]
    texts = [model.chat(asked).message.content, list(model.stream_chat(asked))[-1].message.content]
    texts += [(await model.achat(asked)).message.content, (await listed(model.astream_chat(asked)))[-1].message.content]
    alone = model.with_session(None)
    texts += [alone.complete(ENDLESS).text, list(alone.stream_complete(ENDLESS))[-1].text]
    texts += [(await alone.acomplete(ENDLESS)).text, (await listed(alone.astream_complete(ENDLESS)))[-1].text]
    assert len(set(texts)) == 1 and texts[0]


async def test_nothing_of_a_request_runs_in_the_thread_of_the_event_loop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    def noting(original: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return original(*args, **kwargs)

        return noted

    for owner, name in ((Histories, "stream"), (type(model), "_request")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name)))
    await model.achat([user("one")]), await listed(model.astream_chat([user("one")]))
    await model.acomplete("one"), await listed(model.astream_complete("one"))
    assert len(threads) >= 2 and threading.get_ident() not in threads


async def test_the_plain_face_calls_no_tools_and_predicts_in_text(shared: str) -> None:
    llm = AgentMemoryCustomLLM(store=shared, max_tokens=32)
    assert isinstance(llm, CustomLLM) and not isinstance(llm, FunctionCallingLLM)
    assert (llm.metadata.is_function_calling_model, llm.metadata.is_chat_model) == (False, True)
    prompt = PromptTemplate("{text}")
    for model in (llm, AgentMemory(store=shared, max_tokens=32, pydantic_program_mode=PydanticProgramMode.LLM)):
        assert isinstance(model.structured_predict(Record, prompt, text="Hi."), Record)
        assert isinstance(await model.astructured_predict(Record, prompt, text="Hi."), Record)
    assert isinstance(list(llm.stream_structured_predict(Record, prompt, text="Hi."))[-1], Record)
    assert isinstance((await listed(llm.astream_structured_predict(Record, prompt, text="Hi.")))[-1], Record)


def test_nothing_asks_llama_index_to_trim(llm: AgentMemory) -> None:
    assert llm.metadata.context_window >= 10**9 and llm.attention_window == 512
    assert (llm.metadata.num_output, llm.metadata.model_name, llm.metadata.system_role) == (48, "pocket", MessageRole.SYSTEM)


def test_options_of_a_call(llm: AgentMemory) -> None:
    asked, alone = [user(ENDLESS)], {"session_id": None}
    llm = llm.model_copy(update={"max_tokens": 12})
    assert llm.chat(asked, max_tokens=2, **alone).raw["usage"]["completion_tokens"] == 2
    assert llm.chat(asked, num_output=3, **alone).raw["agent_memory"]["finish_reason"] == "length"
    assert llm.chat(asked, stop="version", **alone).message.content.strip() == "inventory-sync"
    wild = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, **alone}
    assert llm.chat(asked, seed=1, **wild).message.content == llm.chat(asked, seed=1, **wild).message.content
    assert llm.chat(asked, seed=1, **wild).message.content != llm.chat(asked, seed=2, **wild).message.content
    assert llm.chat(asked, seed=1, **{**wild, "top_k": 1}).message.content == llm.chat(asked, **alone).message.content
    assert llm.chat(asked, seed=1, **{**wild, "top_p": 1e-6}).message.content == llm.chat(asked, **alone).message.content
    assert branches(llm) == []
    llm.chat(asked, namespace="other")
    assert branches(llm) == [] and [turn.role for turn in turns(llm.with_session(llm.session_id, "other"))] == ["user", "assistant"]


def test_what_a_model_is_set_to_holds_where_a_call_says_nothing(shared: str) -> None:
    llm = AgentMemory(store=shared, max_tokens=5, temperature=3.0, seed=1, stop=["nothing"])
    first = llm.chat([user(ENDLESS)], temperature=None)
    assert first.raw["usage"]["completion_tokens"] == 5
    assert first.message.content == llm.chat([user(ENDLESS)]).message.content != llm.chat([user(ENDLESS)], seed=2).message.content


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temprature": 1}, "temprature=1: a call has no such option; it has session_id"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"session_id": 3}, "session_id=3"),
        ({"on_trim": "cut"}, "on_trim='cut'"),
        ({"tool_choice": {"name": 3}}, "tool_choice="),
        ({"tools": ["lookup"]}, "'lookup' cannot be a tool"),
        ({"response_format": "json"}, "response_format='json' cannot be read"),
    ],
)
def test_an_option_that_cannot_be_is_said(llm: AgentMemory, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        llm.chat([user("one")], **options)


def test_a_misspelt_attribute_is_no_attribute() -> None:
    with pytest.raises(ValueError, match="temprature"):
        AgentMemory(temprature=1)  # type: ignore[call-arg]


def test_a_bad_setting_is_said_at_the_first_call() -> None:
    with pytest.raises(ConfigError, match="device='huge'"):
        AgentMemory(options={"device": "huge"}).complete("one")


def test_a_tool_may_be_chosen(llm: AgentMemory, tool: FunctionTool) -> None:
    other = FunctionTool.from_defaults(lambda word: word, name="other", description="Say a word.")
    for choice in ("other", {"type": "function", "function": {"name": "other"}}):
        response = llm.chat_with_tools([tool, other], "Look up a.", tool_choice=choice, tool_required=True)
        assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["other"]
    response = llm.chat_with_tools([tool], "Look up inventory-sync.", tool_choice="none")
    assert response.message.content and not llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)


def test_parallel_calls_are_said_to_the_model(llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch) -> None:
    for several in (True, False):
        prepared = llm._prepare_chat_with_tools([tool], "Look!", allow_parallel_tool_calls=several)
        assert (prepared["parallel_tool_calls"], prepared["tool_choice"]) == (several, "auto")
    assert prepared["tools"] == [tool.metadata.to_openai_tool(skip_length_check=True)]
    formats = [llm._request([user("one")], "whole", given)[1].format for given in ({}, {"parallel_tool_calls": False, "strict": True})]
    assert [(found.parallel, found.strict) for found in formats] == [(True, False), (False, True)]


def test_of_several_calls_that_nothing_could_prevent_one_is_left(
    llm: AgentMemory, tool: FunctionTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = '<tool_call>{"name": "lookup", "arguments": {"name": "%s"}}</tool_call>'
    prescribe(monkeypatch, llm, call % "a" + call % "b", call % "a" + call % "b")
    for several, names in ((True, ["a", "b"]), (False, ["a"])):
        response = llm.chat_with_tools([tool], "Look up a and b.", allow_parallel_tool_calls=several)
        assert [found.tool_kwargs["name"] for found in llm.get_tool_calls_from_response(response)] == names
        assert [json.loads(one["function"]["arguments"])["name"] for one in response.message.additional_kwargs["tool_calls"]] == names


def test_a_completion_is_text_though_the_session_has_tools(llm: AgentMemory, tool: FunctionTool) -> None:
    assert not llm.chat_with_tools([tool], "Look up inventory-sync.").message.content
    assert llm.complete("Look up inventory-sync.").text
    assert "tool_calls" in llm.chat_with_tools([tool], "Look up inventory-sync.", session_id=None).message.additional_kwargs


@pytest.mark.parametrize("form", [Record, Record.model_json_schema()])
def test_a_reply_may_be_json_of_a_schema(llm: AgentMemory, form: Any) -> None:
    llm.chat([user("one")])
    first = llm.chat([user("one")], response_format=form)
    assert Record.model_validate_json(str(first.message.content))
    openai = {"type": "json_schema", "json_schema": {"name": "record", "schema": Record.model_json_schema()}}
    assert Record.model_validate_json(llm.complete("one", response_format=openai).text)
    assert isinstance(json.loads(llm.complete("one", response_format={"type": "json_object"}).text), dict)


def test_what_was_recalled_is_told(llm: AgentMemory) -> None:
    notes = [user(f"Note: package-{number} version: {number}.1.7, license: MIT, section: tools") for number in range(60)]
    response = llm.chat([*notes, user("What is the version of package-3?")])
    facts = response.raw["agent_memory"]
    assert response.message.content.startswith("package-3 version: 3.1.7")
    assert 3 in [hit["turn"] for hit in facts["recalled"]] and facts["prefilled"] > llm.attention_window
    hit = next(hit for hit in facts["recalled"] if hit["turn"] == 3)
    assert (hit["role"], hit["tier"]) == ("user", "device") and hit["score"] > 0 and hit["tokens_ago"] > llm.attention_window
    assert facts == response.additional_kwargs["agent_memory"] and json.dumps(response.raw)


def test_a_trimmed_history_goes_on_or_is_refused(llm: AgentMemory) -> None:
    first = llm.chat([user("one")])
    second = llm.chat([user("one"), first.message, user("two")])
    with pytest.raises(InvalidHistory, match="beginning"):
        llm.chat([user("two"), second.message, user("three")], on_trim="error")
    llm.chat([user("two"), second.message, user("three")])
    assert branches(llm) == [llm.session_id]


def test_a_system_prompt_begins_what_has_none(shared: str, own_folder: Path) -> None:
    llm = AgentMemory(store=shared, session_id=own_folder.name, system_prompt="Be brief.")
    first = llm.chat([user("one")])
    assert llm.predict(PromptTemplate("one")) == first.message.content
    llm.complete("two")
    assert [(turn.role, turn.text) for turn in turns(llm)][:2] == [("system", "Be brief."), ("user", "one")]
    llm.chat([ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), user("one"), first.message, user("two")])
    assert branches(llm) == [llm.session_id, f"{llm.session_id}/1"]
    assert [turn.role for turn in turns(llm)] == ["system", "user", "assistant", "user", "assistant"]


def test_a_prompt_is_formatted_once(shared: str) -> None:
    llm = AgentMemory(store=shared, session_id=None, completion_to_prompt=lambda prompt: f"Note: {prompt}", max_tokens=4)
    assert [llm._asked("a", formatted)[0].content for formatted in (False, True)] == ["Note: a", "a"]
    assert llm.complete("a").raw["usage"]["prompt_tokens"] > llm.complete("a", formatted=True).raw["usage"]["prompt_tokens"]
    assert list(llm.stream_complete("a"))[-1].raw["usage"]["prompt_tokens"] == llm.complete("a").raw["usage"]["prompt_tokens"]


def test_sessions_are_forgotten(llm: AgentMemory) -> None:
    other = llm.with_session(f"{llm.session_id}-other")
    first = [model.complete("one") for model in (llm, other)]
    assert first[0].text and [found.content for found in llm.session_messages()] == ["one", first[0].text]
    llm.chat([user("two")])
    assert len(branches(llm)) == 2
    llm.reset()
    assert branches(llm) == [] and branches(other) == [other.session_id] and llm.session_messages() == []
    llm.delete_session(str(other.session_id))
    llm.delete_session(str(other.session_id))
    llm.with_session(None).reset()
    assert branches(other) == []


def test_copies_and_configurations(llm: AgentMemory) -> None:
    llm.complete("one")
    restored = AgentMemory.__new__(AgentMemory)
    restored.__setstate__(llm.__getstate__())  # as pickle does it
    for made in (copy.deepcopy(llm), copy.copy(llm), restored, AgentMemory.from_dict(llm.to_dict())):
        assert type(made) is AgentMemory and made.to_dict() == llm.to_dict() and made._open()[0] is llm._open()[0]
    assert json.loads(llm.to_json())["class_name"] == "AgentMemory" and "callback_manager" not in llm.to_dict()
    assert set(llm.to_payload()) == {"class_name", *llm.metadata.model_dump()}


def test_a_model_stays_with_its_store_wherever_the_process_goes(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = AgentMemory(store="memory", session_id="s", max_tokens=4)
    llm.complete("one")
    (own_folder / "elsewhere").mkdir()
    monkeypatch.chdir(own_folder / "elsewhere")
    llm.with_session("t").complete("two")
    elsewhere = llm.model_copy(update={"store": "memory-too"})
    elsewhere.load()
    elsewhere.close()
    llm.close()
    assert (own_folder / "elsewhere" / "memory-too").is_dir()
    with Store.open(own_folder / "memory") as store:
        assert [info.name for info in store.sessions()] == ["s", "t"]
    assert llm.complete("three").text
    llm.close()


def test_importing_and_making_them_loads_no_torch() -> None:
    code = (
        "import sys; from llama_index.llms.agent_memory import *; llm = AgentMemory(session_id='s'); AgentMemoryCustomLLM(); "
        "AgentMemoryBuffer.from_defaults(llm); llm.with_session('t').close(); llm.metadata, llm.to_dict(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
