"""What is appended, turn by turn, is what the template makes of the whole conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from agent_memory.chat import ChatFormat
from agent_memory.errors import ConfigError, EmptyMessage
from agent_memory.types import Message, ToolCall

TOOLS = [
    {"type": "function", "function": {"name": "lookup", "description": "Look up.", "parameters": {"type": "object", "properties": {}}}}
]
CALL = ToolCall("a1b2c3d4e", "lookup", {"name": "fox"})
U1, A1 = Message("user", "What is the quick fox?"), Message("assistant", "It jumps over the dog.")
U2, A2 = Message("user", "  And the lazy dog? \n"), Message("assistant", "It returns 42.")
ASK, OUT = Message("assistant", "", tool_calls=(CALL,)), Message("tool", "404 not found", "lookup", (), CALL.id)
PLAIN, WITH_TOOL = (U1, A1, U2, A2, U1), (U1, A1, U2, ASK, OUT, A2, U1, A1)
TokenizerOf = Callable[[str], Any]


def as_dicts(messages: Sequence[Message], system: str | None = None) -> list[dict[str, Any]]:
    dicts: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            item["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ]
        if message.role == "tool":
            item |= {"name": message.name, "tool_call_id": message.tool_call_id}
        dicts.append(item)
    return dicts


def rendered(tokenizer: Any, messages: Sequence[Message], system: str | None = None, tools: Any = None) -> list[int]:
    text = tokenizer.apply_chat_template(as_dicts(messages, system), tools=tools or None, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


def appended(chat: ChatFormat, messages: Sequence[Message], system: str | None = None, tools: Any = ()) -> list[int]:
    ids = chat.head(system, tools)
    for index, message in enumerate(messages):
        ids += chat.append(message, previous=messages[:index], system=system, tools=tools)
    return ids


@pytest.mark.parametrize(
    ("name", "messages", "system", "tools"),
    [
        ("chatml", PLAIN, None, ()), ("chatml", PLAIN, "Be brief.", ()), ("chatml", WITH_TOOL, "Be brief.", TOOLS),
        ("chatml", (U1, ASK, OUT, OUT, A1), None, TOOLS), ("chatml", (U1, U1, OUT, A1, A1), None, ()), ("chatml", (OUT, U1), None, ()),
        ("llama3", PLAIN, None, ()), ("llama3", PLAIN, "Be brief.", ()), ("llama3", WITH_TOOL, "Be brief.", TOOLS),
        ("mistral", PLAIN, None, ()), ("mistral", WITH_TOOL, None, ()),
        ("gemma", PLAIN, None, ()), ("no_tool", PLAIN, "Be brief.", ()),
    ],
)  # fmt: skip
def test_sum_of_appends_is_the_whole(tokenizer_of: TokenizerOf, name: str, messages: Any, system: str | None, tools: Any) -> None:
    tokenizer = tokenizer_of(name)
    assert appended(ChatFormat(tokenizer), messages, system, tools) == rendered(tokenizer, messages, system, tools)


def test_no_second_bos(tokenizer_of: TokenizerOf) -> None:
    for name in ("llama3", "mistral", "gemma"):
        tokenizer = tokenizer_of(name)
        ids = appended(ChatFormat(tokenizer), PLAIN)
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_head_that_moves_stays_in_front(tokenizer_of: TokenizerOf) -> None:
    """Mistral's template puts system prompt and tools before the *last* question; ours stay where they were first put."""
    tokenizer = tokenizer_of("mistral")
    chat = ChatFormat(tokenizer)
    head = tokenizer.decode(chat.head("Be brief.", TOOLS))
    assert "lookup" in head and "Be brief." in head
    ids = appended(chat, WITH_TOOL, "Be brief.", TOOLS)
    first = rendered(tokenizer, WITH_TOOL[:1], "Be brief.", TOOLS)
    assert ids[: len(first)] == first
    text = tokenizer.decode(ids)
    assert text.count("Be brief.") == 1 and text.count("[AVAILABLE_TOOLS]") == 1 and not chat.stable


