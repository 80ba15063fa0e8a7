"""The tables of the index, format 2, and the seal that each row carries.

Knows columns only; statements are in ``index.py`` and its neighbours, changes of format in ``migrations``.
"""

from __future__ import annotations

import xxhash
from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

FORMAT = "0002"
"""Alembic revision this version of the package reads and writes."""

OLDER_FORMATS = ("0001",)
"""Revisions it brings up to that."""

LIVE, DELETING, KEPT = 0, 1, 2
"""States of a Session: in use; to be removed; removed, but forks still use a part of it."""

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("folder", Text, nullable=False, unique=True),
    Column("state", Integer, nullable=False),
    Column("parent_id", Integer, ForeignKey("sessions.id"), index=True),
    Column("fork_turns", Integer, nullable=False),
    Column("fork_tokens", BigInteger, nullable=False),
    Column("fork_blocks", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("layout", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("seal", BigInteger, nullable=False),
    Column("conversation", Text),
    Column("turns", Integer, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)
Index("conversations", sessions.c.namespace, sessions.c.conversation)
Index("live_names", sessions.c.namespace, sessions.c.name, unique=True, sqlite_where=sessions.c.state == LIVE)
Index("states", sessions.c.state)

turns = Table(
    "turns",
    metadata,
    Column("session_id", Integer, ForeignKey("sessions.id"), primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("start", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("name", Text),
    Column("chain", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("seal", BigInteger, nullable=False),
    Column("ids_seal", BigInteger, nullable=False),
    Column("meta", Text, nullable=False),
    Column("recall", Text),
    Column("text", Text, nullable=False),
    Column("ids", LargeBinary, nullable=False),
)
Index("turn_starts", turns.c.session_id, turns.c.start)

segments = Table(
    "segments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", Integer, ForeignKey("sessions.id"), nullable=False),
    Column("first_block", BigInteger, nullable=False),
    Column("blocks", Integer, nullable=False),
    Column("file", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("header_bytes", Integer, nullable=False),
    Column("header_sum", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("seal", BigInteger, nullable=False),
    Column("places", Text, nullable=False),
    Column("sums", LargeBinary, nullable=False),
)
Index("segment_starts", segments.c.session_id, segments.c.first_block, unique=True)

tails = Table(
    "tails",
    metadata,
    Column("session_id", Integer, ForeignKey("sessions.id"), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("first_block", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("header_bytes", Integer, nullable=False),
    Column("header_sum", BigInteger, nullable=False),
    Column("seal", BigInteger, nullable=False),
    Column("places", Text, nullable=False),
    Column("sums", LargeBinary, nullable=False),
)


def seal(*fields: object) -> int:
    """xxh3 over the fields, each with its length, as a signed 64-bit integer; None differs from every text."""
    digest = xxhash.xxh3_64()
    for value in fields:
        encoded = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        digest.update((len(encoded) * 2 + (value is None)).to_bytes(9, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)
