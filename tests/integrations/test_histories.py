"""A client that sends its whole history each time: what is appended, what becomes a branch, and that nothing is overwritten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator

import pytest

from agent_memory.errors import AgentMemoryError, ConfigError
from agent_memory.history import Histories, Reply, Request, in_one_thread
from agent_memory.runtime import Runtime
from agent_memory.types import Message, ReplyFormat

Talk = Callable[..., Reply]


@pytest.fixture
def histories(tiny_model: str) -> Iterator[Histories]:
    made = Histories(lambda: Runtime.load(tiny_model, store="memory"), "alice")
    yield made
    made.close()


@pytest.fixture
def ask(histories: Histories) -> Talk:
    def ask(*messages: Message, session: str | None = "s", **options: object) -> Reply:
        return histories.reply(Request(session, messages, max_new_tokens=4, **options))  # type: ignore[arg-type]

    return ask


def user(text: str) -> Message:
    return Message("user", text)


def names(histories: Histories) -> list[str]:
    return [info.name for info in histories.runtime.store.sessions("alice", branches=True)]


def test_only_what_is_new_is_appended(histories: Histories, ask: Talk) -> None:
    first = ask(user("one"))
    assert (first.known, first.session) == (0, "s") and first.added > 0
    second = ask(user("one"), first.message, user("two"))
    assert second.known == first.added + first.turn.tokens
    assert [turn.text for turn in histories.runtime.store.turns("s", "alice")] == [
        "one",
        first.message.content,
        "two",
        second.message.content,
    ]
    assert names(histories) == ["s"]


def test_a_client_may_strip_an_answer(histories: Histories, ask: Talk) -> None:
    first = ask(user("one"))
    ask(user("one"), Message("assistant", f"  {first.message.content}\n"), user("two"))
    assert names(histories) == ["s"]


def test_an_edited_history_is_a_branch_and_the_old_one_stays(histories: Histories, ask: Talk) -> None:
    first = ask(user("one"))
    second = ask(user("one"), first.message, user("two"))
    edited = ask(user("one"), first.message, user("TWO"))
    assert (edited.session, edited.known) == ("s/1", second.known)
    goes_on = ask(user("one"), first.message, user("TWO"), edited.message, user("three"))
    assert goes_on.session == "s/1"
    old = ask(user("one"), first.message, user("two"), second.message, user("four"))
    assert old.session == "s"
    assert names(histories) == ["s", "s/1"]


def test_asking_again_is_a_branch(ask: Talk) -> None:
    first = ask(user("one"))
    again = ask(user("one"))
    assert (again.session, again.message.content) == ("s/1", first.message.content)


def test_of_branches_that_fit_the_longest_goes_on(ask: Talk) -> None:
    first = ask(user("one"))
    assert ask(user("one")).session == "s/1"
    talk = [user("one"), first.message, user("two")]
    talk.append(ask(*talk).message)
    assert ask(*talk, user("three")).session == "s"


def test_a_branch_is_made_of_the_one_that_agrees_longest(ask: Talk) -> None:
    talk = [user("one"), ask(user("one")).message]
    ask(*talk, user("two"))
    talk.append(user("TWO"))
    talk.append(ask(*talk).message)
    held = ask(*talk, user("three"))
    edited = ask(*talk, user("THREE"))
    assert (held.session, edited.session, edited.known) == ("s/1", "s/2", held.known)


def test_a_new_branch_takes_no_name_that_is_taken(histories: Histories, ask: Talk) -> None:
    assert [ask(user("one")).session for _ in range(3)] == ["s", "s/1", "s/2"]
    histories.close()
    histories.runtime.store.delete("s/1", "alice")
    assert ask(user("one")).session == "s/3"
    assert histories.branches("s", "alice") == ["s", "s/2", "s/3"]


def test_a_history_that_begins_as_the_session_does_may_still_be_its_end(histories: Histories, ask: Talk) -> None:
    """Of two ways to read it, an edit early on and a trimmed beginning, the one counts by which more is known."""
    said = Message("assistant", "x")
    last = ask(user("on"), said, user("on"))
    assert ask(user("on"), last.message, user("next")).session == "s"
    assert len(histories.messages("s", "alice")) == 6
    assert ask(user("on"), said, user("other")).session == "s/1"


def test_what_is_read_is_counted(ask: Talk) -> None:
    first = ask(user("one"))
    second = ask(user("one"), first.message, user("two"))
    assert first.added <= first.prefilled <= first.added + 4
    assert second.added <= second.prefilled <= second.added + first.turn.tokens + 16


def test_another_system_prompt_is_a_branch(histories: Histories, ask: Talk) -> None:
    ask(Message("system", "Be brief."), user("one"))
    assert ask(Message("system", "Be long."), user("one")).session == "s/1"
    assert [turn.text for turn in histories.runtime.store.turns("s/1", "alice", 0, 2)] == ["Be long.", "one"]


def test_history_survives_closing(histories: Histories, ask: Talk) -> None:
    first = ask(user("one"))
    histories.close()
    second = ask(user("one"), first.message, user("two"))
    assert second.known == first.added + first.turn.tokens


def test_new_messages_only(histories: Histories, ask: Talk) -> None:
    ask(user("one"), given="new")
    ask(user("one"), given="new")
    assert [turn.role for turn in histories.runtime.store.turns("s", "alice")] == ["user", "assistant"] * 2


def test_without_a_name_nothing_stays(histories: Histories, ask: Talk) -> None:
    assert ask(user("one"), session=None).generated > 0
    assert names(histories) == []


def test_leaving_early_keeps_the_question_only(histories: Histories) -> None:
    pieces = histories.stream(Request("s", [user("one")], max_new_tokens=64))
    next(pieces)
    pieces.close()
    assert [turn.role for turn in histories.runtime.store.turns("s", "alice")] == ["user"]


def test_one_who_is_gone_gets_no_reply_and_leaves_the_question_only(histories: Histories) -> None:
    asked = iter([False] * 4)
    with pytest.raises(AgentMemoryError, match="was cancelled"):
        histories.reply(Request("s", [user("one")], max_new_tokens=64), lambda: next(asked, True))
    assert [turn.role for turn in histories.runtime.store.turns("s", "alice")] == ["user"]


def test_a_format_that_cannot_be_is_said_before_anything_is_appended(histories: Histories, ask: Talk) -> None:
    for given in ("new", "whole"):
        with pytest.raises(ConfigError, match="needs tools, and this session has none"):
            ask(user("one"), given=given, format=ReplyFormat("required"))
    assert histories.messages("s", "alice") == []


def test_nothing_to_answer_is_said(ask: Talk) -> None:
    with pytest.raises(ConfigError, match="no message to answer"):
        ask(Message("system", "Be brief."))


def test_one_thread_runs_a_whole_stream() -> None:
    seen: list[int] = []

    def pieces() -> Generator[int, None, None]:
        for number in range(3):
            seen.append(threading.get_ident())
            yield number

    async def collect() -> list[int]:
        return [piece async for piece in in_one_thread(pieces())]

    assert asyncio.run(collect()) == [0, 1, 2]
    assert len(set(seen)) == 1 and seen[0] != threading.get_ident()


def test_an_async_stream_that_is_left_stops_and_closes_what_it_ran() -> None:
    closed = threading.Event()
    made: list[int] = []

    def pieces() -> Generator[int, None, None]:
        try:
            for number in range(300_000):
                made.append(number)
                yield number
        finally:
            closed.set()

    async def leave() -> None:
        stream = in_one_thread(pieces())
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert closed.is_set() and len(made) < 300_000


def test_an_error_crosses_over() -> None:
    def pieces() -> Generator[int, None, None]:
        yield 1
        raise ConfigError("no")

    async def collect() -> list[int]:
        return [piece async for piece in in_one_thread(pieces())]

    with pytest.raises(ConfigError, match="no"):
        asyncio.run(collect())


def test_threads_are_what_their_names_say(histories: Histories, ask: Talk) -> None:
    """``org/7`` is no branch of ``org``, and a thread that is called like another one's branch is a thread of its own."""
    ask(user("mine"), session="org")
    ask(user("not yours"), session="org/7")
    assert histories.branches("org") == ["org"]
    assert [message.content for message in histories.messages("org/7")][0] == "not yours"
    first = histories.messages("org")
    ask(user("mine"), first[1], user("more"), session="org")
    ask(user("another"), session="org")
    assert histories.branches("org") == ["org", "org/1"]
    assert [message.content for message in histories.messages("org", branch="org/1")][0] == "another"
    assert histories.messages("org/1") == histories.messages("org", branch="org/7") == []
    own = ask(user("a thread of its own"), session="org/1")
    assert own.known == 0 and histories.branches("org/1") == [own.session] != ["org/1"]
    assert ask(user("a thread of its own"), own.message, user("more"), session="org/1").session == own.session
    ask(user("a third way"), session="org")
    assert len(histories.branches("org")) == 3 and own.session not in histories.branches("org")
    histories.copy("org", "copy")
    assert len(histories.branches("copy")) == 3
    histories.prune(["org"])
    assert len(histories.branches("org")) == 1
    histories.delete("org")
    assert histories.messages("org") == []
    assert [message.content for message in histories.messages("org/7")][0] == "not yours"
    assert [message.content for message in histories.messages("org/1")][0] == "a thread of its own"
