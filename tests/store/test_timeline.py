"""Turns, token ids, Segments and the tail of one Session, as written and as read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from sqlalchemy import event

from agent_memory.errors import BlockMissing, SessionError, StoreCorrupt
from agent_memory.store.segments import TensorBytes
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.timeline import Timeline
from tests.store.support import (
    KV,
    OTHER_KV,
    SUMMARY,
    append,
    assert_numbered,
    block_bytes,
    expected_ids,
    fill,
    open_session,
    segment,
    segment_files,
)


def test_a_turn_reads_back_as_it_was_written(store: Store) -> None:
    timeline = open_session(store)
    text = "nul \0 and emoji \U0001f600\nand 'quotes'"
    written = timeline.append_turn(
        "tool", text, [5, 0, 2**31 - 1], name="kubectl", chain="c0", meta={"a": [1, None, "é"]}, recall={"exact": True}
    )
    timeline.append_turn("assistant", "", np.empty(0, np.int32), chain="c1")
    timeline.close()
    again = open_session(store)
    assert again.turns()[0] == written
    assert (written.index, written.role, written.name, written.text, written.start, written.tokens) == (0, "tool", "kubectl", text, 0, 3)
    assert (again.turn_count, again.token_count, again.chain, again.kv_tokens) == (2, 3, "c1", 0)
    assert again.tokens(0, 99).tolist() == [5, 0, 2**31 - 1]
    assert again.tokens(0, 99).dtype == np.int32
    assert again.recalls() == [{"turn": 0, "recall": {"exact": True}}] == store.recalls("s")
    assert again.disk_bytes() == 12


@pytest.mark.parametrize("ids", [[-1], [2**31], [1.5], [[1, 2]], ["a"]])
def test_ids_that_cannot_be_kept(store: Store, ids: list[object]) -> None:
    timeline = open_session(store)
    with pytest.raises(ValueError, match="token ids"):
        timeline.append_turn("user", "x", ids, chain="c")  # type: ignore[arg-type]
    assert timeline.turn_count == 0


def test_what_json_and_unicode_cannot_say(store: Store) -> None:
    timeline = open_session(store)
    with pytest.raises(ValueError, match="JSON"):
        timeline.append_turn("user", "x", [1], chain="c", meta={"a": object()})
    with pytest.raises(ValueError, match="surrogate"):
        timeline.append_turn("user", "\udcff", [1], chain="c")
    assert append(timeline).index == 0


def test_any_range_of_tokens(store: Store) -> None:
    timeline = open_session(store)
    ids: list[int] = []
    for number, size in enumerate([3, 0, 0, 5, 1, 0, 7]):
        timeline.append_turn("user", str(number), expected_ids(number, size), chain="c")
        ids += expected_ids(number, size).tolist()
    for start in range(-1, len(ids) + 2):
        for stop in range(start, len(ids) + 2):
            assert timeline.tokens(start, stop).tolist() == ids[max(start, 0) : max(stop, 0)]
    for token in range(len(ids)):
        turn = timeline.turn_at(token)
        assert turn.start <= token < turn.stop
    for token in (-1, len(ids)):
        with pytest.raises(IndexError):
            timeline.turn_at(token)
    assert [turn.text for turn in timeline.turns(2, 4)] == ["2", "3"]
    assert timeline.turns(7) == timeline.turns(3, 3) == []


def test_segments_are_safetensors_files(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 8)
    timeline.put_segment(0, segment(0, 3))
    (path,) = segment_files(store.root)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {KV, OTHER_KV, SUMMARY}
        assert file.get_slice(KV).get_shape() == [3, 2, 1, 32, 8]
        assert file.get_slice(SUMMARY).get_dtype() == "BF16"
        assert file.get_tensor(KV).tobytes() == b"".join(block_bytes(block) for block in range(3))


def test_blocks_read_back(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 20)
    for first in range(0, 9, 3):
        timeline.put_segment(first, segment(first, 3))
    blocks = [8, 0, 0, 5, 3]
    out = np.empty((5, 2048), np.uint8)
    assert timeline.read_blocks(KV, blocks, out) == []
    assert [bytes(row) for row in out] == [block_bytes(block) for block in blocks]
    assert timeline.read_blocks(KV, [], np.empty((0, 2048), np.uint8)) == []
    whole = timeline.read_segment_tensor(SUMMARY, 3)
    assert whole.dtype == np.uint8
    assert bytes(whole) == b"".join(block_bytes(block, tensor=SUMMARY) for block in (3, 4, 5))
    assert [(row.first_block, row.blocks, row.tensors) for row in timeline.segments()] == [
        (f, 3, (KV, OTHER_KV, SUMMARY)) for f in (0, 3, 6)
    ]
    assert timeline.read_blocks(KV, [2, 9], np.empty((2, 2048), np.uint8)) == [1]
    with pytest.raises(BlockMissing, match="block 9 of session 'default/s'"):
        timeline.read_block(KV, 9)
    with pytest.raises(KeyError):
        timeline.read_block("layers.7.kv", 0)
    with pytest.raises(ValueError, match="out has"):
        timeline.read_blocks(KV, [0], np.empty((1, 2047), np.uint8))
    with pytest.raises(ValueError, match="not a multiple"):
        timeline.read_blocks(KV, [0, 1], np.empty(2047, np.uint8))


def test_few_files_stay_open(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 100)
    for block in range(50):
        timeline.put_segment(block, segment(block, 1))
    held = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for block in range(50):
        assert timeline.read_block(KV, block) == block_bytes(block)
    if held:
        assert len(list(Path("/proc/self/fd").iterdir())) <= held + 32
        timeline.close()
        assert len(list(Path("/proc/self/fd").iterdir())) <= held


def test_a_short_segment_is_superseded(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 20)
    reader = open_session(store, read_only=True)
    for blocks in (1, 2, 5):
        timeline.put_segment(0, segment(0, blocks))
        assert timeline.kv_tokens == reader.kv_tokens == 32 * blocks
        assert len(segment_files(store.root)) == 1
        assert reader.read_block(KV, blocks - 1) == block_bytes(blocks - 1)  # through a row that had been replaced
    timeline.put_segment(5, segment(5, 1))
    timeline.put_segment(0, segment(0, 7))  # over both
    assert [(row.first_block, row.blocks) for row in timeline.segments()] == [(0, 7)]
    assert [timeline.read_block(KV, block) for block in range(7)] == [block_bytes(block) for block in range(7)]


@pytest.mark.parametrize(("first", "blocks"), [(3, 1), (0, 2), (0, 1), (1, 4), (2, 9), (0, 0), (2, 33)])
def test_segments_that_do_not_fit(store: Store, first: int, blocks: int) -> None:
    timeline = open_session(store)
    fill(timeline, 12)
    timeline.put_segment(0, segment(0, 2))
    with pytest.raises(ValueError, match="Block"):
        timeline.put_segment(first, segment(first, blocks) if blocks else {KV: TensorBytes("F32", (0, 4), b"")})
    assert timeline.kv_tokens == 64
    assert len(segment_files(store.root)) == 1


def test_tensors_that_are_not_what_they_say(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 12)
    good = TensorBytes("F32", (1, 4), bytes(16))
    for bad in (TensorBytes("F32", (1, 4), bytes(15)), TensorBytes("F99", (1, 4), bytes(16)), TensorBytes("F32", (2, 2), bytes(16))):
        with pytest.raises(ValueError, match="tensor 'b'"):
            timeline.put_segment(0, {"a": good, "b": bad})
    with pytest.raises(ValueError, match="at least one"):
        timeline.put_segment(0, {})
    assert segment_files(store.root) == []


def test_repair_takes_the_place_of_one_segment(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 20)
    for first in (0, 3, 6):
        timeline.put_segment(first, segment(first, 3))
    with pytest.raises(ValueError, match="neither"):
        timeline.put_segment(3, segment(3, 3, salt=9))
    timeline.put_segment(3, segment(3, 3, salt=9), repair=True)
    assert [timeline.read_block(KV, block) for block in (2, 3, 6)] == [block_bytes(2), block_bytes(3, 9), block_bytes(6)]
    assert len(segment_files(store.root)) == 3


def test_the_tail_belongs_to_one_length(store: Store) -> None:
    timeline = open_session(store)
    assert timeline.tail() is None
    fill(timeline, 5)
    with pytest.raises(ValueError, match="tail"):
        timeline.put_tail(79, segment(2, 1))
    timeline.put_segment(0, segment(0, 2))
    for salt in (1, 2):
        timeline.put_tail(80, {"odd": TensorBytes("BF16", (3, 0, 2), b""), **segment(2, 1, salt)})
        assert len(list((store.root / "sessions").rglob("tail*"))) == 1
    timeline.close()
    again = open_session(store)
    found = again.tail()
    assert found is not None
    tokens, tensors = found
    assert tokens == 80
    assert bytes(tensors[KV].data) == block_bytes(2, 2)
    assert (tensors["odd"].shape, tensors[SUMMARY].dtype) == ((3, 0, 2), "BF16")
    append(again)
    assert again.tail() is None


def test_dropped_kv_leaves_the_turns(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 20)
    for first in (0, 3, 6):
        timeline.put_segment(first, segment(first, 3))
    timeline.put_tail(320, segment(9, 1))
    timeline.drop_kv(4)
    assert timeline.kv_tokens == 128
    assert timeline.tail() is None
    assert [(row.first_block, row.blocks) for row in timeline.segments()] == [(0, 3), (3, 1)]
    assert timeline.read_block(KV, 3) == block_bytes(3)
    with pytest.raises(BlockMissing):
        timeline.read_block(KV, 4)
    timeline.put_segment(3, segment(3, 4, salt=1))
    assert timeline.read_block(KV, 6) == block_bytes(6, 1)
    assert_numbered(timeline)
    timeline.drop_kv(0)
    assert (timeline.kv_tokens, segment_files(store.root)) == (0, [])
    assert store.verify().ok


def test_a_reader_follows_and_cannot_write(store: Store) -> None:
    timeline = open_session(store)
    append(timeline)
    reader = open_session(store, read_only=True)
    append(timeline)
    assert reader.turn_count == 2
    for action in (lambda: append(reader), lambda: reader.fork("f"), lambda: reader.drop_kv(0), lambda: reader.put_tail(0, {})):
        with pytest.raises(SessionError, match="read"):
            action()


def test_a_damaged_row_is_said_in_one_line(store: Store) -> None:
    import sqlite3

    timeline = open_session(store)
    fill(timeline, 3)
    with sqlite3.connect(store.root / INDEX_FILE) as connection:
        connection.execute("UPDATE turns SET text = 'forged' WHERE idx = 1")
        connection.execute("UPDATE turns SET ids = zeroblob(64) WHERE idx = 2")
    with pytest.raises(StoreCorrupt, match="turn 1") as first:
        timeline.turns()
    with pytest.raises(StoreCorrupt, match="turn 2") as second:
        timeline.tokens(32, 33)
    assert all("\n" not in str(error.value) for error in (first, second))
    assert timeline.tokens(0, 32).tolist() == [*expected_ids(0, 16), *expected_ids(1, 16)]
    assert [damage.turns for damage in store.verify().damage] == [(1,), (2,)]


def statements(store: Store, timeline_name: str) -> list[str]:
    seen: list[str] = []
    engine = store._database._engine
    event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *rest: seen.append(statement))
    timeline = open_session(store, timeline_name)
    read_a_little(timeline)
    timeline.close()
    return seen


def read_a_little(timeline: Timeline) -> None:
    timeline.tokens(timeline.token_count - 5, timeline.token_count)
    timeline.turn_at(timeline.token_count // 2)
    timeline.read_block(KV, 0)
    timeline.tail()


def test_opening_does_not_read_the_history(store: Store) -> None:
    """Counted in statements, and in rows through SQLite's own plan: every look-up goes through an index."""
    counts = []
    for name, turns in (("short", 4), ("long", 120)):
        timeline = open_session(store, name)
        fill(timeline, turns)
        for block in range(turns // 2):
            timeline.put_segment(block, segment(block, 1))
        timeline.close()
        seen = statements(store, name)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 40
    with store._database.read() as connection:
        for statement in {s for s in seen if s.startswith("SELECT") and "sqlite_master" not in s}:
            filled = ("EXPLAIN QUERY PLAN " + statement, tuple(0 for _ in range(statement.count("?"))))
            plan = json.dumps([str(row) for row in connection.exec_driver_sql(*filled)])
            assert "SCAN" not in plan, (statement, plan)
