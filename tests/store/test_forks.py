"""Forks share what they were made of and part from it; deleting keeps what others use."""

from __future__ import annotations

import sqlite3

import pytest

from agent_memory.errors import (
    SessionBusy,
    SessionExists,
    SessionNotFound,
)
from agent_memory.store.store import INDEX_FILE, Store
from tests.store.family import assert_family, family
from tests.store.support import (
    KV,
    append,
    block_bytes,
    fill,
    open_session,
    segment,
    segment_files,
)


def test_forks_share_and_part(store: Store) -> None:
    parent, child, grandchild = family(store)
    assert len(segment_files(store.root)) == 2
    assert child.disk_bytes() == grandchild.disk_bytes() == 0
    fill(child, 3, word="child")
    fill(grandchild, 3, word="grandchild")
    assert_family(parent, child, grandchild)
    grandchild.put_segment(3, segment(3, 2, salt=3))
    child.put_segment(4, segment(4, 2, salt=2))
    assert_family(parent, child, grandchild)
    assert [t.read_block(KV, 4) for t in (parent, child, grandchild)] == [block_bytes(4, salt) for salt in (0, 2, 3)]
    assert [child.owns(row) for row in child.segments()] == [False, False, True]
    assert [(row.first_block, row.blocks) for row in child.segments()] == [(0, 3), (3, 1), (4, 2)]
    assert grandchild.turn_at(7 * 16).text == "grandchild 7"
    assert grandchild.tokens(100, 130).tolist() == parent.tokens(100, 130).tolist()
    infos = {info.name: info.parent for info in store.sessions()}
    assert infos == {"s": None, "child": "s", "grandchild": "child"}
    assert store.verify().ok


def test_forks_outlive_what_they_were_made_of(store: Store) -> None:
    parent, child, grandchild = family(store)
    parent.drop_kv(1)
    assert parent.kv_tokens == 32
    assert_family(None, child, grandchild)
    parent.put_segment(1, segment(1, 2, salt=8))
    parent.close()
    store.delete("s")
    assert_family(None, child, grandchild)
    child.drop_kv(0)
    child.close()
    store.delete("child")
    assert_family(None, None, grandchild)
    assert store.verify().ok
    assert [info.name for info in store.sessions()] == ["grandchild"]
    grandchild.close()
    with Store.open(store.root) as again:
        last = open_session(again, "grandchild")
        assert_family(None, None, last)
        last.close()
        again.delete("grandchild")
    assert list((store.root / "sessions").iterdir()) == []
    with sqlite3.connect(store.root / INDEX_FILE) as connection:
        for table in ("sessions", "turns", "segments", "tails"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608


def test_forks_that_cannot_be(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 3)
    timeline.fork("f")
    with pytest.raises(SessionExists):
        timeline.fork("f")
    with pytest.raises(SessionExists):
        timeline.fork("s")
    for at in (-1, 4):
        with pytest.raises(ValueError, match="forked at"):
            timeline.fork("g", at)
    timeline.fork("empty", 0)
    assert open_session(store, "empty").turn_count == 0


def test_branches_are_listed_apart(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 1)
    for name in ("s/1", "copy"):
        timeline.fork(name)
    timeline.fork("other way", conversation="s")
    append(open_session(store, "s/2"))
    assert [info.name for info in store.sessions()] == ["copy", "s", "s/1", "s/2"]
    assert [info.name for info in store.sessions(branches=True)] == ["copy", "other way", "s", "s/1", "s/2"]
    assert (store.conversation("s"), store.conversation("s/1")) == (["s", "other way"], ["s/1"])


def test_a_session_that_is_in_use_is_not_deleted(store: Store) -> None:
    timeline = open_session(store)
    append(timeline)
    with pytest.raises(SessionBusy):
        store.delete("s")
    timeline.close()
    store.delete("s")
    with pytest.raises(SessionNotFound):
        store.delete("s")
