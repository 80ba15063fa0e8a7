"""Connections to the SQLite index, their settings, and transactions.

Knows PRAGMAs, BEGIN and COMMIT, and how a new or older index is brought to this version; nothing of the tables.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError

from agent_memory.errors import FormatTooNew, StoreCorrupt, StoreError, UnsupportedStore
from agent_memory.store.faults import Health
from agent_memory.store.files import Files
from agent_memory.store.schema import schema_fault
from agent_memory.store.tables import FORMAT, OLDER_FORMATS

_BUSY_MILLISECONDS = 30_000
_SQLITE_FILES = ("", "-journal", "-wal", "-shm")
_SMALLEST_BYTES = 512  # SQLite takes a shorter file for an empty one
_WAL_SAFE_FROM = (3, 51, 3)  # older versions can corrupt a WAL database written by several connections


class Database:
    """The index of one Store: ``read()`` and ``write()`` are its transactions.

    A transaction that fails is rolled back and its error translated (see ``Health``).

    Args:
        path: the index's file, made if it is not there.
        files: called before every COMMIT.
        health: translates errors.
        read_only: change nothing at ``path``. An index that would have to be changed first, since a killed process left a transaction
            half-way or an older version wrote it, is copied and read from there.
    """

    def __init__(self, path: Path, files: Files, health: Health, *, read_only: bool = False) -> None:
        self._health, self._read_only = health, read_only
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        for kind in _SQLITE_FILES:
            _check_regular(path.with_name(path.name + kind))
        if path.is_file() and 0 < path.stat().st_size < _SMALLEST_BYTES:
            raise StoreCorrupt(f"the index {path} is cut off after {path.stat().st_size} bytes; restore it from an export")
        if not read_only:
            _keep_private(path, files, health)
        self._engine = _engine(path, files, read_only)
        try:
            with health.reading("the index"):
                if read_only and not self._readable():
                    self._engine.dispose()
                    self._engine = _engine(self._copied(path), files, read_only=False)
                if not read_only or self._copy is not None:
                    self._to_current_format()
                with self._engine.begin() as connection:
                    fault = schema_fault(connection)
            if fault is not None:
                raise StoreCorrupt(f"the schema of the index {path} was changed ({fault}); restore the store from an export")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self, what: str = "the index") -> Iterator[Connection]:
        """A read transaction: one unchanging view of the index."""
        with self._health.reading(what), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, what: str) -> Iterator[Connection]:
        """A write transaction, begun at once (BEGIN IMMEDIATE) and fsynced when it is left."""
        if self._read_only:
            raise StoreError(f"{what} cannot be written: the store was opened to be read")
        with self._writing(what) as connection:
            yield connection

    @contextmanager
    def _writing(self, what: str) -> Iterator[Connection]:
        with self._health.writing(what), self._engine.connect() as connection:
            connection = connection.execution_options(write=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        if self._copy is not None:
            self._copy.cleanup()

    def _readable(self) -> bool:
        """Whether a connection that may not write can read the index as it is."""
        try:
            with self._engine.begin() as connection:
                return _format_of(connection) == FORMAT
        except OperationalError as error:
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                return False
            raise

    def _copied(self, path: Path) -> Path:
        self._copy = tempfile.TemporaryDirectory(prefix="agent-memory-index-")
        for kind in _SQLITE_FILES:
            with suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + kind), Path(self._copy.name) / (path.name + kind))
        return Path(self._copy.name) / path.name

    def _to_current_format(self) -> None:
        with self._engine.begin() as connection:
            found = _format_of(connection)
        if found == FORMAT:
            return
        if found is not None and found > FORMAT:
            raise FormatTooNew(f"this store has format {found}, this version of agent_memory knows {FORMAT}; upgrade agent_memory")
        if found is not None and found not in OLDER_FORMATS:
            raise StoreCorrupt(f"the index says it has format {found!r}, which there never was; restore it from an export")
        with self._writing("the tables of the index") as connection:
            if _format_of(connection) != FORMAT:
                _upgrade(connection)


def _format_of(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if version is not None:
            return str(version)
    if tables:
        raise StoreCorrupt("the index file is a database of something else; choose another folder for the store")
    return None


def _upgrade(connection: Connection) -> None:
    from alembic import command  # here, because it takes longer to import than a Store takes to open
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _keep_private(path: Path, files: Files, health: Health) -> None:
    """The index, like Segments, is for its owner's eyes; SQLite gives its other files the same mode."""
    with health.writing("the index"):
        if not path.exists():
            files.close(files.create(path))
        elif path.stat().st_mode & 0o077 and path.stat().st_uid == os.getuid():
            path.chmod(0o600)


def _check_regular(path: Path) -> None:
    """SQLite follows links; what it opens has to lie in the Store."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StoreCorrupt(f"{path} is a link or a folder where a file of the index belongs; restore the store from an export")


def _engine(path: Path, files: Files, read_only: bool) -> Engine:
    query = {"mode": "ro", "uri": "true"} if read_only else {}
    engine = create_engine(
        URL.create("sqlite", database=f"file:{quote(str(path))}" if read_only else str(path), query=query),
        connect_args={"timeout": _BUSY_MILLISECONDS / 1000, "check_same_thread": False},
        hide_parameters=True,  # an error must not tell what was said
    )

    @event.listens_for(engine, "connect")
    def settings(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        _apply_settings(connection, {"journal_mode"} if read_only else set())

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        if connection.get_execution_options().get("write"):
            files.before_commit()

    return engine


def pragmas() -> dict[str, Any]:
    """Settings of every connection; each is read back after it is set."""
    return {
        "busy_timeout": _BUSY_MILLISECONDS,
        "journal_mode": "wal" if sqlite3.sqlite_version_info >= _WAL_SAFE_FROM else "truncate",
        "synchronous": 2,
        "fullfsync": 1,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "secure_delete": 1,  # a deleted Session's text is overwritten, not only forgotten
        "temp_store": 2,
        "mmap_size": 0,
    }


def _apply_settings(connection: sqlite3.Connection, left_out: Set[str]) -> None:
    for name, wanted in pragmas().items():
        if name in left_out:
            continue
        connection.execute(f"PRAGMA {name} = {wanted}")
        row = connection.execute(f"PRAGMA {name}").fetchone()
        if row is None or str(row[0]).lower() != str(wanted):
            raise UnsupportedStore(f"SQLite did not accept PRAGMA {name} = {wanted} (it says {row and row[0]}); the store is not safe here")


def integrity(connection: Connection) -> list[str]:
    """What SQLite's own check finds wrong with the index; empty if nothing."""
    return [str(line) for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars() if line != "ok"]


def dangling(connection: Connection) -> list[str]:
    """Rows of the index that point at rows that are not there."""
    return [f"row {row[1]} of {row[0]} points nowhere" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