def test_system_prompt_refused_opens_the_first_user_turn(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("gemma")
    chat = ChatFormat(tokenizer)
    merged = (Message("user", f"Be brief.\n\n{U1.content}"), *PLAIN[1:])
    assert appended(chat, PLAIN, "Be brief.") == rendered(tokenizer, merged)
    assert "Be brief." in tokenizer.decode(chat.head("Be brief."))
    before_question = tokenizer.decode(appended(chat, (OUT, U1), "Be brief."))
    assert before_question.count("<start_of_turn>user") == before_question.count("<end_of_turn>") == 3


def test_tools_unknown_to_the_template_join_the_system_prompt(tokenizer_of: TokenizerOf) -> None:
    for name in ("gemma", "no_tool"):
        tokenizer = tokenizer_of(name)
        head = tokenizer.decode(ChatFormat(tokenizer).head("Be brief.", TOOLS))
        assert head.index("Be brief.") < head.index("<tool_call>") < head.index('"lookup"')


def test_refused_tool_role_is_a_headed_user_turn(tokenizer_of: TokenizerOf) -> None:
    for name, open_turn, end in (("no_tool", "<|im_start|>user\n", "<|im_end|>\n"), ("gemma", "<start_of_turn>user\n", "<end_of_turn>\n")):
        tokenizer = tokenizer_of(name)
        chat = ChatFormat(tokenizer)
        asked = tokenizer.decode(chat.append(ASK, previous=(U1,)))
        assert '<tool_call>{"name": "lookup", "arguments": {"name": "fox"}}</tool_call>' in asked
        for previous in ((U1, ASK), (U1, ASK, OUT), (U1,)):
            assert tokenizer.decode(chat.append(OUT, previous=previous)) == f"{open_turn}[tool lookup]\n404 not found{end}"


def test_forgetful_template_keeps_what_was_generated(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("forgetful")
    chat = ChatFormat(tokenizer)
    assert not chat.stable
    ids = chat.head() + chat.append(U1) + chat.generation_prompt()
    generated = tokenizer.encode("<think>\nfox?\n</think>\n\nIt jumps.<|im_end|>", add_special_tokens=False)
    ids += generated + chat.closing(generated)
    reply = Message("assistant", "It jumps.")
    ids += chat.append(U2, previous=(U1, reply)) + chat.append(ASK, previous=(U1, reply, U2))
    for output in ("one", "two"):
        ids += chat.append(Message("tool", output, "lookup", (), CALL.id), previous=(U1, reply, U2, ASK, *([OUT] * (output == "two"))))
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nWhat is the quick fox?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nfox?\n</think>\n\nIt jumps.<|im_end|>\n"
        "<|im_start|>user\n  And the lazy dog? \n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '\n<tool_call>\n{"name": "lookup", "arguments": {"name": "fox"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
    )


def test_stable_is_found_by_probing(tokenizer_of: TokenizerOf) -> None:
    stable = {name: ChatFormat(tokenizer_of(name)).stable for name in ("chatml", "llama3", "gemma", "no_tool", "forgetful")}
    assert stable == {"chatml": True, "llama3": True, "gemma": True, "no_tool": True, "forgetful": False}


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "no_tool", "mistral"])
def test_prompt_reply_and_closing_make_the_assistant_turn(tokenizer_of: TokenizerOf, name: str) -> None:
    tokenizer = tokenizer_of(name)
    chat = ChatFormat(tokenizer)
    words = tokenizer.encode(A1.content, add_special_tokens=False)
    turn = chat.append(A1, previous=(U1,))
    end = [token for token in turn if token in chat.end_ids][-1]
    for generated in (words, [*words, end]):
        made = chat.generation_prompt(previous=(U1,)) + generated + chat.closing(generated)
        assert tokenizer.decode(made).replace(" ", "") == tokenizer.decode(turn).replace(" ", "")
    assert tokenizer.convert_ids_to_tokens(end) in ("<|im_end|>", "<|eot|>", "<end_of_turn>", "</s>")
    assert chat.closing() == chat.closing(words)


