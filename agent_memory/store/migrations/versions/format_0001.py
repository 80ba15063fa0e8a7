"""Format 1: sessions, turns, segments and tails."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of format 1."""
    _sessions()
    _turns()
    _segments()
    _tails()


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False, unique=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("parent_id", sa.Integer, sa.ForeignKey("sessions.id")),
        sa.Column("fork_turns", sa.Integer, nullable=False),
        sa.Column("fork_tokens", sa.BigInteger, nullable=False),
        sa.Column("fork_blocks", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("layout", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_parent_id", "sessions", ["parent_id"])
    op.create_index("live_names", "sessions", ["namespace", "name"], unique=True, sqlite_where=sa.text("state = 0"))
    op.create_index("states", "sessions", ["state"])


def _turns() -> None:
    op.create_table(
        "turns",
        sa.Column("session_id", sa.Integer, sa.ForeignKey("sessions.id"), primary_key=True),
        sa.Column("idx", sa.Integer, primary_key=True),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("chain", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
        sa.Column("ids_seal", sa.BigInteger, nullable=False),
        sa.Column("meta", sa.Text, nullable=False),
        sa.Column("recall", sa.Text),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("ids", sa.LargeBinary, nullable=False),
    )
    op.create_index("turn_starts", "turns", ["session_id", "start"])


def _segments() -> None:
    op.create_table(
        "segments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.Integer, sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("first_block", sa.BigInteger, nullable=False),
        sa.Column("blocks", sa.Integer, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("header_bytes", sa.Integer, nullable=False),
        sa.Column("header_sum", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
        sa.Column("places", sa.Text, nullable=False),
        sa.Column("sums", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_segments_file", "segments", ["file"])
    op.create_index("segment_starts", "segments", ["session_id", "first_block"], unique=True)


def _tails() -> None:
    op.create_table(
        "tails",
        sa.Column("session_id", sa.Integer, sa.ForeignKey("sessions.id"), primary_key=True),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("first_block", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("header_bytes", sa.Integer, nullable=False),
        sa.Column("header_sum", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
        sa.Column("places", sa.Text, nullable=False),
        sa.Column("sums", sa.LargeBinary, nullable=False),
    )
