"""A Store that someone changed from outside, with seals that fit."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import xxhash
from hypothesis import strategies as st

from agent_memory.errors import AgentMemoryError
from agent_memory.store.files import Files
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.tables import seal
from tests.store.support import append, fill_segments, open_session

SEALED = {
    "sessions": (
        "id", "namespace", "name", "folder", "state", "parent_id", "fork_turns", "fork_tokens", "fork_blocks", "model", "layout", "created",
        "conversation", "turns",
    ),
    "turns": ("session_id", "idx", "start", "tokens", "role", "name", "chain", "created", "meta", "recall", "text"),
    "segments": ("session_id", "first_block", "blocks", "file", "created", "size", "header_bytes", "header_sum", "places", "sums"),
    "tails": ("session_id", "tokens", "first_block", "size", "header_bytes", "header_sum", "places", "sums"),
}  # fmt: skip
"""Columns that a row's seal covers, in their order."""


# No absolute path: where this fails, it must not be the machine that is emptied.
VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=30),
    st.text(max_size=30).map(lambda text: text.lstrip("/")),
    st.sampled_from(["../../outside", "..", "{}", "[]", "null", '{"a":1}', 0, 1, 2, 3, 7, 10**15, "x" * 300, b"\xff\xff\xff\xff"]),
)  # fmt: skip


class Watched(Files):
    """Notes every path that is opened for writing or removed."""

    def __init__(self) -> None:
        self.changed: list[Path] = []

    def create(self, path: Path) -> int:
        self.changed.append(path)
        return super().create(path)

    def unlink(self, path: Path) -> None:
        self.changed.append(path)
        super().unlink(path)

    def remove_folder(self, path: Path) -> None:
        self.changed.append(path)
        super().remove_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self.changed += [source, target]
        super().rename(source, target)


@contextmanager
def nothing_outside(root: Path) -> Iterator[Watched]:
    """Files for a Store; whatever is done with them must not change, or add, anything beside its folder."""
    beside = sorted(path.name for path in root.parent.iterdir())
    files = Watched()
    yield files
    assert all(path.is_relative_to(root) and ".." not in path.parts for path in files.changed)
    assert sorted(path.name for path in root.parent.iterdir()) == beside


def make(root: Path) -> None:
    """Two tenants: ``default/s`` with two Segments, a tail and a fork, and ``other/t``."""
    with Store.open(root) as store:
        timeline = fill_segments(store)
        timeline.fork("fork", 6)
        append(open_session(store, "t", "other"), word="secret")


def change(root: Path, table: str, where: str, **columns: Any) -> None:
    """Change columns of one row and seal it again, as anyone can who reads the code."""
    with closing(sqlite3.connect(root / INDEX_FILE)) as connection, connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = 0")
        (row,) = connection.execute(f"SELECT rowid AS number, * FROM {table} WHERE {where}").fetchall()  # noqa: S608 - our own words
        number, new = row["number"], dict(row) | columns
        sealed = {"seal": seal(*(new[column] for column in SEALED[table]))}
        if table == "turns" and isinstance(new["ids"], bytes):
            sealed["ids_seal"] = seal(new["ids"])
        for name, value in (columns | sealed).items():
            if name == "id":
                number = value
                connection.execute("UPDATE sessions SET id = ? WHERE rowid = ?", (value, row["number"]))
            else:
                connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (value, number))  # noqa: S608 - our own words


def run_sql(root: Path, *statements: str) -> None:
    """Statements on the index, its keys unchecked."""
    with closing(sqlite3.connect(root / INDEX_FILE)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = 0")
        for statement in statements:
            connection.execute(statement)


def use_everything(root: Path, files: Files | None = None) -> list[str]:
    """Open a Store and do all there is to do with every Session, and at last delete it; the errors it gave."""
    errors: list[str] = []

    def attempt(call: Any) -> None:
        try:
            call()
        except AgentMemoryError as error:
            errors.append(str(error))

    def look(read_only: bool) -> None:
        with Store.open(root, read_only=read_only, files=files) as store:
            attempt(store.verify)
            for name, namespace in (("s", "default"), ("fork", "default"), ("t", "other")):
                attempt(lambda name=name, namespace=namespace: _read(store, name, namespace))
            infos = store.sessions(branches=True)
            for info in infos if not read_only else ():
                attempt(lambda info=info: store.delete(info.name, info.namespace))

    attempt(lambda: look(True))
    attempt(lambda: look(False))
    return errors


def _read(store: Store, name: str, namespace: str) -> None:
    view = store.view(name, namespace)
    try:
        view.turns()
        view.recalls()
        view.tokens(0, view.token_count)
        view.tail()
        for row in view.segments():
            for tensor in row.tensors:
                view.read_segment_tensor(tensor, row.first_block)
    finally:
        view.close()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """An archive with other contents, and sums that fit."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries.pop("manifest.json"))
    change(manifest, entries)
    manifest["files"] = {name: {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)} for name, data in entries.items()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        archive.writestr("manifest.json", json.dumps(manifest))
    return target
