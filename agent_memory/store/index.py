"""SQL statements on Sessions and turns. Those on Segments and tails are in ``segment_index.py``; there are no others.

Knows rows and their seals; every function runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from agent_memory.errors import StoreCorrupt
from agent_memory.store.names import FOLDER
from agent_memory.store.tables import DELETING, KEPT, LIVE, seal, sessions, turns
from agent_memory.types import Role, Turn

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


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to append, its ids as little-endian int32 bytes; ``meta`` and ``recall`` are JSON."""

    idx: int
    start: int
    tokens: int
    role: str
    name: str | None
    text: str
    ids: bytes
    chain: str
    created: float
    meta: str
    recall: str | None


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


def last_turn(connection: Connection, spans: Sequence[Span]) -> Turn | None:
    """The newest turn of a timeline."""
    for span in reversed(spans):
        query = _turns_of(span).order_by(turns.c.idx.desc()).limit(1)
        row = connection.execute(query).one_or_none()
        if row is not None:
            return _turn(row)
    return None


def insert_turn(connection: Connection, session_id: int, turn: NewTurn) -> None:
    """Insert a turn, and count it."""
    values = {column: getattr(turn, column) for column in NewTurn.__slots__}
    sealed = _turn_seal(session_id, turn)
    done = connection.execute(insert(turns).values(session_id=session_id, **values, seal=sealed, ids_seal=seal(turn.ids)))
    written(done.rowcount, "a turn")
    change_session(connection, session_by_id(connection, session_id), turns=turn.idx + 1)


def read_turns(connection: Connection, spans: Sequence[Span], start: int, stop: int) -> list[Turn]:
    """Turns ``[start, stop)`` of a timeline, without their ids."""
    found: list[Turn] = []
    for span in spans:
        where = (turns.c.idx >= start, turns.c.idx < stop)
        if max(start, span.turns[0]) < min(stop, span.turns[1]):
            found += [_turn(row) for row in connection.execute(_turns_of(span).where(*where).order_by(turns.c.idx))]
    return found


def read_recalls(connection: Connection, spans: Sequence[Span]) -> list[dict[str, Any]]:
    """``{"turn": index, "recall": ...}`` of every turn that has one."""
    found: list[dict[str, Any]] = []
    for span in spans:
        query = _turns_of(span).where(turns.c.recall.is_not(None)).order_by(turns.c.idx)
        for row in connection.execute(query):
            found.append({"turn": _turn(row).index, "recall": json.loads(row.recall)})
    return found


def turn_holding(connection: Connection, spans: Sequence[Span], token: int) -> Turn:
    """The turn that holds the token of that index; IndexError if there is none."""
    for span in spans:
        if span.tokens[0] <= token < span.tokens[1]:
            query = _turns_of(span).where(turns.c.start <= token).order_by(turns.c.start.desc(), turns.c.idx.desc()).limit(1)
            row = connection.execute(query).one_or_none()
            if row is not None and token < row.start + row.tokens:
                return _turn(row)
    raise IndexError(f"there is no token {token}")


def turns_between(connection: Connection, spans: Sequence[Span], start: int, stop: int) -> list[int]:
    """Indices of the turns that hold any of the tokens ``[start, stop)``."""
    found: list[int] = []
    for span in spans:
        low, high = max(start, span.tokens[0]), min(stop, span.tokens[1])
        if low < high:
            own = (turns.c.session_id == span.session_id, turns.c.start < high, turns.c.start + turns.c.tokens > low)
            found += [int(idx) for idx in connection.execute(select(turns.c.idx).where(*own).order_by(turns.c.idx)).scalars()]
    return found


def read_ids(connection: Connection, spans: Sequence[Span], start: int, stop: int) -> list[NDArray[np.int32]]:
    """Ids of tokens ``[start, stop)``, in pieces; reads only the turns they lie in."""
    pieces: list[NDArray[np.int32]] = []
    for span in spans:
        low, high = max(start, span.tokens[0]), min(stop, span.tokens[1])
        if low < high:
            pieces += [_ids_between(row, low, high) for row in _id_rows(connection, span, low, high)]
    return pieces


def raw_turns(connection: Connection, span: Span, start: int, stop: int) -> Iterator[Any]:
    """Rows of turns ``[start, stop)`` of one Span with all columns, unchecked, for ``verify`` and ``export``."""
    where = (turns.c.session_id == span.session_id, turns.c.idx >= max(start, span.turns[0]), turns.c.idx < min(stop, span.turns[1]))
    yield from connection.execute(select(turns).where(*where).order_by(turns.c.idx))


def turn_is_whole(row: Any) -> bool:
    """True if a row of ``raw_turns`` carries the seals it was written with."""
    return row.seal == _turn_seal(row.session_id, row) and _is_turn(row) and _are_ids(row)


