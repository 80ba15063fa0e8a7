"""SQL statements on Sessions. Those on turns are in ``turn_index.py``, on Segments and tails in ``segment_index.py``; there are no others.

Knows rows and their seals; every function runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from agent_memory.errors import StoreCorrupt
from agent_memory.store.names import FOLDER
from agent_memory.store.tables import DELETING, KEPT, LIVE, seal, sessions

OPEN_END = 2**62
"""Upper bound of a Span that is still growing."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One row of ``sessions``.

    Attributes:
        fork_turns, fork_tokens, fork_blocks: how much of the parent's timeline this Session begins with.
        conversation: the conversation of a client this Session is a branch of, whatever it is called; None if it is nobody's branch.
        turns: turns of its timeline, the parent's with them.
    """

    id: int
    namespace: str
    name: str
    folder: str
    state: int
    parent_id: int | None
    fork_turns: int
    fork_tokens: int
    fork_blocks: int
    model: str
    layout: str
    created: float
    conversation: str | None
    turns: int

    @property
    def label(self) -> str:
        """``namespace/name``, for messages."""
        return f"{self.namespace}/{self.name}"

    def sealed(self) -> int:
        """Seal over all columns."""
        return _session_seal(self.id, {column: getattr(self, column) for column in _SEALED})


_SEALED = (
    "namespace", "name", "folder", "state", "parent_id", "fork_turns", "fork_tokens", "fork_blocks", "model", "layout", "created",
    "conversation", "turns",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a timeline that lies in one Session's own rows: half-open ranges of turns, tokens and Blocks."""

    session_id: int
    turns: tuple[int, int]
    tokens: tuple[int, int]
    blocks: tuple[int, int]


def insert_session(connection: Connection, values: Mapping[str, Any]) -> SessionRow:
    """Insert a Session; IntegrityError if its name is taken. ``values`` are the sealed columns."""
    done = connection.execute(insert(sessions).values(**values, seal=0))
    assert done.inserted_primary_key is not None  # noqa: S101
    row = SessionRow(id=int(done.inserted_primary_key[0]), **values)
    written(connection.execute(update(sessions).where(sessions.c.id == row.id).values(seal=row.sealed())).rowcount, "a session")
    return row


def change_session(connection: Connection, row: SessionRow, **changes: Any) -> None:
    """Update columns of a Session, with its seal."""
    sealed = _session_seal(row.id, {column: getattr(row, column) for column in _SEALED} | changes)
    done = connection.execute(update(sessions).where(sessions.c.id == row.id).values(**changes, seal=sealed))
    written(done.rowcount, "a session")


def find_session(connection: Connection, namespace: str, name: str) -> SessionRow | None:
    """The live Session of that name."""
    where = (sessions.c.namespace == namespace, sessions.c.name == name, sessions.c.state == LIVE)
    row = connection.execute(select(sessions).where(*where)).one_or_none()
    return None if row is None else _session_row(row)


def find_by_id(connection: Connection, session_id: int) -> SessionRow | None:
    """A Session in any state."""
    row = connection.execute(select(sessions).where(sessions.c.id == session_id)).one_or_none()
    return None if row is None else _session_row(row)


