"""P19: deleting a Session removes it whole, even if killed half-way; what forks use, and all others, stay as they were."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.store.store import Store
from tests.store.support import KV, Child, append, assert_numbered, assert_whole, block_bytes, fill, open_session, segment, segment_files

CANARY = "canary-9e107d9d"


def prepare(root: Path) -> None:
    """A Session with a secret after its fork point, a fork of it, and a bystander."""
    with Store.open(root) as store:
        other = open_session(store, "other")
        fill(other, 4)
        other.put_segment(0, segment(0, 2))
        doomed = open_session(store, "doomed")
        fill(doomed, 6)
        doomed.put_segment(0, segment(0, 3))
        doomed.fork("fork", 4)
        for _ in range(4):
            append(doomed, 16, CANARY)
        doomed.put_segment(3, segment(3, 2, salt=5))
        doomed.put_tail(160, segment(5, 1, salt=6))


def check(root: Path) -> bool:
    """Everything but the doomed Session is whole; returns whether that one is still there, which it then is whole."""
    with Store.open(root) as store:
        assert store.verify().ok
        for name, blocks in (("other", 2), ("fork", 2)):
            timeline = open_session(store, name)
            assert (timeline.turn_count, timeline.kv_tokens) == (4, 32 * blocks)
            assert_numbered(timeline)
            assert [timeline.read_block(KV, block) for block in range(blocks)] == [block_bytes(block) for block in range(blocks)]
            timeline.close()
        there = "doomed" in {info.name for info in store.sessions()}
        if there:
            timeline = open_session(store, "doomed")
            assert (timeline.turn_count, timeline.kv_tokens) == (10, 160)
            timeline.close()
    assert_whole(root)
    if not there:
        assert_gone(root)
    return there


def assert_gone(root: Path) -> None:
    secrets = [CANARY.encode(), *(block_bytes(block, salt) for block, salt in ((2, 0), (3, 5), (4, 5), (5, 6)))]
    for path in root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path
    assert len(segment_files(root)) == 2
    assert not list((root / "locks").iterdir())


@pytest.mark.parametrize("rounds", [50, pytest.param(200, marks=pytest.mark.campaign)])
def test_killed_deletes(fresh: Callable[[], Path], rounds: int) -> None:
    delays = random.Random(4)  # noqa: S311
    template = fresh()
    prepare(template)
    work = template.with_name("work")
    outcomes = []
    for _ in range(rounds):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(template, work)

        def delete(tell: Callable[[str], None]) -> None:
            with Store.open(work) as store:
                tell("begin")
                store.delete("doomed")

        child = Child(delete)
        child.wait_for_line()
        time.sleep(delays.uniform(0, 0.04))
        child.kill()
        child.finish()
        outcomes.append(check(work))
    assert set(outcomes) == {True, False}


def test_what_was_kept_for_a_fork_goes_with_it(fresh: Callable[[], Path]) -> None:
    root = fresh()
    prepare(root)
    with Store.open(root) as store:
        store.delete("doomed")
        assert not check_names(store) & {"doomed"}
        again = open_session(store, "doomed")  # the name is free again
        fill(again, 1)
        again.close()
        store.delete("fork")
        assert check_names(store) == {"doomed", "other"}
        store.delete("doomed")
        assert check_names(store) == {"other"}
    assert len(segment_files(root)) == 1
    assert len(list((root / "sessions").iterdir())) == 1


def check_names(store: Store) -> set[str]:
    assert store.verify().ok
    return {info.name for info in store.sessions()}
