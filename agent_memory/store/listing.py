"""What ``sessions`` tells of each Session.

Knows how rows add up, a few statements for all of them; opens and changes nothing.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, func, select

from agent_memory.store import index
from agent_memory.store.index import DamagedRow, SessionRow
from agent_memory.store.tables import LIVE, segments, sessions, tails, turns
from agent_memory.types import BLOCK_TOKENS, SessionInfo


def session_infos(connection: Connection, namespace: str | None, *, branches: bool) -> list[SessionInfo]:
    """Sessions in use by namespace and name; branches of a conversation only with ``branches``. One whose row is damaged says so."""
    rows = index.checked_sessions(connection, *index.not_removed(namespace))
    sums = _Sums(connection)
    return [_damaged(row) if isinstance(row, DamagedRow) else sums.info(row) for row in rows if branches or not is_branch(row)]


def is_branch(row: SessionRow | DamagedRow) -> bool:
    """Whether a Session was made by a client for a history that went another way."""
    return isinstance(row, SessionRow) and row.conversation not in (None, row.name) and row.parent_id is not None


class _Sums:
    """What the Sessions of a Store hold, each summed up once for all."""

    def __init__(self, connection: Connection) -> None:
        own_last = (turns.c.session_id == sessions.c.id) & (turns.c.idx == sessions.c.turns - 1)
        last = select(turns.c.session_id, turns.c.start + turns.c.tokens, turns.c.created).join(sessions, own_last)
        self._last = {row[0]: (row[1], row[2]) for row in connection.execute(last)}
        held = select(segments.c.session_id, func.sum(segments.c.size), func.max(segments.c.first_block + segments.c.blocks))
        self._segments = {row[0]: (row[1], row[2]) for row in connection.execute(held.group_by(segments.c.session_id))}
        self._tails: dict[Any, Any] = {row[0]: row[1] for row in connection.execute(select(tails.c.session_id, tails.c.size))}
        named = connection.execute(select(sessions.c.id, sessions.c.name).where(sessions.c.state == LIVE))
        self._names: dict[Any, Any] = {row[0]: row[1] for row in named}

    def info(self, row: SessionRow) -> SessionInfo:
        stop, written = self._last.get(row.id, (row.fork_tokens, row.created))
        size, blocks = self._segments.get(row.id, (0, row.fork_blocks))
        stop, size, blocks, tail = (index.count_or_zero(value) for value in (stop, size, blocks, self._tails.get(row.id, 0)))
        return SessionInfo(
            namespace=row.namespace,
            name=row.name,
            turns=row.turns,
            tokens=stop,
            kv_tokens=blocks * BLOCK_TOKENS,
            bytes=size + tail + 4 * max(stop - row.fork_tokens, 0),
            created=row.created,
            updated=max(row.created, written) if index.is_time(written) else row.created,
            parent=self._names.get(row.parent_id),
            model=_architecture(row.model),
        )


def _architecture(model: str) -> str:
    fields = json.loads(model) if index.is_json_object(model) else {}
    return str(fields.get("architecture", "?"))


def _damaged(row: DamagedRow) -> SessionInfo:
    return SessionInfo(row.namespace, row.name, 0, 0, 0, 0, 0.0, 0.0, None, "?", damage=row.why)
