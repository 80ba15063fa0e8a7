"""SQL statements on Segments and tails: which file holds which Block, and who still uses it.

Knows rows and their seals; every function runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, and_, func, insert, not_, select

from agent_memory.errors import StoreCorrupt
from agent_memory.store.index import SessionRow, Span, are_counts, change_session, children, count_or_zero, written
from agent_memory.store.names import FILE
from agent_memory.store.segments import Contents, SegmentRow, contents_from_columns, contents_to_columns
from agent_memory.store.tables import seal, segments, tails
from agent_memory.types import SEGMENT_BLOCKS


@dataclass(frozen=True, slots=True)
class TailRow:
    """The tail of one Session: it continues the Segments from ``first_block`` on and was written at ``tokens`` tokens."""

    tokens: int
    first_block: int
    contents: Contents


def kv_blocks(connection: Connection, spans: Sequence[Span]) -> int:
    """Blocks a timeline holds in Segments; they have no gaps."""
    own = spans[-1]
    query = select(segments).where(segments.c.session_id == own.session_id).order_by(segments.c.first_block.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return own.blocks[0] if row is None else _segment(row).stop


def segment_holding(connection: Connection, spans: Sequence[Span], block: int) -> SegmentRow | None:
    """The Segment that holds a Block, clipped to what its timeline sees."""
    for span in spans:
        if span.blocks[0] <= block < span.blocks[1]:
            where = (segments.c.session_id == span.session_id, segments.c.first_block <= block)
            row = connection.execute(select(segments).where(*where).order_by(segments.c.first_block.desc()).limit(1)).one_or_none()
            found = None if row is None else _segment(row).cut(*span.blocks)
            if found is not None and block < found.stop:
                return found
    return None


def segments_between(connection: Connection, spans: Sequence[Span], first: int, stop: int) -> list[SegmentRow]:
    """Segments of a timeline, clipped to Blocks ``[first, stop)``, in order."""
    found: list[SegmentRow] = []
    for span in spans:
        low, high = max(first, span.blocks[0]), min(stop, span.blocks[1])
        if low < high:
            where = (
                segments.c.session_id == span.session_id,
                segments.c.first_block < high,
                segments.c.first_block + segments.c.blocks > low,
            )
            rows = connection.execute(select(segments).where(*where).order_by(segments.c.first_block))
            found += [_segment(row).cut(low, high) for row in rows]
    return found


def checked_segments(connection: Connection, spans: Sequence[Span]) -> Iterator[SegmentRow | int]:
    """Every Segment of a timeline in order, for ``verify``; one whose row is damaged comes as the first Block it may hold."""
    for span in spans:
        if span.blocks[0] < span.blocks[1]:
            where = (segments.c.session_id == span.session_id, segments.c.first_block < span.blocks[1])
            last = span.blocks[0]
            for row in connection.execute(select(segments).where(*where).order_by(segments.c.first_block)):
                try:
                    segment = _segment(row).cut(*span.blocks)
                except StoreCorrupt:
                    yield last
                    continue
                if segment.blocks > 0:
                    last = segment.stop
                    yield segment


def insert_segment(connection: Connection, row: SegmentRow, created: float) -> None:
    """Insert a Segment row: the only moment from which its file counts."""
    values = {
        "session_id": row.session_id,
        "first_block": row.first_block,
        "blocks": row.blocks,
        "file": row.file,
        "created": created,
        **contents_to_columns(row.contents),
    }
    written(connection.execute(insert(segments).values(**values, seal=seal(*values.values()))).rowcount, "a segment")


def supersede(connection: Connection, row: SegmentRow, created: float) -> list[str]:
    """Put ``row`` in place of the Session's own Segments that begin inside it; returns the files no row names any more."""
    where = (
        segments.c.session_id == row.session_id,
        segments.c.first_block >= row.first_block,
        segments.c.first_block < row.stop,
    )
    files = _file_names(connection.execute(select(segments.c.file).where(*where)).scalars())
    connection.execute(segments.delete().where(*where))
    insert_segment(connection, row, created)
    return unnamed(connection, files)


def own_starts(connection: Connection, session_id: int, first: int) -> list[tuple[int, int]]:
    """``(first_block, blocks)`` of a Session's own Segments that begin at ``first`` or later."""
    where = (segments.c.session_id == session_id, segments.c.first_block >= first)
    query = select(segments.c.first_block, segments.c.blocks).where(*where).order_by(segments.c.first_block)
    return [(row.first_block, row.blocks) for row in connection.execute(query) if are_counts(row)]


def drop_from(connection: Connection, session: SessionRow, spans: Sequence[Span], first: int) -> list[str]:
    """Forget the Blocks of a Session from ``first`` on; returns the files no row names any more.

    What its forks share of them is handed over to them, row by row, so they lose nothing.
    """
    for child in children(connection, session.id):
        if isinstance(child, SessionRow) and child.fork_blocks > first:
            for row in segments_between(connection, spans, first, child.fork_blocks):
                insert_segment(connection, replace(row, session_id=child.id), _created(connection, row))
            change_session(connection, child, fork_blocks=first)
    files = trim(connection, session.id, first)
    delete_tail(connection, session.id)
    if session.fork_blocks > first:
        change_session(connection, session, fork_blocks=first)
    return files


