"""A Session as one archive file: out, in, and never half."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.errors import (
    BlockDamaged,
    FormatTooNew,
    SessionExists,
    StoreCorrupt,
    StoreError,
)
from agent_memory.store.store import Store
from tests.store.family import family
from tests.store.support import (
    KV,
    LAYOUT,
    MODEL,
    append,
    assert_numbered,
    block_bytes,
    fill,
    folder_digest,
    open_session,
    segment,
    segment_files,
)


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
