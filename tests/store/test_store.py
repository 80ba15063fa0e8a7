"""Opening, listing, forking, exporting and importing; formats and settings of the index."""

from __future__ import annotations

import random
import re
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from agent_memory.errors import (
    BlockDamaged,
    FormatTooNew,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StoreCorrupt,
    StoreError,
    UnsupportedStore,
)
from agent_memory.store import database
from agent_memory.store.files import Files
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.tables import metadata
from agent_memory.store.timeline import Timeline
from tests.store.support import (
    KV,
    LAYOUT,
    MODEL,
    FaultyFiles,
    append,
    assert_numbered,
    block_bytes,
    fill,
    folder_digest,
    open_session,
    segment,
    segment_files,
)


def test_a_store_is_made_where_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for location in (folder / "a", str(folder / "b"), "c", f"sqlite:///{folder / 'd'}/index.sqlite", "sqlite:///e/other.db"):
        with Store.open(location) as store:
            append(open_session(store))
            assert store.root.is_dir()
        with Store.open(location) as store:
            assert [info.turns for info in store.sessions()] == [1]
    assert (folder / "e" / "other.db").is_file()
    assert (folder / "a").stat().st_mode & 0o077 == 0  # what is in it is a private talk


@pytest.mark.parametrize("url", ["postgresql://host/db", "mysql+pymysql://x", "sqlite://", "sqlite:///", "s3://bucket", "file:///x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UnsupportedStore, match=re.escape(url.split("://")[0])):
        Store.open(url)


def test_a_file_is_not_a_store(folder: Path) -> None:
    (folder / "file").write_text("x")
    with pytest.raises(UnsupportedStore, match="is a file"):
        Store.open(folder / "file")


class OnNfs(Files):
    def network_kind(self, path: Path) -> str | None:
        return "nfs"


def test_network_file_systems_are_refused(folder: Path) -> None:
    assert Files().network_kind(folder) is None
    with pytest.raises(UnsupportedStore, match="nfs"):
        Store.open(folder / "s", files=OnNfs())
    assert not (folder / "s").exists()
    Store.open(folder / "s", files=OnNfs(), allow_network=True).close()


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"x"])
def test_a_garbage_index_is_said_in_one_line(fresh: Callable[[], Path], content: bytes) -> None:
    root = fresh()
    (root / INDEX_FILE).write_bytes(content)
    before = folder_digest(root)
    with pytest.raises(StoreCorrupt) as error:
        Store.open(root)
    assert "\n" not in str(error.value)
    assert folder_digest(root) == before


def test_another_programs_database_is_left_alone(fresh: Callable[[], Path]) -> None:
    root = fresh()
    (root / INDEX_FILE).unlink()
    with sqlite3.connect(root / INDEX_FILE) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StoreCorrupt, match="something else"):
        Store.open(root)


