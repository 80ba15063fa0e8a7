"""Opening, listing, forking, exporting and importing; formats and settings of the index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from agent_memory.errors import (
    FormatTooNew,
    StoreCorrupt,
    UnsupportedStore,
)
from agent_memory.store import database
from agent_memory.store.files import Files
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.tables import metadata
from tests.store.support import (
    KV,
    FaultyFiles,
    append,
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
        connection.execute("UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(FormatTooNew, match="0003"):
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
