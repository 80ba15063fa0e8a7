"""How far histories and Sessions agree, against the plain definition, and whose turn it is in a conversation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import accumulate
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.chat import root
from agent_memory.chat.hashing import link
from agent_memory.errors import InvalidHistory, SessionBusy
from agent_memory.history.matching import Agreement, History, agreement, check_results, overlap, rewritten, split_head
from agent_memory.history.open_sessions import OpenSessions
from agent_memory.session import Session
from agent_memory.turns import meta_of
from agent_memory.types import Message, ToolCall, Turn

EMPTY = root("a", "m", "t", None)

TEXTS = st.sampled_from(["a", "b", " a", ""])
MESSAGES = st.one_of(
    st.builds(Message, st.just("user"), TEXTS),
    st.builds(Message, st.just("assistant"), TEXTS),
    st.builds(lambda x: Message("assistant", "", None, (ToolCall("1", "f", {"x": x}),)), st.integers(0, 1)),
)
TALKS = st.lists(MESSAGES, max_size=9)
HEADS = st.sampled_from([None, "s", "other"])


def chain_of(system: str | None, messages: list[Message]) -> list[str]:
    return list(accumulate(messages, lambda before, message: link(before, message, with_name=True), initial=root("a", "m", "t", system)))


def turns_of(system: str | None, messages: list[Message]) -> list[Turn]:
    chain = chain_of(system, messages)
    head = [] if system is None else [Turn(0, "system", None, system, 0, 1, chain[0], 0.0, {"head": True})]
    start = len(head)
    rest = [Turn(start + at, one.role, one.name, one.content, 0, 1, chain[at + 1], 0.0, meta_of(one)) for at, one in enumerate(messages)]
    return [*head, *rest]


def reader(turns: list[Turn]) -> Callable[[int, int], list[Turn]]:
    return lambda start, stop: turns[max(start, 0) : stop]


def history(system: str | None, messages: list[Message]) -> History:
    return History(system, (), messages, chain_of(system, messages))


def found(turns: list[Turn], given: History) -> Agreement:
    return agreement("s", len(turns), reader(turns), given, EMPTY)


def plain_key(message: Message) -> Any:
    text = message.content.strip() if message.role == "assistant" else message.content
    return message.role, text, [(call.name, dict(call.arguments)) for call in message.tool_calls]


@given(HEADS, TALKS, HEADS, TALKS)
def test_halving_finds_what_comparing_one_by_one_finds(
    held_head: str | None, held: list[Message], head: str | None, sent: list[Message]
) -> None:
    turns = turns_of(held_head, held)
    one = found(turns, history(head, sent))
    shared = 0
    for mine, theirs in zip(held, sent, strict=False):
        if plain_key(mine) != plain_key(theirs):
            break
        shared += 1
    if turns and held_head != head:
        assert (one.rooted, one.shared, one.goes_on) == (False, 0, False)
    else:
        expected = shared + (1 if held_head is not None and turns else 0)
        assert (one.rooted, one.shared, one.goes_on) == (True, expected, expected == len(turns))


@given(TALKS, st.integers(0, 8), TALKS)
def test_a_trimmed_history_is_the_longest_end_of_the_session(held: list[Message], dropped: int, new: list[Message]) -> None:
    sent = [*held[dropped:], *new]
    turns = turns_of(None, held)
    given = history(None, sent)
    size = overlap(given, found(turns, given), reader(turns))
    keys, stands = [plain_key(one) for one in sent], [plain_key(one) for one in held]
    fitting = [
        one
        for one in range(1, min(len(keys) - 1, len(stands)) + 1)
        if stands[-one:] == keys[:one] and any(key[0] == "assistant" for key in keys[:one])
    ]
    assert size == max(fitting, default=0)


def user(text: str) -> Message:
    return Message("user", text)


def test_a_rewritten_message_is_told_from_another_conversation() -> None:
    held = [user("a"), Message("assistant", "b"), user("c"), Message("assistant", "d")]
    turns = turns_of(None, held)
    for sent, said in (
        ([held[0], Message("assistant", "!"), *held[2:], user("next")], "message 2 (assistant)"),
        ([*held[:2], user("another"), user("way")], None),
        ([user("z"), user("y")], None),
    ):
        given = history(None, sent)
        assert rewritten(given, found(turns, given), reader(turns)) == said
    new_head = history("s", [*held, user("next")])
    assert rewritten(new_head, found(turns, new_head), reader(turns)) == "the system prompt or the tools"


def test_results_need_their_calls() -> None:
    call = Message("assistant", "", None, (ToolCall("7", "f", {}),))
    result = Message("tool", "4", "f", (), "7")
    check_results([call, result], 1, [])
    check_results([result], 1, turns_of(None, [call]))
    check_results([result, user("a")], 1, [])  # held already, so not asked
    for messages in ([result], [result, call], [call, Message("tool", "4", "f", (), "8")], [call, Message("tool", "4")]):
        with pytest.raises(InvalidHistory, match="which no message before it makes"):
            check_results(messages, len(messages), [])


def test_leading_system_messages_are_one_head() -> None:
    system = Message("system", "a")
    assert split_head([system, Message("system", "b"), user("c"), system]) == ("a\n\nb", [user("c"), system])
    assert split_head([user("c")]) == (None, [user("c")])


class _Session:
    def __init__(self) -> None:
        self.closed = 0

    def close(self, *, keep: bool = True) -> None:
        self.closed += 1


def test_sessions_used_longest_ago_are_closed_but_none_in_use() -> None:
    sessions, made = OpenSessions(lambda: 2), [_Session() for _ in range(4)]

    def use(number: int) -> None:
        with sessions.hold(("n", str(number))):
            sessions.get(("n", str(number)), str(number), lambda: cast(Session, made[number]))

    with sessions.hold(("n", "0")):
        sessions.get(("n", "0"), "0", lambda: cast(Session, made[0]))
        use(1)
        use(2)
        assert [one.closed for one in made] == [0, 1, 0, 0]
    use(3)
    assert [one.closed for one in made] == [1, 1, 0, 0]
    sessions.close_all()
    assert [one.closed for one in made] == [1, 1, 1, 1]


def test_where_there_is_room_for_one_session_others_wait_but_branches_do_not() -> None:
    sessions, made, order = OpenSessions(lambda: 1), [_Session() for _ in range(3)], list[str]()

    def other() -> None:
        with sessions.hold(("n", "b")):
            sessions.get(("n", "b"), "b", lambda: cast(Session, made[1]))
            order.append("other")

    waiting = threading.Thread(target=other)
    with sessions.hold(("n", "a")):
        sessions.get(("n", "a"), "a", lambda: cast(Session, made[0]))
        waiting.start()
        sessions.get(("n", "a"), "a/1", lambda: cast(Session, made[2]))
        order.append("branch")
    waiting.join()
    assert order == ["branch", "other"] and [one.closed for one in made] == [1, 0, 1]


def test_one_waits_for_another_but_not_for_oneself() -> None:
    sessions, order = OpenSessions(lambda: 2), list[str]()

    def other() -> None:
        with sessions.hold(("n", "a")) as mine:
            order.append(f"other {mine}")

    with sessions.hold(("n", "a")):
        with pytest.raises(SessionBusy, match="this thread is still streaming"), sessions.hold(("n", "a")):
            pass
        waiting = threading.Thread(target=other)
        waiting.start()
        with sessions.hold(("n", "b")):
            order.append("b")
    waiting.join()
    assert order == ["b", "other True"]


def test_one_who_left_has_no_turn() -> None:
    sessions = OpenSessions(lambda: 2)
    with sessions.hold(("n", "a"), lambda: True) as mine:
        assert mine is False
    with sessions.hold(("n", "a")) as mine:
        assert mine is True
    assert not sessions._lines  # nothing is kept of conversations that are over