def test_cost_does_not_grow_with_the_conversation(tokenizer_of: TokenizerOf, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("chatml")
    chat = ChatFormat(tokenizer)
    work: list[int] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, **rest: Any) -> Any:
            work.append(len(str(what)))
            return function(what, **rest)

        return call

    for name in ("encode", "apply_chat_template"):
        monkeypatch.setattr(tokenizer, name, counted(getattr(tokenizer, name)))

    def spent(previous: Sequence[Message], message: Message) -> int:
        work.clear()
        chat.append(message, previous=previous)
        return sum(work)

    long = [U1, Message("assistant", "fox " * 50_000), *[U2, A2] * 500, U1, ASK, *[OUT] * 10]
    assert spent(long, U2) == spent(long[-13:], U2) < 4_000
    assert spent([*long, *[OUT] * 3_000], OUT) < 20_000
    assert spent([U1, Message("assistant", "fox " * 50_000)], U2) < 4_000
    assert spent([U1, A1, Message("user", "fox " * 50_000)], A1) < 4_000


def test_a_message_after_a_system_message(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("chatml")
    talk = (U1, A1, Message("system", "Now be long."), U2, A2)
    assert appended(ChatFormat(tokenizer), talk) == rendered(tokenizer, talk)
    gemma = tokenizer_of("gemma")
    assert "user\n[system]\nNow be long." in gemma.decode(ChatFormat(gemma).append(talk[2], previous=talk[:2]))


def test_arguments_as_text_for_templates_that_join_them(custom: Any) -> None:
    template = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function.name + ' ' + c.function.arguments + '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>' }}{%- endfor %}"""
    tokenizer = custom(template)
    assert '<tool_call>lookup {"name": "fox"}</tool_call>' in tokenizer.decode(ChatFormat(tokenizer).append(ASK, previous=(U1,)))


def test_prompt_of_a_template_that_knows_none(custom: Any) -> None:
    tokenizer = custom("{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{%- endfor %}")
    assert tokenizer.decode(ChatFormat(tokenizer).generation_prompt()) == "<|im_start|>assistant\n"


def test_template_kwargs_reach_the_template(custom: Any) -> None:
    tokenizer = custom(
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant' + ('<think>' if thinking else '') }}{%- endif %}"
    )
    plain, thinking = ChatFormat(tokenizer), ChatFormat(tokenizer, template_kwargs={"thinking": True})
    assert tokenizer.decode(thinking.generation_prompt()) == tokenizer.decode(plain.generation_prompt()) + "<think>"
    assert plain.template_hash != thinking.template_hash
    assert thinking.parse(tokenizer.encode("a fox</think>It jumps.", add_special_tokens=False)).reasoning == "a fox"
    assert thinking.parse(tokenizer.encode("a fox", add_special_tokens=False)).content == ""


def test_empty_messages_are_refused(tokenizer_of: TokenizerOf) -> None:
    chat = ChatFormat(tokenizer_of("chatml"))
    for role in ("user", "tool", "system"):
        with pytest.raises(EmptyMessage, match=role):
            chat.append(Message(role, " \n"), previous=(U1,))
    assert chat.append(ASK, previous=(U1,))
    silent = chat.append(Message("assistant", ""), previous=(U1,))  # a model may have had nothing to say
    assert silent == [*chat.generation_prompt(previous=(U1,)), *chat.closing()]
    with pytest.raises(ConfigError, match="must be text, not list"):
        chat.append(Message("user", cast(str, ["x"])))


def test_a_tokenizer_without_template_is_refused(custom: Any) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        ChatFormat(custom(None))
    with pytest.raises(ConfigError, match="cannot render a user message"):
        ChatFormat(custom("{{- raise_exception('never') }}"))
