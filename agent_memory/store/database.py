"""Connections to the SQLite index, their settings, and transactions.

Knows PRAGMAs, BEGIN and COMMIT, and how a new or older index is brought to this version; nothing of the tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text

from agent_memory.errors import FormatTooNew, StoreCorrupt, UnsupportedStore
from agent_memory.store.faults import Health
from agent_memory.store.files import Files
from agent_memory.store.tables import FORMAT

_BUSY_MILLISECONDS = 30_000
_SMALLEST_BYTES = 512  # SQLite takes a shorter file for an empty one
_WAL_SAFE_FROM = (3, 51, 3)  # older versions can corrupt a WAL database written by several connections


class Database:
    """The index of one Store: ``read()`` and ``write()`` are its transactions.

    A transaction that fails is rolled back and its error translated (see ``Health``).
    """

    def __init__(self, path: Path, files: Files, health: Health) -> None:
        self._health = health
        if path.is_file() and 0 < path.stat().st_size < _SMALLEST_BYTES:
            raise StoreCorrupt(f"the index {path} is cut off after {path.stat().st_size} bytes; restore it from an export")
        self._engine = _engine(path, files)
        try:
            with health.reading("the index"):
                self._to_current_format()
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def read(self, what: str = "the index") -> Iterator[Connection]:
        """A read transaction: one unchanging view of the index."""
        with self._health.reading(what), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, what: str) -> Iterator[Connection]:
        """A write transaction, begun at once (BEGIN IMMEDIATE) and fsynced when it is left."""
        with self._health.writing(what), self._engine.connect() as connection:
            connection = connection.execution_options(write=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _to_current_format(self) -> None:
        with self._engine.begin() as connection:
            found = _format_of(connection)
        if found == FORMAT:
            return
        if found is not None and found > FORMAT:
            raise FormatTooNew(f"this store has format {found}, this version of agent_memory knows {FORMAT}; upgrade agent_memory")
        with self.write("the tables of the index") as connection:
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


def _engine(path: Path, files: Files) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_MILLISECONDS / 1000, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def settings(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        _apply_settings(connection)

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


def _apply_settings(connection: sqlite3.Connection) -> None:
    for name, wanted in pragmas().items():
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
