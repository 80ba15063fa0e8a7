"""A Session that is dropped without ``close`` is given back when Python collects it: its lock, its Blocks in memory. Nothing is written."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_memory.errors import SessionBusy
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story


@pytest.fixture(autouse=True)
def complaints(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What went wrong where nobody could be told: there must be none of it."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    yield found
    gc.collect()
    assert not found


def filled(runtime: Runtime, name: str = "a") -> Session:
    session = runtime.session(name)
    for text in story(0, 2):
        session.append("tool", text, name="registry")
    return session


def files(runtime: Runtime) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in runtime.store.root.rglob("*")}


def test_a_dropped_session_can_be_opened_again(runtime: Runtime) -> None:
    session = filled(runtime)
    with pytest.raises(SessionBusy):
        runtime.session("a")
    assert runtime.cache.stats()["blocks"] > 0
    before = files(runtime)
    del session
    gc.collect()
    assert files(runtime) == before, "nothing is written, nor removed"
    assert runtime.cache.stats()["blocks"] == 0 and runtime.cache.stats()["beside_bytes"] == 0
    with runtime.session("a") as again:
        assert [turn.role for turn in again.turns()] == ["tool"] * 2
    runtime.cache.check()


def test_its_next_reply_is_that_of_one_that_was_closed(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with filled(runtime, "closed"):
        pass
    filled(runtime, "dropped")
    gc.collect()
    replies = []
    for name in ("closed", "dropped"):
        with runtime.session(name) as session:
            replies.append(session.reply("Hi.", max_new_tokens=12))
    assert replies[0] == replies[1]


def test_another_process_may_have_it_too(runtime: Runtime, make_runtime: MakeRuntime) -> None:
    filled(runtime)
    gc.collect()
    with make_runtime().session("a") as again:  # over the same folder, with locks of its own
        assert len(again.turns()) == 2


def test_in_the_middle_of_a_reply(runtime: Runtime) -> None:
    session = filled(runtime)
    stream = session.stream("Hi.", max_new_tokens=12)
    next(stream)
    del stream, session
    gc.collect()
    with runtime.session("a") as again:
        assert [turn.role for turn in again.turns()] == ["tool"] * 2 + ["user"], "the reply is cancelled, and the message is kept"
        assert again.reply(max_new_tokens=4)


def test_in_a_cycle_with_a_reply(runtime: Runtime) -> None:
    session = filled(runtime)
    stream = session.stream("Hi.", max_new_tokens=12)
    next(stream)
    cycle: list[Any] = [session, stream]
    cycle.append(cycle)
    del stream, session, cycle
    gc.collect()
    assert runtime.cache.stats()["blocks"] == 0
    with runtime.session("a") as again:
        assert again.reply(max_new_tokens=4)
    runtime.cache.check()


def test_a_reply_that_is_left_is_over(runtime: Runtime) -> None:
    with filled(runtime) as session:
        for _ in session.stream("Hi.", max_new_tokens=12):
            break
        session.append("user", "And now?", prefill=False)


def test_whatever_lock_is_held_at_that_moment(runtime: Runtime) -> None:
    session: Session | None = filled(runtime)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime.cache._lock:
            held.set()
            done.wait(20.0)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20.0)

    def drop() -> None:
        nonlocal session
        session = None
        gc.collect()

    dropping = threading.Thread(target=drop, daemon=True)
    dropping.start()
    dropping.join(10.0)
    waits = dropping.is_alive()
    done.set()
    holder.join()
    assert not waits
    runtime.session("a").close()


def test_a_closed_session_is_given_back_once(runtime: Runtime) -> None:
    session = filled(runtime)
    session.close()
    with runtime.session("a") as again:
        del session
        gc.collect()
        again.append("user", "one")
    runtime.cache.check()