def trim(connection: Connection, session_id: int, first: int) -> list[str]:
    """Cut a Session's own Segments at Block ``first``; returns the files no row names any more."""
    later = [segments.c.first_block + segments.c.blocks > first] if first else []
    where = (segments.c.session_id == session_id, *later)
    rows = list(connection.execute(select(segments).where(*where)))
    connection.execute(segments.delete().where(*where))
    for row in rows:
        if are_counts([row.first_block]) and row.first_block < first:
            insert_segment(connection, _segment(row).cut(0, first), row.created)
    return unnamed(connection, _file_names(row.file for row in rows))


def files_used_only_from(connection: Connection, session_id: int, first: int) -> list[str]:
    """Files of a Session's own Segments that begin at ``first`` or later, and that no other row names."""
    own = (segments.c.session_id == session_id, *([segments.c.first_block >= first] if first else []))
    others = select(segments.c.file).where(not_(and_(*own)))
    return _file_names(connection.execute(select(segments.c.file).where(*own, segments.c.file.not_in(others))).scalars())


def replace_file(connection: Connection, old: SegmentRow, new: SegmentRow) -> None:
    """Let a Segment's row name a copy of its file; nothing to do if the row has gone meanwhile."""
    where = (segments.c.session_id == old.session_id, segments.c.first_block == old.first_block, segments.c.file == old.file)
    created = connection.execute(select(segments.c.created).where(*where)).scalar()
    if created is not None:
        connection.execute(segments.delete().where(*where))
        insert_segment(connection, new, float(created))


def unnamed(connection: Connection, files: Sequence[str]) -> list[str]:
    """Those of ``files`` that no row of any Session names."""
    return [file for file in files if connection.execute(select(segments.c.id).where(segments.c.file == file).limit(1)).first() is None]


def files_in(connection: Connection, folder: str) -> set[str]:
    """Files in a folder that some row names, as ``folder/name``."""
    where = (segments.c.file > f"{folder}/", segments.c.file < f"{folder}0")  # "0" follows "/"
    return {str(file) for file in connection.execute(select(segments.c.file).where(*where)).scalars()}


def put_tail_row(connection: Connection, session_id: int, tail: TailRow) -> None:
    """Insert or replace the tail's row."""
    delete_tail(connection, session_id)
    values = {
        "session_id": session_id,
        "tokens": tail.tokens,
        "first_block": tail.first_block,
        **contents_to_columns(tail.contents),
    }
    written(connection.execute(insert(tails).values(**values, seal=seal(*values.values()))).rowcount, "a tail")


def tail_row(connection: Connection, session_id: int) -> TailRow | None:
    """The tail's row; None if there is none, or if it is damaged."""
    row = connection.execute(select(tails).where(tails.c.session_id == session_id)).one_or_none()
    if row is None or row.seal != seal(row.session_id, row.tokens, row.first_block, *_content_fields(row)):
        return None
    if not are_counts((row.tokens, row.first_block, row.size)):
        return None
    try:
        return TailRow(row.tokens, row.first_block, contents_from_columns(row, pieces=None))
    except StoreCorrupt:
        return None


def delete_tail(connection: Connection, session_id: int) -> None:
    """Delete the tail's row."""
    connection.execute(tails.delete().where(tails.c.session_id == session_id))


def has_tail(connection: Connection, session_id: int) -> bool:
    """True if the Session has a tail row, whatever its state."""
    return connection.execute(select(tails.c.tokens).where(tails.c.session_id == session_id)).first() is not None


def own_bytes(connection: Connection, session_id: int) -> int:
    """Bytes of the files that a Session's own rows name, its tail with them."""
    held = connection.execute(select(func.sum(segments.c.size)).where(segments.c.session_id == session_id)).scalar()
    tail = connection.execute(select(tails.c.size).where(tails.c.session_id == session_id)).scalar()
    return count_or_zero(held) + count_or_zero(tail)


def _segment(row: Any) -> SegmentRow:
    if row.seal != seal(row.session_id, row.first_block, row.blocks, row.file, row.created, *_content_fields(row)):
        raise StoreCorrupt(f"the index row of the segment at block {row.first_block} is damaged; run verify, then repair the session")
    _file_names([row.file])
    if not (are_counts((row.session_id, row.first_block, row.size)) and isinstance(row.blocks, int) and 1 <= row.blocks <= SEGMENT_BLOCKS):
        raise StoreCorrupt(f"the index says that a segment holds {row.blocks} blocks from {row.first_block} on; run verify")
    contents = contents_from_columns(row, pieces=row.blocks)
    return SegmentRow(row.session_id, row.first_block, row.blocks, row.file, contents)


def _file_names(found: Iterable[object]) -> list[str]:
    """Files that rows name; StoreCorrupt for one that is no file of a Session's folder, since it might be anybody's."""
    files = []
    for file in found:
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise StoreCorrupt(f"the index names the file {file!r}, which cannot be a segment; restore the store from an export")
        files.append(file)
    return files


def _content_fields(row: Any) -> tuple[object, ...]:
    return row.size, row.header_bytes, row.header_sum, row.places, row.sums


def _created(connection: Connection, row: SegmentRow) -> float:
    where = (segments.c.session_id == row.session_id, segments.c.file == row.file)
    return float(connection.execute(select(func.min(segments.c.created)).where(*where)).scalar() or 0.0)
