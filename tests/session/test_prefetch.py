"""Sessions that read ahead: the same answers and the same Recall as without, and Blocks that are there before they are asked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from agent_memory.pocket import data
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget, Recall
from tests.session.conftest import MakeRuntime, story

QUESTION = data.question("foo-bar", "version")
DEVICE = "10MiB"  # hardly more than one step needs


def filled(runtime: Runtime, name: str, seed: int) -> Session:
    session = runtime.session(name)
    for text in story(seed, 40):
        session.append("tool", text, name="read", prefill=False)
    session.prefill()
    return session


def drained(runtime: Runtime) -> None:
    until = time.monotonic() + 20
    while len(runtime.cache._arrivals):
        assert time.monotonic() < until
        time.sleep(0.001)


def recall_of(session: Session) -> Recall:
    assert session.last_recall is not None
    return session.last_recall


def test_answers_and_recalls_are_those_without(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    found = []
    for prefetch in (True, False):
        runtime = make_runtime(store=tmp_path / str(prefetch), budget=Budget(device=DEVICE, prefetch=prefetch))
        session = filled(runtime, "a", 1)
        session.close()
        cold = make_runtime(store=tmp_path / str(prefetch), budget=Budget(device=DEVICE, prefetch=prefetch))
        with cold.session("a") as session:
            answers = [session.reply(QUESTION, max_new_tokens=12) for _ in range(2)]
            recall = recall_of(session)
            drained(cold)
            stats = cold.cache.stats()
            cold.cache.check()
        found.append((answers, recall.blocks, [(hit.turn, hit.score) for hit in recall.turns]))
        assert (stats["prefetch_asked"] > 0) == prefetch
        assert stats["prefetch_hits"] <= stats["prefetched"] <= stats["prefetch_asked"]
    assert found[0] == found[1]


def test_what_the_last_reply_read_comes_up_when_the_next_turn_begins(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(budget=Budget(device=DEVICE))
    session = filled(runtime, "a", 1)
    session.reply(QUESTION, max_new_tokens=6)
    other = filled(runtime, "b", 2)  # pushes all of it out
    other.close()
    drained(runtime)
    before = runtime.cache.stats()
    session.append("user", QUESTION, prefill=False)
    assert runtime.cache.stats()["prefetch_asked"] > before["prefetch_asked"]
    drained(runtime)
    brought = runtime.cache.stats()["prefetched"] - before["prefetched"]
    assert brought > 0
    session.reply(max_new_tokens=6)
    assert runtime.cache.stats()["prefetch_hits"] - before["prefetch_hits"] > 0
    assert recall_of(session).tiers.get("disk", 0) > 0
    session.close()


def test_closing_while_blocks_are_on_their_way(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(budget=Budget(device=DEVICE))
    session = filled(runtime, "a", 1)
    session.reply(QUESTION, max_new_tokens=6)
    filled(runtime, "b", 2).close()
    session.append("user", QUESTION, prefill=False)
    session.close(keep=False)
    runtime.cache.check()
    assert runtime.cache.stats()["blocks"] == 0
    runtime.close()
    runtime.cache.check()
    assert not any("agent-memory" in thread.name for thread in threading.enumerate())
