"""Whether the index has the tables, columns and indexes of this format, and nothing that would act on its own.

A trigger, a conflict clause or a view could make a statement succeed that did nothing; seals cover rows, not what keeps rows out.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, Table

from agent_memory.store.tables import metadata

_ACTS = re.compile(r"\b(ON\s+CONFLICT|CHECK|GENERATED|COLLATE|AS\s*\()", re.IGNORECASE)
"""Words of a table's definition that ours do not have."""


def schema_fault(connection: Connection) -> str | None:
    """What of the schema is not ours, or is missing; None if all is as it should be."""
    rows = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    found = {(str(kind), str(name)): str(sql) for kind, name, sql in rows}
    indexes = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    wanted = {("table", "alembic_version"), *(("table", name) for name in metadata.tables), *(("index", name) for name in indexes)}
    if strange := sorted(found.keys() - wanted):
        return f"{strange[0][0]} {strange[0][1]!r} is not ours"
    if missing := sorted(wanted - found.keys()):
        return f"{missing[0][0]} {missing[0][1]!r} is missing"
    for table in metadata.tables.values():
        if _ACTS.search(found["table", table.name]) or not _has_columns(connection, table):
            return f"table {table.name!r} is another one"
    return None


def _has_columns(connection: Connection, table: Table) -> bool:
    rows = connection.exec_driver_sql(f"PRAGMA table_xinfo({table.name})")
    found = {(str(row[1]), bool(row[3]), bool(row[5]), row[6]) for row in rows}
    return found == {(column.name, not column.nullable, column.primary_key, 0) for column in table.columns}