def session_by_id(connection: Connection, session_id: int) -> SessionRow:
    """A Session in any state; StoreCorrupt if there is none."""
    row = find_by_id(connection, session_id)
    if row is None:
        raise StoreCorrupt(f"the index has no session {session_id}, which a fork is built on; run verify")
    return row


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row of ``sessions`` that cannot be trusted; ``namespace`` and ``name`` are what it says."""

    id: int
    namespace: str
    name: str
    why: str


def checked_sessions(connection: Connection, *where: ColumnElement[bool]) -> list[SessionRow | DamagedRow]:
    """Sessions by namespace and name, each for itself: one that is damaged hides no other."""
    found: list[SessionRow | DamagedRow] = []
    for row in connection.execute(select(sessions).where(*where).order_by(sessions.c.namespace, sessions.c.name)):
        try:
            found.append(_session_row(row))
        except StoreCorrupt as error:
            found.append(DamagedRow(row.id, str(row.namespace), str(row.name), str(error)))
    return found


def not_removed(namespace: str | None = None) -> list[ColumnElement[bool]]:
    """Sessions that are in use, of a namespace or all; a state that there is not counts as in use, so that it is seen."""
    own = [] if namespace is None else [sessions.c.namespace == namespace]
    return [sessions.c.state.not_in((DELETING, KEPT)), *own]


def names_in_conversation(connection: Connection, namespace: str, conversation: str) -> list[str]:
    """Names of the live Sessions of a conversation, in the order in which they were made."""
    own = (sessions.c.name == conversation) & sessions.c.conversation.is_(None)
    where = (sessions.c.namespace == namespace, sessions.c.state == LIVE, own | (sessions.c.conversation == conversation))
    return list(connection.execute(select(sessions.c.name).where(*where).order_by(sessions.c.id)).scalars())


def is_known(connection: Connection, namespace: str, name: str) -> bool:
    """Whether a Session of that name is in use, be its row damaged or not."""
    where = (sessions.c.namespace == namespace, sessions.c.name == name, *not_removed())
    return connection.execute(select(sessions.c.id).where(*where)).first() is not None


def row_to_remove(connection: Connection, namespace: str, name: str, folder: str) -> SessionRow | None:
    """The Session of that name that is in use. Of a damaged row what cannot be is replaced, its folder by ``folder``, so that all the rows
    and files of its id can be removed."""
    where = (sessions.c.namespace == namespace, sessions.c.name == name, *not_removed())
    row = connection.execute(select(sessions).where(*where).order_by(sessions.c.id).limit(1)).one_or_none()
    if row is None:
        return None
    try:
        return _session_row(row)
    except StoreCorrupt:
        parent = row.parent_id if are_counts([row.parent_id]) and row.parent_id < row.id else None
        own = row.folder if isinstance(row.folder, str) and FOLDER.fullmatch(row.folder) else folder
        sound = SessionRow(row.id, namespace, name, own, LIVE, parent, 0, 0, 0, "{}", "{}", 0.0, None, 0)
        change_session(connection, sound, **{column: getattr(sound, column) for column in _SEALED})
        return sound


def deleting_sessions(connection: Connection) -> list[SessionRow]:
    """Sessions whose removal has begun; those whose row is damaged are left to ``verify``."""
    found = checked_sessions(connection, sessions.c.state == DELETING)
    return [row for row in found if isinstance(row, SessionRow)]


def children(connection: Connection, session_id: int) -> list[SessionRow | DamagedRow]:
    """Forks of a Session, in any state."""
    return checked_sessions(connection, sessions.c.parent_id == session_id)


def remove_session(connection: Connection, session_id: int) -> None:
    """Delete the row of a Session that has neither turns nor Segments nor forks."""
    connection.execute(sessions.delete().where(sessions.c.id == session_id))


def sessions_in_folders(connection: Connection, digest: str) -> list[SessionRow]:
    """Sessions, in any state, whose folder begins with the digest of their name."""
    where = (sessions.c.folder > f"{digest}-", sessions.c.folder < f"{digest}.")  # "." follows "-"
    return [_session_row(row) for row in connection.execute(select(sessions).where(*where))]


def lineage(connection: Connection, session_id: int) -> tuple[Span, ...]:
    """The Spans of a timeline, oldest ancestor first. One statement a generation."""
    spans: list[Span] = []
    stops = (OPEN_END, OPEN_END, OPEN_END)
    current: int | None = session_id
    while current is not None:
        row = session_by_id(connection, current)
        starts = (row.fork_turns, row.fork_tokens, row.fork_blocks)
        turn_range, token_range, block_range = ((low, max(low, high)) for low, high in zip(starts, stops, strict=True))
        spans.append(Span(row.id, turn_range, token_range, block_range))
        stops = (min(stops[0], starts[0]), min(stops[1], starts[1]), min(stops[2], starts[2]))
        current = row.parent_id
    return tuple(reversed(spans))


def _session_row(row: Any) -> SessionRow:
    found = SessionRow(row.id, *(getattr(row, column) for column in _SEALED))
    if found.sealed() != row.seal or not _is_session(found):
        raise StoreCorrupt(f"the index row of session {found.label!r} is damaged; delete the session, or restore it from an export")
    if not FOLDER.fullmatch(found.folder):
        raise StoreCorrupt(f"the index names the folder {found.folder!r}, which cannot be a session's; restore it from an export")
    if found.parent_id is not None and not found.parent_id < found.id:  # a fork is made after what it is made of: no lineage goes round
        raise StoreCorrupt(
            f"the index says that session {found.label!r} is a fork of a later one; run verify, or restore it from an export"
        )
    return found


def _is_session(row: SessionRow) -> bool:
    """Whether the columns hold what they are for; SQLite takes any value in any column."""
    counts = (row.id, row.state, row.fork_turns, row.fork_tokens, row.fork_blocks, row.turns, 0 if row.parent_id is None else row.parent_id)
    texts = (row.namespace, row.name, row.folder, row.model, row.layout, "" if row.conversation is None else row.conversation)
    if not (are_counts(counts) and all(isinstance(text, str) for text in texts) and is_time(row.created) and row.state <= KEPT):
        return False
    return is_json_object(row.model) and is_json_object(row.layout)


def are_counts(values: Iterable[object]) -> bool:
    """Whether all are whole numbers that could count something that is there."""
    return all(isinstance(value, int) and 0 <= value < OPEN_END for value in values)


def count_or_zero(value: object) -> int:
    """A sum over columns that may hold anything, for people to see."""
    return value if isinstance(value, int) and are_counts([value]) else 0


def is_time(value: object) -> bool:
    """Whether it is a moment, in seconds."""
    return isinstance(value, float) and math.isfinite(value)


def _session_seal(session_id: int, values: Mapping[str, Any]) -> int:
    return seal(session_id, *(values[column] for column in _SEALED))


def written(rows: int, what: str) -> None:
    """A statement that the index took and did nothing about must not be acknowledged."""
    if rows != 1:
        raise StoreCorrupt(f"the index did not take {what}: it holds something that keeps rows out; restore it from an export")


def is_json_object(text: str) -> bool:
    """Whether a text is JSON of an object that can be read."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
