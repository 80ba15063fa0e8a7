"""P9: one writer per Session, named to the second one, and freed at once when it is killed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.errors import SessionBusy, SessionClosed
from agent_memory.store.store import Store
from tests.store.support import Child, append, assert_numbered, open_session

WRITERS, ATTEMPTS = 8, 200


def test_many_processes_never_two_writers(fresh: Callable[[], Path]) -> None:
    root = fresh()
    marker = root / "writing"

    def compete(tell: Callable[[str], None]) -> None:
        with Store.open(root) as store:
            for _ in range(ATTEMPTS):
                try:
                    timeline = open_session(store)
                except SessionBusy:
                    time.sleep(0.001)
                    continue
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails if there is another writer
                tell(str(append(timeline).index))
                marker.unlink()
                timeline.close()

    children = [Child(compete) for _ in range(WRITERS)]
    results = [child.finish() for child in children]
    assert [status for _, status in results] == [0] * WRITERS
    written = sorted(int(line) for lines, _ in results for line in lines)
    assert written == list(range(len(written)))
    with Store.open(root) as store:
        timeline = open_session(store)
        assert timeline.turn_count == len(written) > WRITERS
        assert_numbered(timeline)
        assert store.verify().ok


def hold(root: Path, tell: Callable[[str], None], *, with_child: bool = False) -> None:
    with Store.open(root) as store:
        timeline = open_session(store)
        append(timeline)
        if with_child and os.fork() == 0:
            tell("forked")
            time.sleep(60)
            os._exit(0)
        tell(f"held {os.getpid()}")
        time.sleep(60)


def test_the_second_is_told_who_holds_it_and_a_killed_holder_frees_it(fresh: Callable[[], Path]) -> None:
    root = fresh()
    child = Child(lambda tell: hold(root, tell))
    assert child.wait_for_line() == f"held {child.pid}"
    with Store.open(root) as store:
        with pytest.raises(SessionBusy, match=f"process {child.pid}"):
            open_session(store)
        with pytest.raises(SessionBusy):
            store.delete("s")
        reader = open_session(store, read_only=True)
        assert reader.turn_count == 1
        reader.close()
        child.kill()
        child.finish()
        timeline = open_session(store)
        append(timeline)
        assert_numbered(timeline)


def test_a_child_of_the_killed_holder_does_not_keep_it(fresh: Callable[[], Path]) -> None:
    root = fresh()
    child = Child(lambda tell: hold(root, tell, with_child=True))
    lines = {child.wait_for_line().split()[0], child.wait_for_line().split()[0]}
    assert lines == {"forked", "held"}
    child.kill()
    os.waitpid(child.pid, 0)
    with Store.open(root) as store:
        append(open_session(store))


def test_waiting_for_a_holder_that_ends(fresh: Callable[[], Path]) -> None:
    root = fresh()
    child = Child(lambda tell: hold(root, tell))
    child.wait_for_line()
    with Store.open(root) as store:
        threading.Timer(0.1, child.kill).start()
        append(open_session(store, timeout=30))
    child.finish()


def test_a_forked_child_cannot_use_it(store: Store) -> None:
    timeline = open_session(store)
    append(timeline)

    def use(tell: Callable[[str], None]) -> None:
        for action in (lambda: append(timeline), timeline.turns, store.sessions, lambda: open_session(store, "other")):
            try:
                action()
            except SessionClosed:
                tell("refused")
        store.close()

    assert Child(use).finish() == (["refused"] * 4, 0)
    append(timeline)
    with pytest.raises(SessionBusy):
        open_session(store)


def test_a_second_thread_waits_then_is_refused(store: Store) -> None:
    timeline = open_session(store)
    waiting = open_session(store, "patient", timeout=30)
    append(timeline)
    append(waiting)
    entered, leave = threading.Event(), threading.Event()

    def slow(session: object) -> None:
        with session._writing():  # type: ignore[attr-defined]
            entered.set()
            leave.wait(30)

    for session, patient in ((timeline, False), (waiting, True)):
        entered.clear()
        leave.clear()
        thread = threading.Thread(target=slow, args=(session,))
        thread.start()
        assert entered.wait(30)
        if patient:
            threading.Timer(0.05, leave.set).start()
            append(session)
        else:
            with pytest.raises(SessionBusy, match="another thread"):
                append(session)
            assert session.turns()[0].index == 0  # reading needs no turn
        leave.set()
        thread.join()
    assert (timeline.turn_count, waiting.turn_count) == (1, 2)


def test_after_close(store: Store) -> None:
    timeline = open_session(store)
    append(timeline)
    timeline.close()
    timeline.close()
    for action in (lambda: append(timeline), timeline.turns, lambda: timeline.token_count, timeline.segments):
        with pytest.raises(SessionClosed):
            action()
    append(open_session(store))
    store.close()
    with pytest.raises(SessionClosed):
        store.sessions()
