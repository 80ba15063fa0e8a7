"""P5 and P14, the Store's part: a damaged Block is found, named, never handed out; ``verify`` finds all of it and changes nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent_memory.errors import BlockChecksum, BlockDamaged, BlockMissing, BlockShort
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.timeline import Timeline
from tests.store.support import (
    KV,
    OTHER_KV,
    SUMMARY,
    append,
    assert_numbered,
    block_bytes,
    fill,
    fill_segments,
    folder_digest,
    open_session,
    segment,
    segment_files,
)

BLOCKS = 6


@pytest.fixture
def made(fresh: Callable[[], Path]) -> Path:
    """A Store with two Segments of three Blocks, and a tail."""
    root = fresh()
    with Store.open(root) as store:
        fill_segments(store)
    return root


def assert_never_wrong(timeline: Timeline) -> set[int]:
    """Every Block reads as written or raises; returns those that raised. Turns stay readable."""
    damaged = set()
    for tensor, size in ((KV, 2048), (OTHER_KV, 2048), (SUMMARY, 16)):
        out = np.full((BLOCKS, size), 7, np.uint8)
        bad = timeline.read_blocks(tensor, range(BLOCKS), out)
        for block in range(BLOCKS):
            if block in bad:
                assert not out[block].any()
                with pytest.raises(BlockDamaged, match=rf"block {block}, tensor '{tensor}' of session 'default/s'"):
                    timeline.read_block(tensor, block)
            else:
                assert bytes(out[block]) == block_bytes(block, tensor=tensor)
        damaged |= set(bad)
    assert_numbered(timeline)
    return damaged


def test_every_flipped_byte_of_a_segment_is_found(made: Path) -> None:
    path = segment_files(made)[0]
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) == header + 3 * (2 * 2048 + 16)
    places = [*range(header), *random.Random(2).sample(range(header, len(whole)), 2000)]  # noqa: S311
    with Store.open(made) as store:
        timeline = open_session(store)
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            report = store.verify()
            assert len(report.damage) == 1, place
            damaged = assert_never_wrong(timeline)
            assert len(damaged) == (place >= header)
            if damaged:
                (block,) = damaged
                assert (report.damage[0].block, report.damage[0].kind, report.damage[0].turns) == (
                    block,
                    "checksum",
                    (2 * block, 2 * block + 1),
                )
        path.write_bytes(whole)
        assert not assert_never_wrong(timeline)


def test_a_cut_segment_is_short_not_wrong(made: Path) -> None:
    path = segment_files(made)[0]
    whole = path.read_bytes()
    with Store.open(made) as store:
        for size in range(0, len(whole), 512):
            path.write_bytes(whole[:size])
            timeline = open_session(store)
            assert assert_never_wrong(timeline)
            assert not store.verify().ok
            with pytest.raises(BlockShort):
                timeline.read_block(SUMMARY, 2)
            timeline.close()
        path.write_bytes(whole + b"x")
        assert [damage.kind for damage in store.verify().damage] == ["header"]


def test_swapped_blocks_are_found(made: Path) -> None:
    path = segment_files(made)[0]
    whole = path.read_bytes()
    start = whole.index(block_bytes(0))
    assert whole[start + 2048 : start + 4096] == block_bytes(1)
    path.write_bytes(whole[:start] + block_bytes(1) + block_bytes(0) + whole[start + 4096 :])
    with Store.open(made) as store, pytest.raises(BlockChecksum):
        open_session(store).read_block(KV, 0)
    with Store.open(made) as store:
        assert {damage.block for damage in store.verify().damage} == {0, 1}


def test_another_sessions_or_an_older_file_is_found(made: Path) -> None:
    with Store.open(made) as store:
        other = open_session(store, "other", "tenant")
        fill(other, 6)
        other.put_segment(0, segment(0, 3, salt=1))
        (foreign,) = [made / "sessions" / row.file for row in other.segments()]
        timeline = open_session(store)
        own = made / "sessions" / timeline.segments()[0].file
        older = own.with_name("older")
        shutil.copy(own, older)
        shutil.copy(foreign, own)
        assert assert_never_wrong(timeline) == {0, 1, 2}
        shutil.copy(older, own)
        assert not assert_never_wrong(timeline)
        timeline.put_segment(0, segment(0, 3, salt=2), repair=True)  # a newer version of the same Blocks
        shutil.copy(older, made / "sessions" / timeline.segments()[0].file)
        with pytest.raises(BlockChecksum):
            timeline.read_block(KV, 0)


@pytest.mark.parametrize("replacement", ["nothing", "link", "folder", "pipe"])
def test_only_the_file_itself_is_read(made: Path, replacement: str) -> None:
    import os

    path = segment_files(made)[0]
    aside = path.rename(path.with_name("aside"))
    {"nothing": lambda: None, "link": lambda: path.symlink_to(aside), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[replacement]()
    with Store.open(made) as store:
        timeline = open_session(store)
        assert assert_never_wrong(timeline) == {0, 1, 2}
        with pytest.raises(BlockMissing):
            timeline.read_block(KV, 0)
        assert {damage.kind for damage in store.verify().damage} == {"missing"}


def test_a_damaged_tail_is_no_tail(made: Path) -> None:
    (path,) = (made / "sessions").rglob("tail*")
    whole = path.read_bytes()
    with Store.open(made) as store:
        timeline = open_session(store)
        found = timeline.tail()
        assert found is not None
        assert found[0] == 208
        assert bytes(found[1][KV].data) == block_bytes(6)
        for place in range(len(whole) - 2064, len(whole), 40):
            flipped = bytearray(whole)
            flipped[place] ^= 4
            path.write_bytes(flipped)
            assert timeline.tail() is None
            assert [damage.kind for damage in store.verify().damage] == ["tail: checksum"]
        path.write_bytes(whole)
        assert timeline.tail() is not None
        append(timeline)
        assert timeline.tail() is None  # it no longer ends where the timeline does


def test_verify_finds_flips_of_the_index_and_changes_nothing(made: Path) -> None:
    path = made / INDEX_FILE
    whole = path.read_bytes()
    with Store.open(made) as store:
        answers = everything(store)
    found = 0
    in_use = [place for place in range(100, len(whole)) if whole[place]]
    for place in random.Random(3).sample(in_use, 90):  # noqa: S311
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        before = folder_digest(made)
        try:
            store = Store.open(made)
        except Exception as error:  # noqa: BLE001
            assert type(error).__name__ in ("StoreCorrupt", "FormatTooNew"), error
            continue
        with store:
            first, second = store.verify(), store.verify()
            assert first.ok == second.ok, place
            found += not first.ok
            if first.ok:  # a byte that nothing uses
                assert everything(store) == answers, place
        assert folder_digest(made) == before
    assert found > 20


def everything(store: Store) -> object:
    timeline = open_session(store, read_only=True)
    blocks = [timeline.read_block(tensor, block) for tensor in (KV, SUMMARY) for block in range(BLOCKS)]
    return store.sessions(), timeline.turns(), timeline.tokens(0, 208).tolist(), blocks, timeline.tail()
