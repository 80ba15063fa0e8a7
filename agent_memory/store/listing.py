"""What ``sessions`` tells of each Session.

Knows how rows add up; opens and changes nothing.
"""

from __future__ import annotations

import json
import re

from sqlalchemy import Connection

from agent_memory.store import index, segment_index
from agent_memory.store.index import SessionRow
from agent_memory.store.tables import LIVE
from agent_memory.types import BLOCK_TOKENS, SessionInfo


def session_infos(connection: Connection, namespace: str | None, *, branches: bool) -> list[SessionInfo]:
    """Live Sessions by namespace and name; those named ``<parent>/<number>`` only with ``branches``."""
    infos = [session_info(connection, row) for row in index.live_sessions(connection, namespace)]
    return [info for info in infos if branches or not _is_branch(info)]


def session_info(connection: Connection, row: SessionRow) -> SessionInfo:
    """One line about one Session."""
    spans = index.lineage(connection, row.id)
    last = index.last_turn(connection, spans)
    return SessionInfo(
        namespace=row.namespace,
        name=row.name,
        turns=0 if last is None else last.index + 1,
        tokens=0 if last is None else last.stop,
        kv_tokens=segment_index.kv_blocks(connection, spans) * BLOCK_TOKENS,
        bytes=segment_index.own_bytes(connection, row.id) + index.own_token_bytes(connection, row.id),
        created=row.created,
        updated=row.created if last is None else max(row.created, last.created),
        parent=_parent_name(connection, row),
        model=str(json.loads(row.model)["architecture"]),
    )


def _parent_name(connection: Connection, row: SessionRow) -> str | None:
    if row.parent_id is None:
        return None
    parent = index.session_by_id(connection, row.parent_id)
    return parent.name if parent.state == LIVE else None


def _is_branch(info: SessionInfo) -> bool:
    return info.parent is not None and re.fullmatch(re.escape(info.parent) + r"/\d+", info.name) is not None
