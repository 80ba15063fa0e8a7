"""Nothing outside the Store is touched, whatever its index and its folders say; looking changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.errors import StoreCorrupt, StoreError
from agent_memory.store.store import INDEX_FILE, Store
from tests.attacks.support import change, make, use_everything
from tests.store.support import append, fill, folder_digest, open_session, segment_files


@pytest.fixture
def made(fresh: Callable[[], Path]) -> Path:
    root = fresh()
    make(root)
    return root


@pytest.fixture
def outside(made: Path) -> Path:
    """A folder of somebody else's, beside the Store."""
    folder = made.parent / "outside"
    folder.mkdir()
    (folder / "keep").write_text("precious")
    (folder / f"{0:012d}-00000000.safetensors").write_text("precious")
    return folder


def assert_untouched(outside: Path) -> None:
    assert sorted(path.name for path in outside.iterdir()) == [f"{0:012d}-00000000.safetensors", "keep"]
    assert {path.read_text() for path in outside.iterdir()} == {"precious"}


def test_a_linked_folder_of_a_dead_writer_is_not_emptied(made: Path, outside: Path) -> None:
    for digest, lock in (("ab", "ab"), ("a" * 32, "a" * 32)):
        (made / "sessions" / f"{digest}-{'1' * 8}").symlink_to(outside)
        (made / "locks" / f"{lock}.lock").touch()
    Store.open(made).close()
    assert_untouched(outside)


def test_a_linked_folder_of_a_session_is_not_followed(made: Path, outside: Path) -> None:
    folder = segment_files(made)[0].parent
    shutil.rmtree(folder)
    folder.symlink_to(outside)
    (made / "locks" / f"{folder.name.split('-')[0]}.lock").touch()
    use_everything(made)
    assert_untouched(outside)


@pytest.mark.parametrize("name", ["sessions", "locks"])
def test_linked_folders_of_the_store_are_not_followed(made: Path, outside: Path, name: str) -> None:
    shutil.rmtree(made / name)
    (made / name).symlink_to(outside)
    use_everything(made)
    assert_untouched(outside)


# Paths lead to a folder made for the test: where this fails, it must not be the machine that is emptied.
@pytest.mark.parametrize("named", ["../outside", "..", "{outside}", "a/../../outside", f"{'a' * 32}-{'1' * 8}/../../outside", ""])
@pytest.mark.parametrize("state", [0, 1, 2])
def test_a_folder_in_the_index_leads_nowhere_else(made: Path, outside: Path, named: str, state: int) -> None:
    change(made, "sessions", "name = 's'", folder=named.format(outside=outside), state=state)
    assert any("folder" in error or "damaged" in error for error in use_everything(made)) or state == 1
    assert_untouched(outside)


@pytest.mark.parametrize("file", ["../outside/keep", "../../outside/keep", "{outside}/keep", f"{'a' * 32}-{'1' * 8}/../../outside/keep"])
def test_a_file_in_the_index_leads_nowhere_else(made: Path, outside: Path, file: str) -> None:
    change(made, "segments", "first_block = 0", file=file.format(outside=outside))
    change(made, "sessions", "name = 'fork'", state=1)
    assert any("cannot be a segment" in error for error in use_everything(made))
    assert_untouched(outside)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_lies_where_a_lock_belongs(made: Path, outside: Path, kind: str) -> None:
    lock = made / "locks" / f"{'a' * 32}.lock"
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(outside / "keep")
    with Store.open(made) as store:
        assert len(store.sessions()) == 3
    assert_untouched(outside)


def test_an_index_that_is_a_link_is_not_followed(made: Path, outside: Path) -> None:
    shutil.move(made / INDEX_FILE, outside / "index")
    (made / INDEX_FILE).symlink_to(outside / "index")
    with pytest.raises(StoreCorrupt, match="is a link"):
        Store.open(made)


def test_a_lock_that_is_none_stops_nothing_else(made: Path) -> None:
    with Store.open(made) as store:
        (made / "locks" / f"{segment_files(made)[0].parent.name.split('-')[0]}.lock").mkdir()
        with pytest.raises(StoreCorrupt, match="no lock file"):
            open_session(store)
        append(open_session(store, "another"))


def test_looking_changes_nothing(made: Path) -> None:
    """A stale lock, leftovers of a killed writer and a removal half-way stay as they are."""
    folder = segment_files(made)[0].parent
    (folder / "000000000009-00000000.safetensors.1234.tmp").write_bytes(b"left over")
    (made / "locks" / f"{folder.name.split('-')[0]}.lock").write_bytes(b"process 1")
    change(made, "sessions", "name = 't'", state=1, name="")
    before = folder_digest(made)
    for path in (made, *made.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    with Store.open(made, read_only=True) as store:
        assert [info.name for info in store.sessions()] == ["fork", "s"]
        assert len(store.turns("s")) == 13
        assert store.verify().ok
        for write in (lambda: open_session(store), lambda: store.delete("s")):
            with pytest.raises(StoreError, match="opened to be read"):
                write()
    assert folder_digest(made) == before
    assert sorted(path.name for path in (made / "locks").iterdir()) == [f"{folder.name.split('-')[0]}.lock"]


def test_an_index_left_in_the_middle_of_a_commit_is_read_from_a_copy(made: Path) -> None:
    """The journal of a transaction that a kill broke off stays where it is."""
    whole = (made / INDEX_FILE).read_bytes()
    connection = sqlite3.connect(made / INDEX_FILE, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("PRAGMA synchronous = 0")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE filler (x)")
    connection.executemany("INSERT INTO filler VALUES (?)", [(b"x" * 4000,) for _ in range(200)])
    journal = (made / f"{INDEX_FILE}-journal").read_bytes()
    changed = (made / INDEX_FILE).read_bytes()
    connection.close()
    assert changed != whole
    (made / INDEX_FILE).write_bytes(changed)
    (made / f"{INDEX_FILE}-journal").write_bytes(journal)
    before = folder_digest(made)
    with Store.open(made, read_only=True) as store:
        assert store.verify().ok and len(store.turns("s")) == 13
    assert folder_digest(made) == before
    with Store.open(made) as store:  # and where it may be written it is put right
        assert store.verify().ok


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_an_index_missing_beside_segments_is_not_a_new_store(made: Path, how: str) -> None:
    if how == "gone":
        (made / INDEX_FILE).unlink()
    else:
        (made / INDEX_FILE).write_bytes(b"")
    before = folder_digest(made)
    for read_only in (True, False):
        with pytest.raises(StoreCorrupt, match=r"gone or empty, but \d+ files"):
            Store.open(made, read_only=read_only)
    assert folder_digest(made) == before


def test_files_of_the_store_are_its_owners_only(fresh: Callable[[], Path]) -> None:
    root = fresh() / "new"
    with Store.open(root) as store:
        timeline = open_session(store)
        fill(timeline, 2)
        append(timeline)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in root.rglob("*") if path.is_file()}
    assert modes[INDEX_FILE] == 0 and not any(modes.values()), modes
