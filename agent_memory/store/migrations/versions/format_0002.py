"""Format 2: Sessions know which conversation they belong to and how many turns they have, and their seals cover that and their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from agent_memory.store.tables import LIVE, seal

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SEALED_BEFORE = (
    "namespace", "name", "folder", "state", "parent_id", "fork_turns", "fork_tokens", "fork_blocks", "model", "layout", "created",
)  # fmt: skip
_BRANCH = re.compile(r"(.+)/[0-9]+")


def upgrade() -> None:
    """Add both columns, and seal every row that was whole anew; one that was damaged stays so."""
    op.add_column("sessions", sa.Column("conversation", sa.Text))
    op.add_column("sessions", sa.Column("turns", sa.Integer, nullable=False, server_default="0"))
    op.create_index("conversations", "sessions", ["namespace", "conversation"])
    connection = op.get_bind()
    rows = {row["id"]: dict(row) for row in connection.execute(sa.text("SELECT * FROM sessions")).mappings()}
    counted = connection.execute(sa.text("SELECT session_id, max(idx) + 1 FROM turns GROUP BY session_id"))
    last = {session: count for session, count in counted}
    for row in rows.values():
        if row["seal"] != seal(*(row[column] for column in _SEALED_BEFORE)):
            continue
        row |= {"conversation": _conversation(row, rows), "turns": last.get(row["id"], row["fork_turns"])}
        sealed = seal(row["id"], *(row[column] for column in _SEALED_BEFORE), row["conversation"], row["turns"])
        changes = {"conversation": row["conversation"], "turns": row["turns"], "seal": sealed, "id": row["id"]}
        connection.execute(
            sa.text("UPDATE sessions SET conversation = :conversation, turns = :turns, seal = :seal WHERE id = :id"), changes
        )


def _conversation(row: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]) -> str | None:
    """The conversation a fork is a branch of: until now that was what its name said, where what it was made of is called so, or was."""
    named = _BRANCH.fullmatch(row["name"])
    above, seen = row["parent_id"], set[int]()
    while named is not None and above in rows and above not in seen:
        seen.add(above)
        ancestor = rows[above]
        if ancestor["state"] != LIVE or ancestor["name"] == named[1]:
            return named[1]
        above = ancestor["parent_id"]
    return None
