"""Reading many Blocks at once: as few reads as the files allow, on several threads where that pays, and damage as for one Block."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory.errors import SessionClosed
from agent_memory.store import reader
from agent_memory.store.files import Files
from agent_memory.store.store import Store
from agent_memory.store.threads import ReadThreads
from agent_memory.store.timeline import Timeline
from tests.store.support import KV, SUMMARY, Child, FaultyFiles, block_bytes, fill, open_session, segment, segment_files

SIZE, BLOCKS = 2048, 96


class SlowFiles(Files):
    """Gives at most ``most`` bytes a read, and can be made to wait in the middle of one."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most, self.open_now = most, 0
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def open_for_reading(self, path: Path) -> tuple[int, int]:
        found = super().open_for_reading(path)
        self.open_now += 1
        return found

    def close(self, fd: int) -> None:
        self.open_now -= 1
        super().close(fd)

    def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.inside.set()
        assert self.go_on.wait(20)
        return super().pread_into(fd, [buffers[0][: self.most]] if self.most < buffers[0].nbytes else buffers, offset)


@pytest.fixture(scope="module")
def made(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Store with three full Segments."""
    root = tmp_path_factory.mktemp("reading") / "store"
    with Store.open(root) as store:
        timeline = open_session(store)
        fill(timeline, 2 * BLOCKS)
        for first in range(0, BLOCKS, 32):
            timeline.put_segment(first, segment(first, 32))
    return root


def read(timeline: Timeline, blocks: Sequence[int], tensor: str = KV) -> list[int]:
    """Read Blocks and compare; the positions that could not be trusted."""
    size = len(block_bytes(0, tensor=tensor))
    out = np.full((len(blocks), size), 7, np.uint8)
    bad = timeline.read_blocks(tensor, blocks, out)
    for position, block in enumerate(blocks):
        assert bytes(out[position]) == (bytes(size) if position in bad else block_bytes(block, tensor=tensor)), block
    return bad


def started(store: Store) -> bool:
    return store._threads.started


@pytest.mark.parametrize("turned", [False, True])
def test_neighbours_in_a_file_cost_one_read(made: Path, turned: bool) -> None:
    with Store.open(made) as store:
        timeline = open_session(store, read_only=True)
        blocks = list(range(16, 80))  # 64 in a row, of three Segments
        assert read(timeline, blocks[::-1] if turned else blocks) == []
        assert (timeline.reads.reads, timeline.reads.bytes, timeline.reads.blocks) == (3, 64 * SIZE, 64)
        read(timeline, [1, 3, 4, 5, 40, 41, 90, 7])  # 1; 3 to 5; 7; 40 and 41; 90
        assert (timeline.reads.reads, timeline.reads.blocks) == (8, 72)
        before = timeline.reads.bytes
        assert len(timeline.read_segment_tensor(KV, 32)) == 32 * SIZE
        assert (timeline.reads.reads, timeline.reads.bytes - before) == (9, 32 * SIZE)
        assert read(timeline, [2, 2, 2]) == []


def test_a_few_reads_or_quick_ones_wake_no_thread(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(made) as store:
        timeline = open_session(store, read_only=True)
        monkeypatch.setattr(reader, "WAKE_SECONDS", 0.0)
        read(timeline, [0, 33])
        read(timeline, range(32))
        assert not started(store)
        monkeypatch.setattr(reader, "WAKE_SECONDS", 60.0)
        read(timeline, range(0, BLOCKS, 3))
        assert not started(store)
        monkeypatch.setattr(reader, "WAKE_SECONDS", 0.0)
        for _ in range(20):
            assert read(timeline, range(0, BLOCKS, 3)) == []
        assert started(store)
        assert sum("agent-memory-read" in thread.name for thread in threading.enumerate()) <= 4
    assert not any("agent-memory-read" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("most", [1, 100, SIZE, SIZE + 1])
def test_reads_that_give_less_than_was_asked_are_gone_on_with(made: Path, most: int) -> None:
    with Store.open(made, files=SlowFiles(most)) as store:
        timeline = open_session(store, read_only=True)
        assert read(timeline, [0, 1, 2, 40]) == []
        assert timeline.reads.bytes == 4 * SIZE


@pytest.mark.parametrize("wake", [0.0, 60.0])
def test_of_a_run_only_the_damaged_block_is_lost(
    made: Path, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, wake: float
) -> None:
    monkeypatch.setattr(reader, "WAKE_SECONDS", wake)
    root = fresh()
    shutil.rmtree(root)
    shutil.copytree(made, root)
    path = segment_files(root)[1]
    whole = path.read_bytes()
    with Store.open(root) as store:
        timeline = open_session(store, read_only=True)
        start = whole.index(block_bytes(40))
        path.write_bytes(whole[:start] + b"\xff\x00\xff" + whole[start + 3 :])
        assert read(timeline, range(BLOCKS)) == [40]
        assert read(timeline, range(0, BLOCKS, 2)) == [20]
        assert read(timeline, range(BLOCKS), SUMMARY) == []
        path.write_bytes(whole[: whole.index(block_bytes(50)) + 10])
        assert read(timeline, range(BLOCKS)) == list(range(50, 64))
        path.unlink()
        timeline.close()
        timeline = open_session(store, read_only=True)
        assert read(timeline, range(BLOCKS)) == list(range(32, 64))
        assert read(timeline, [95, 96, 99, 0]) == [1, 2]


def test_whichever_read_fails_nothing_wrong_is_handed_out(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WAKE_SECONDS", 0.0)
    blocks = sorted(random.Random(4).sample(range(BLOCKS), 40))
    nth = 0
    while True:
        files = FaultyFiles(nth)
        files.only = frozenset({"pread_into", "open_for_reading"})
        with Store.open(made, files=files) as store:
            files.done.clear()
            assert read(open_session(store, read_only=True), blocks) == []  # one that fails is made again
            if len(files.done) <= nth:
                break
        nth += 1
    assert nth >= 20
    lasting = FaultyFiles(5, lasting=True)
    lasting.only = frozenset({"pread_into"})
    with Store.open(made, files=lasting) as store:
        lasting.done.clear()
        assert 0 < len(read(open_session(store, read_only=True), blocks)) < len(blocks)


def test_a_file_that_is_being_read_is_closed_afterwards(made: Path) -> None:
    files = SlowFiles()
    with Store.open(made, files=files) as store:
        timeline = open_session(store, read_only=True)
        files.inside.clear()
        files.go_on.clear()
        found: list[list[int]] = []
        thread = threading.Thread(target=lambda: found.append(read(timeline, range(32))))
        thread.start()
        assert files.inside.wait(20)
        timeline.close()
        assert files.open_now == 1
        files.go_on.set()
        thread.join()
        assert found == [[]] and files.open_now == 0
        with pytest.raises(SessionClosed):
            read(timeline, range(32))


def test_threads_are_not_used_after_close_or_fork() -> None:
    threads = ReadThreads(2)
    calls: list[Callable[[], Any]] = [lambda number=number: number for number in range(9)]  # type: ignore[misc]
    assert threads.run(calls) == list(range(9))
    assert threads.run([]) == []

    def use(tell: Callable[[str], None]) -> None:
        try:
            threads.run(calls)
        except SessionClosed as refused:
            tell("refused" if "fork" in str(refused) else "?")
        threads.close()

    assert Child(use).finish() == (["refused"], 0)
    threads.close()
    threads.close()
    with pytest.raises(SessionClosed):
        threads.run(calls)


def test_what_a_call_raises_comes_when_no_other_runs_any_more() -> None:
    threads, running, done = ReadThreads(3), threading.Barrier(4), []

    def fail() -> None:
        running.wait(20)
        raise MemoryError

    def work() -> None:
        running.wait(20)
        done.append(1)

    with pytest.raises(MemoryError):
        threads.run([fail, work, work, work])
    assert len(done) == 3
    with pytest.raises(MemoryError):
        running.reset()
        threads.run([work, work, work, fail])
    assert len(done) == 6
    threads.close()
