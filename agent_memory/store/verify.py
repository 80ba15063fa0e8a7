"""Checking every byte that is in use: the index, its rows, and each Block. Changes nothing.

Knows what each kind of damage looks like; repairing it is for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection

from agent_memory.errors import BlockChecksum, BlockDamaged, BlockMissing, StoreError
from agent_memory.store import index, segment_index, turn_index
from agent_memory.store.contents import LAYER, is_finite, misfit
from agent_memory.store.database import Database, dangling, integrity
from agent_memory.store.files import Files
from agent_memory.store.index import OPEN_END, DamagedRow, SessionRow, Span
from agent_memory.store.reader import SegmentReader
from agent_memory.store.segments import SegmentRow
from agent_memory.store.timeline import layout_from_json, model_from_json
from agent_memory.store.view import TAIL_FILE
from agent_memory.types import BLOCK_TOKENS, Damage, KVLayout, VerifyReport

Progress = Callable[[int, int], None]
"""Called with the Blocks checked and the Blocks there are."""


def verify_store(
    database: Database, files: Files, folder: Path, wanted: Callable[[SessionRow | DamagedRow], bool], progress: Progress | None = None
) -> VerifyReport:
    """Check the index and every wanted Session; damage in a shared Block is told of each Session that uses it."""
    damage: list[Damage] = []
    rows: list[SessionRow | DamagedRow] = []
    for look in (integrity, dangling, _sessions):  # apart, so that one that cannot be done does not hide the rest
        try:
            with database.read("the index") as connection:
                for found in look(connection):
                    if isinstance(found, str):
                        damage.append(Damage("", None, None, f"index: {found}"))
                    else:
                        rows.append(found)
        except StoreError as error:
            damage.append(Damage("", None, None, f"index: {error}"))
    rows = [row for row in rows if wanted(row)]
    check = _Check(database, files, folder, progress)
    for row in rows:
        if isinstance(row, DamagedRow):
            damage.append(Damage(f"{row.namespace}/{row.name}", None, None, f"index: {row.why}"))
            continue
        try:
            damage += check.session(row)
        except StoreError as error:
            damage.append(Damage(row.label, None, None, f"index: {error}"))
    return VerifyReport(len(rows), check.blocks, tuple(damage))


def _sessions(connection: Connection) -> list[SessionRow | DamagedRow]:
    return index.checked_sessions(connection, *index.not_removed())


class _Check:
    def __init__(self, database: Database, files: Files, folder: Path, progress: Progress | None) -> None:
        self._database, self._files, self._folder, self._progress = database, files, folder, progress
        self._seen: set[tuple[int, int]] = set()

    @property
    def blocks(self) -> int:
        """Distinct Blocks checked."""
        return len(self._seen)

    def session(self, row: SessionRow) -> list[Damage]:
        with self._database.read("the session") as connection:
            spans = index.lineage(connection, row.id)
            bad_turns = list(_bad_turns(connection, row, spans))
            tail = segment_index.tail_row(connection, row.id)
            if tail is None and segment_index.has_tail(connection, row.id):
                bad_turns.append(Damage(row.label, None, None, "tail: its row is damaged"))
            found = list(segment_index.checked_segments(connection, spans))
        damage = [*bad_turns]
        model_from_json(row.model)
        layout = layout_from_json(row.layout)
        total = sum(segment.blocks for segment in found if isinstance(segment, SegmentRow))
        reader = SegmentReader(self._files, self._folder, row.label)
        try:
            expected = 0
            for done, segment in enumerate(found):
                if isinstance(segment, int):
                    damage.append(Damage(row.label, segment, None, "index: the row of its segment is damaged"))
                    continue
                if segment.first_block != expected:
                    damage.append(Damage(row.label, expected, None, "missing: no segment holds it"))
                damage += self._segment(row, layout, spans, segment, reader)
                expected = segment.stop
                if self._progress is not None:
                    self._progress(min(expected, total), max(total, done))
            if tail is not None:
                segment = SegmentRow(row.id, tail.first_block, 1, f"{row.folder}/{TAIL_FILE}", tail.contents)
                damage += self._tail(row, layout, segment, reader, tail.tokens == self._tokens(spans))
        finally:
            reader.close()
        return damage

    def _segment(
        self, row: SessionRow, layout: KVLayout, spans: tuple[Span, ...], segment: SegmentRow, reader: SegmentReader
    ) -> Iterator[Damage]:
        if self._was_replaced(spans, segment):
            return
        if wrong := misfit(segment.places, layout, segment.blocks):
            yield Damage(row.label, segment.first_block, None, f"contents: {wrong}", self._turns(spans, segment.first_block, segment.stop))
        self._seen.update((segment.session_id, block) for block in range(segment.first_block, segment.stop))
        kind = _header_kind(segment, reader)
        if kind is not None:
            yield Damage(row.label, segment.first_block, None, kind, self._turns(spans, segment.first_block, segment.stop))
        for name, place in segment.places.items():
            layer = LAYER.match(name)
            for piece in range(segment.blocks):
                try:
                    held = reader.piece(segment, name, piece)
                    if name.endswith(".kv") and not is_finite(place.dtype, held):
                        raise BlockChecksum("not finite")
                except BlockDamaged as error:
                    block = segment.first_block + piece
                    number = None if layer is None else int(layer[1])
                    yield Damage(row.label, block, number, _kind(error), self._turns(spans, block, block + 1))

    def _tail(self, row: SessionRow, layout: KVLayout, segment: SegmentRow, reader: SegmentReader, in_use: bool) -> Iterator[Damage]:
        if not in_use:
            return
        if wrong := misfit(segment.places, layout, None):
            yield Damage(row.label, None, None, f"tail: {wrong}")
        kind = _header_kind(segment, reader)
        if kind is not None:
            yield Damage(row.label, None, None, f"tail: {kind}")
        for name in segment.places:
            try:
                reader.piece(segment, name, 0)
            except BlockDamaged as error:
                yield Damage(row.label, None, None, f"tail: {_kind(error)}")

    def _was_replaced(self, spans: tuple[Span, ...], segment: SegmentRow) -> bool:
        """True if a live writer has put a longer Segment in place of this one since we looked."""
        if self._files.exists(self._folder / segment.file):
            return False
        with self._database.read("segments") as connection:
            now = segment_index.segment_holding(connection, spans, segment.first_block)
        return now is not None and now.file != segment.file

    def _turns(self, spans: tuple[Span, ...], first: int, stop: int) -> tuple[int, ...]:
        with self._database.read("turns") as connection:
            return tuple(turn_index.turns_between(connection, spans, first * BLOCK_TOKENS, stop * BLOCK_TOKENS))

    def _tokens(self, spans: tuple[Span, ...]) -> int:
        with self._database.read("turns") as connection:
            last = turn_index.last_turn(connection, spans)
        return 0 if last is None else last.stop


def _bad_turns(connection: Connection, row: SessionRow, spans: tuple[Span, ...]) -> Iterator[Damage]:
    next_turn = next_token = 0
    for span in spans:
        for turn in turn_index.raw_turns(connection, span, 0, OPEN_END):
            if not turn_index.turn_is_whole(turn):
                yield Damage(row.label, None, None, "turn: its row is damaged", (turn.idx,))
                next_turn += 1
                continue
            elif (turn.idx, turn.start) != (next_turn, next_token):
                yield Damage(row.label, None, None, "turn: the one before it is missing or damaged", (turn.idx,))
            next_turn, next_token = turn.idx + 1, turn.start + turn.tokens
    wanted = spans[-1].turns[0]
    if next_turn < wanted:
        yield Damage(row.label, None, None, f"turn: {wanted - next_turn} turns before the fork are missing")
    elif next_turn < row.turns:
        yield Damage(row.label, None, None, f"turn: the last {row.turns - next_turn} of {row.turns} are missing")


def _header_kind(segment: SegmentRow, reader: SegmentReader) -> str | None:
    try:
        return None if reader.header_is_whole(segment) else "header"
    except BlockDamaged as error:
        return _kind(error)


def _kind(error: BlockDamaged) -> str:
    if isinstance(error, BlockChecksum):
        return "checksum"
    return "missing" if isinstance(error, BlockMissing) else "short"