def delete_turns(connection: Connection, session_id: int, start: int) -> None:
    """Delete a Session's own turns from ``start`` on; all of them from 0 on, whatever number they have."""
    later = [turns.c.idx >= start] if start else []
    connection.execute(turns.delete().where(turns.c.session_id == session_id, *later))
    row = session_by_id(connection, session_id)
    change_session(connection, row, turns=min(row.turns, max(start, row.fork_turns)))


def own_token_bytes(connection: Connection, session_id: int) -> int:
    """Bytes of token ids in a Session's own turns."""
    last = select(turns.c.start + turns.c.tokens).where(turns.c.session_id == session_id).order_by(turns.c.idx.desc()).limit(1)
    first = select(func.min(turns.c.start)).where(turns.c.session_id == session_id)
    stop = connection.execute(last).scalar()
    return 0 if stop is None else 4 * int(stop - (connection.execute(first).scalar() or 0))


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
    counts = (row.id, row.state, row.fork_turns, row.fork_tokens, row.fork_blocks, row.turns, row.parent_id or 0)
    texts = (row.namespace, row.name, row.folder, row.model, row.layout, row.conversation or "")
    if not (are_counts(counts) and all(isinstance(text, str) for text in texts) and is_time(row.created) and row.state <= KEPT):
        return False
    return is_json_object(row.model) and is_json_object(row.layout)


def are_counts(values: Iterable[object]) -> bool:
    """Whether all are whole numbers that could count something that is there."""
    return all(isinstance(value, int) and 0 <= value < OPEN_END for value in values)


def is_time(value: object) -> bool:
    """Whether it is a moment, in seconds."""
    return isinstance(value, float) and math.isfinite(value)


def _session_seal(session_id: int, values: Mapping[str, Any]) -> int:
    return seal(session_id, *(values[column] for column in _SEALED))


def written(rows: int, what: str) -> None:
    """A statement that the index took and did nothing about must not be acknowledged."""
    if rows != 1:
        raise StoreCorrupt(f"the index did not take {what}: it holds something that keeps rows out; restore it from an export")


_LIGHT = tuple(column for column in turns.c if column.name not in ("ids", "ids_seal"))


def _turns_of(span: Span) -> Select[Any]:
    return select(*_LIGHT).where(turns.c.session_id == span.session_id, turns.c.idx >= span.turns[0], turns.c.idx < span.turns[1])


def _turn_seal(session_id: int, turn: Any) -> int:
    fields = (turn.idx, turn.start, turn.tokens, turn.role, turn.name, turn.chain, turn.created, turn.meta, turn.recall, turn.text)
    return seal(session_id, *fields)


def _is_turn(row: Any) -> bool:
    """Whether the columns of a turn hold what they are for."""
    texts = (row.chain, row.text, row.meta, row.name or "", row.recall or "")
    if row.role not in get_args(Role) or not (
        are_counts((row.idx, row.start, row.tokens)) and all(isinstance(text, str) for text in texts) and is_time(row.created)
    ):
        return False
    return is_json_object(row.meta) and (row.recall is None or is_json_object(row.recall))


def is_json_object(text: str) -> bool:
    """Whether a text is JSON of an object that can be read."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _are_ids(row: Any) -> bool:
    if not isinstance(row.ids, bytes) or row.ids_seal != seal(row.ids) or len(row.ids) != 4 * row.tokens:
        return False
    return bool((np.frombuffer(row.ids, "<i4") >= 0).all())


def _turn(row: Any) -> Turn:
    if row.seal != _turn_seal(row.session_id, row) or not _is_turn(row):
        raise StoreCorrupt(f"the index row of turn {row.idx} is damaged; run verify, or restore the session from an export")
    meta = json.loads(row.meta)
    return Turn(row.idx, row.role, row.name, row.text, row.start, row.tokens, row.chain, row.created, meta)


def _id_rows(connection: Connection, span: Span, low: int, high: int) -> Iterator[Any]:
    own = turns.c.session_id == span.session_id
    begin = select(func.max(turns.c.start)).where(own, turns.c.start <= low).correlate(None).scalar_subquery()
    columns = (turns.c.idx, turns.c.start, turns.c.tokens, turns.c.ids, turns.c.ids_seal)
    yield from connection.execute(select(*columns).where(own, turns.c.start >= begin, turns.c.start < high).order_by(turns.c.idx))


def _ids_between(row: Any, low: int, high: int) -> NDArray[np.int32]:
    if not (are_counts((row.start, row.tokens)) and _are_ids(row)):
        raise StoreCorrupt(f"the token ids of turn {row.idx} are damaged; run verify, or restore the session from an export")
    ids = np.frombuffer(row.ids, dtype="<i4").astype(np.int32, copy=False)
    return ids[max(low - row.start, 0) : max(high - row.start, 0)]
