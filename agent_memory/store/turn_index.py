"""SQL statements on turns. Those on Sessions are in ``index.py``, those on Segments and tails in ``segment_index.py``.

Knows rows and their seals; every function runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Select, func, insert, select

from agent_memory.errors import StoreCorrupt
from agent_memory.store.index import Span, are_counts, change_session, count_or_zero, is_json_object, is_time, session_by_id, written
from agent_memory.store.tables import seal, turns
from agent_memory.types import ROLES, Turn


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


def last_turn(connection: Connection, spans: Sequence[Span]) -> Turn | None:
    """The newest turn of a timeline."""
    for span in reversed(spans):
        query = _turns_of(span).order_by(turns.c.idx.desc()).limit(1)
        row = connection.execute(query).one_or_none()
        if row is not None:
            return _turn(row)
    return None


def insert_turns(connection: Connection, session_id: int, new: Iterable[NewTurn]) -> None:
    """Insert turns that follow those there are, and count them."""
    count = None
    for turn in new:
        values = {column: getattr(turn, column) for column in NewTurn.__slots__}
        sealed = _turn_seal(session_id, turn)
        done = connection.execute(insert(turns).values(session_id=session_id, **values, seal=sealed, ids_seal=seal(turn.ids)))
        written(done.rowcount, "a turn")
        count = turn.idx + 1
    if count is not None:
        change_session(connection, session_by_id(connection, session_id), turns=count)


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
    stop, start = (count_or_zero(connection.execute(query).scalar()) for query in (last, first))
    return 4 * max(stop - start, 0)


_LIGHT = tuple(column for column in turns.c if column.name not in ("ids", "ids_seal"))


def _turns_of(span: Span) -> Select[Any]:
    return select(*_LIGHT).where(turns.c.session_id == span.session_id, turns.c.idx >= span.turns[0], turns.c.idx < span.turns[1])


def _turn_seal(session_id: int, turn: Any) -> int:
    fields = (turn.idx, turn.start, turn.tokens, turn.role, turn.name, turn.chain, turn.created, turn.meta, turn.recall, turn.text)
    return seal(session_id, *fields)


def _is_turn(row: Any) -> bool:
    """Whether the columns of a turn hold what they are for."""
    texts = (row.chain, row.text, row.meta, *(text for text in (row.name, row.recall) if text is not None))
    if row.role not in ROLES or not (
        are_counts((row.idx, row.start, row.tokens)) and all(isinstance(text, str) for text in texts) and is_time(row.created)
    ):
        return False
    return is_json_object(row.meta) and (row.recall is None or is_json_object(row.recall))


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
