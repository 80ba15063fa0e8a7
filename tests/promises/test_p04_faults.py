"""P4 and P6: whichever file operation fails, and however, what was acknowledged is there and nothing is half there."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agent_memory.errors import AgentMemoryError, StoreFull, StoreStopped
from agent_memory.store.store import Store
from tests.store.support import KV, FaultyFiles, append, assert_numbered, assert_whole, block_bytes, open_session, segment


def script(root: Path, files: FaultyFiles, acknowledged: list[int], forks: list[str]) -> None:
    """Everything a Store does, once."""
    with Store.open(root, files=files) as store:
        timeline = open_session(store)
        for _ in range(4):
            acknowledged.append(append(timeline).index)
        timeline.put_segment(0, segment(0, 1))
        timeline.put_segment(0, segment(0, 2))
        timeline.put_tail(64, segment(9, 1))
        timeline.fork("fork", 3)
        forks.append("fork")
        acknowledged.append(append(timeline).index)
        timeline.drop_kv(0)
        timeline.put_segment(0, segment(0, 2))
        forks.clear()  # from here on the fork may be there or not
        store.delete("fork")


def check(root: Path, acknowledged: list[int], forks: list[str]) -> None:
    """Reopen without faults: whole, and usable."""
    with Store.open(root) as store:
        assert store.verify().ok
        timeline = open_session(store)
        assert len(acknowledged) <= timeline.turn_count <= len(acknowledged) + 1
        assert_numbered(timeline)
        for block in range(timeline.kv_tokens // 32):
            assert timeline.read_block(KV, block) == block_bytes(block)
        names = {info.name for info in store.sessions()}
        assert {"s", *forks} <= names <= {"s", "fork"}
        named = {row.file for row in timeline.segments()}
        if "fork" in names:
            view = open_session(store, "fork")
            named |= {row.file for row in view.segments()}
            assert_numbered(view)
            assert view.turn_count == 3
            for block in range(view.kv_tokens // 32):
                assert view.read_block(KV, block) == block_bytes(block)
            view.close()
        append(timeline)
        timeline.close()
        on_disk = {str(path.relative_to(root / "sessions")) for path in (root / "sessions").rglob("0*")}
        assert on_disk == named
        assert not list((root / "sessions").rglob("*.tmp"))
    assert_whole(root)


def io_error() -> OSError:
    return OSError(errno.EIO, "injected")


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "injected")


FAULTS: dict[str, tuple[Callable[[], BaseException], bool, bool]] = {
    "io-once": (io_error, False, False),
    "io-lasting": (io_error, True, False),
    "full-lasting": (no_space, True, False),
    "memory-once": (MemoryError, False, False),
    "interrupt-after": (KeyboardInterrupt, False, True),
}
"""What is raised, whether from then on, and whether after the operation was done."""


@pytest.mark.parametrize("kind", FAULTS)
def test_every_operation_may_fail(kind: str, fresh: Callable[[], Path]) -> None:
    error, lasting, after = FAULTS[kind]
    nth = 0
    while True:
        root, acknowledged, forks = fresh(), list[int](), list[str]()
        files = FaultyFiles(nth, error, lasting=lasting, after=after)
        try:
            script(root, files, acknowledged, forks)
        except (AgentMemoryError, MemoryError, KeyboardInterrupt):
            pass
        check(root, acknowledged, forks)
        if len(files.done) <= nth:
            break
        nth += 1
    assert nth > 60


SYNCS = frozenset({"fsync", "fsync_folder", "before_commit"})


def test_a_failed_sync_stops_the_store_until_it_is_reopened(fresh: Callable[[], Path]) -> None:
    nth = 0
    while True:
        root = fresh()
        files = FaultyFiles(nth, io_error)
        files.only = SYNCS
        store = Store.open(root, files=files)
        written = 0
        try:
            timeline = open_session(store)
            for number in range(3):
                append(timeline, 32)
                written += 1
                timeline.put_segment(number, segment(number, 1))
        except StoreStopped:
            done = len(files.done)
            with pytest.raises(StoreStopped):
                open_session(store, "other")
            if written:
                with pytest.raises(StoreStopped):
                    append(timeline, 32)
                assert_numbered(timeline, 32)  # reading goes on
            assert len(files.done) == done  # nothing was tried again
        store.close()
        with Store.open(root) as again:
            reopened = open_session(again)
            assert reopened.turn_count == written
            assert again.verify().ok
            append(reopened, 32)
        if len(files.done) <= nth:
            break
        nth += 1
    assert nth > 10


def test_no_room_is_not_the_end(fresh: Callable[[], Path]) -> None:
    nth = 0
    while True:
        root = fresh()
        files = FaultyFiles(nth, no_space)
        files.only = frozenset({"write", "fsync", "before_commit"})
        with Store.open(root, files=files) as store:
            full = 0
            while True:
                try:
                    timeline = open_session(store)
                    break
                except StoreFull:
                    full += 1
            for number in range(3):
                tensors = segment(number, 1)
                for step in (partial(append, timeline, 32), partial(timeline.put_segment, number, tensors)):
                    try:
                        step()
                    except StoreFull:
                        full += 1
                        step()
            assert timeline.turn_count == 3
            assert timeline.kv_tokens == 96
            assert_numbered(timeline, 32)
            assert store.verify().ok
            assert full == (1 if len(files.done) > nth else 0)
        if len(files.done) <= nth:
            break
        nth += 1
    assert nth > 5