def test_a_newer_format_is_refused(fresh: Callable[[], Path]) -> None:
    root = fresh()
    with sqlite3.connect(root / INDEX_FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0002'")
    with pytest.raises(FormatTooNew, match="0002"):
        Store.open(root)


def test_an_empty_index_is_a_new_one(fresh: Callable[[], Path]) -> None:
    root = fresh()
    (root / INDEX_FILE).write_bytes(b"")
    with Store.open(root) as store:
        append(open_session(store))


def test_migrations_make_the_tables_the_code_uses(store: Store) -> None:
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_every_connection_has_every_setting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store._database.read() as first, store._database.read() as second:
        for connection in (first, second):
            for name, wanted in database.pragmas().items():
                assert str(connection.exec_driver_sql(f"PRAGMA {name}").scalar()).lower() == str(wanted)
    monkeypatch.setattr(database, "pragmas", lambda: {"page_size": 3})
    with pytest.raises(UnsupportedStore, match="page_size"):
        Store.open(store.root)


def test_wal_only_where_it_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, mode in (((3, 51, 2), "truncate"), ((3, 51, 3), "wal"), ((3, 52, 0), "wal")):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        assert database.pragmas()["journal_mode"] == mode


def test_leftovers_of_a_dead_writer_go_and_those_of_a_live_one_stay(fresh: Callable[[], Path]) -> None:
    root = fresh()
    files = FaultyFiles()
    with Store.open(root, files=files) as store:
        timeline = open_session(store)
        fill(timeline, 4)
        timeline.put_segment(0, segment(0, 1))
        home = segment_files(root)[0].parent
        for name in ("000000000009-00.safetensors", "x.tmp"):
            (home / name).write_bytes(b"unfinished")
        Store.open(root).close()
        assert len(list(home.iterdir())) == 3
        timeline._lock.release(clean=False)  # type: ignore[union-attr]  # as if it had been killed
        Store.open(root).close()
        assert [path.name for path in home.iterdir()] == [segment_files(root)[0].name]
        assert not list((root / "locks").iterdir())


def test_many_rounds_leave_nothing_open(fresh: Callable[[], Path]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    root = fresh()
    before = len(list(descriptors.iterdir()))
    for _ in range(30):
        with Store.open(root) as store:
            timeline = open_session(store)
            append(timeline, 32)
            timeline.put_segment(timeline.kv_tokens // 32, segment(timeline.kv_tokens // 32, 1))
            timeline.read_block(KV, 0)
    assert len(list(descriptors.iterdir())) == before


def family(store: Store) -> tuple[Timeline, Timeline, Timeline]:
    """Three generations: 12 turns and 6 Blocks, of which the child keeps 9 and 4, of which the grandchild keeps 7 and 3."""
    parent = open_session(store)
    fill(parent, 12)
    parent.put_segment(0, segment(0, 3))
    parent.put_segment(3, segment(3, 3))
    parent.fork("child", 9)
    child = open_session(store, "child")
    assert (child.turn_count, child.token_count, child.kv_tokens, child.chain) == (9, 144, 128, "chain 8")
    child.fork("grandchild", 7)
    grandchild = open_session(store, "grandchild")
    assert (grandchild.turn_count, grandchild.kv_tokens) == (7, 96)
    return parent, child, grandchild


def assert_family(parent: Timeline | None, child: Timeline | None, grandchild: Timeline) -> None:
    for timeline, word, own, blocks in ((parent, "turn", 12, 6), (child, "child", 9, 4), (grandchild, "grandchild", 7, 3)):
        if timeline is not None:
            texts = [turn.text for turn in timeline.turns()]
            assert texts[:own] == [f"turn {i}" for i in range(own)]
            assert texts[own:] == [f"{word} {i}" for i in range(own, len(texts))]
            assert [timeline.read_block(KV, block) for block in range(blocks)] == [block_bytes(block) for block in range(blocks)]
            assert [turn.index for turn in timeline.turns()] == list(range(timeline.turn_count))


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
    for name in ("s/1", "s/x", "copy"):
        timeline.fork(name)
    append(open_session(store, "t/1"))
    assert [info.name for info in store.sessions()] == ["copy", "s", "s/x", "t/1"]
    assert [info.name for info in store.sessions(branches=True)] == ["copy", "s", "s/1", "s/x", "t/1"]


def test_a_session_that_is_in_use_is_not_deleted(store: Store) -> None:
    timeline = open_session(store)
    append(timeline)
    with pytest.raises(SessionBusy):
        store.delete("s")
    timeline.close()
    store.delete("s")
    with pytest.raises(SessionNotFound):
        store.delete("s")


def exported(store: Store, path: Path) -> Path:
    parent, child, grandchild = family(store)
    grandchild.append_turn("tool", "out", [1, 2, 3], name="ls", chain="end", meta={"m": 1}, recall={"exact": False})
    grandchild.put_tail(115, segment(3, 1))
    for timeline in (parent, child, grandchild):
        timeline.close()
    store.export("grandchild", "default", path)
    return path


def test_export_and_import(store: Store, folder: Path, fresh: Callable[[], Path]) -> None:
    path = exported(store, folder / "session.zip")
    assert sorted(folder.glob("session*")) == [path]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with Store.open(fresh()) as other:
        info = other.import_(path)
        assert (info.name, info.namespace, info.turns, info.tokens, info.kv_tokens, info.parent) == (
            "grandchild",
            "default",
            8,
            115,
            96,
            None,
        )
        with pytest.raises(SessionExists):
            other.import_(path)
        assert other.import_(path, name="two", namespace="bob").namespace == "bob"
        before, after = open_session(store, "grandchild"), open_session(other, "two", "bob")
        assert before.turns() == after.turns()
        assert before.tokens(0, 200).tolist() == after.tokens(0, 200).tolist()
        assert before.recalls() == after.recalls()
        assert (before.model, before.layout) == (after.model, after.layout) == (MODEL, LAYOUT)
        assert [after.read_block(KV, block) for block in range(3)] == [block_bytes(block) for block in range(3)]
        tails = [timeline.tail() for timeline in (before, after)]
        assert tails[0] is not None and tails[1] is not None
        assert bytes(tails[0][1][KV].data) == bytes(tails[1][1][KV].data)
        append(after)
        assert other.verify().ok
        assert not list((other.root / "locks").glob("*grandchild*"))


def test_a_damaged_archive_is_refused_and_nothing_written(store: Store, folder: Path, fresh: Callable[[], Path]) -> None:
    path = exported(store, folder / "session.zip")
    whole = path.read_bytes()
    places = random.Random(5).sample(range(len(whole)), 120)  # noqa: S311
    with Store.open(fresh()) as other:
        append(open_session(other, "bystander"))
        before = folder_digest(other.root)
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            try:
                other.import_(path, name="copy")
            except StoreError:
                assert folder_digest(other.root) == before
            else:  # a byte that nothing reads, such as a date
                copy = open_session(other, "copy")
                assert copy.turns() == store.turns("grandchild")
                assert [copy.read_block(KV, block) for block in range(3)] == [block_bytes(block) for block in range(3)]
                copy.close()
                other.delete("copy")
                before = folder_digest(other.root)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(StoreCorrupt):
                other.import_(path)
        path.unlink()
        with pytest.raises(StoreCorrupt, match="no archive"):
            other.import_(path)
        assert folder_digest(other.root) == before


def test_a_newer_or_compressed_archive_is_refused(store: Store, folder: Path) -> None:
    path = exported(store, folder / "session.zip")
    for name, compression, change, error in (
        ("newer.zip", zipfile.ZIP_STORED, (b'"format": 1,', b'"format": 2,'), FormatTooNew),
        ("packed.zip", zipfile.ZIP_DEFLATED, (b"", b""), StoreCorrupt),
        ("fewer.zip", zipfile.ZIP_STORED, (b'"turns": 8', b'"turns": 9'), StoreCorrupt),
    ):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(folder / name, "w", compression) as target:
            for entry in source.namelist():
                data = source.read(entry)
                target.writestr(entry, data.replace(*change, 1) if entry == "manifest.json" and change[0] else data)
        with pytest.raises(error):
            store.import_(folder / name, name="new")


def test_a_damaged_session_is_not_exported(store: Store, folder: Path) -> None:
    exported(store, folder / "session.zip")
    (folder / "session.zip").unlink()
    path = segment_files(store.root)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BlockDamaged):
        store.export("grandchild", "default", folder / "session.zip")
    assert not list(folder.glob("session*"))


def test_progress_is_told(store: Store) -> None:
    timeline = open_session(store)
    fill(timeline, 12)
    for first in (0, 3):
        timeline.put_segment(first, segment(first, 3))
    seen: list[tuple[int, int]] = []
    report = store.verify("s", progress=lambda done, total: seen.append((done, total)))
    assert (report.blocks, report.sessions, seen) == (6, 1, [(3, 6), (6, 6)])
    assert_numbered(timeline)
