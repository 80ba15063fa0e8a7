"""Reading one Session's timeline: turns, token ids, checked Blocks, the tail.

Knows where each part lies, through the lineage of forks; changes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agent_memory.errors import BlockDamaged, BlockMissing, SessionClosed, SessionNotFound, StoreCorrupt
from agent_memory.store import index, segment_index, turn_index
from agent_memory.store.database import Database
from agent_memory.store.files import Files
from agent_memory.store.index import OPEN_END, SessionRow, Span
from agent_memory.store.reader import ReadCounts, SegmentReader, runs_of
from agent_memory.store.rows import SegmentRows
from agent_memory.store.segments import SegmentRow, TensorBytes
from agent_memory.store.tables import LIVE
from agent_memory.store.threads import ReadThreads
from agent_memory.types import BLOCK_TOKENS, Turn

TAIL_FILE = "tail.safetensors"

_Result = TypeVar("_Result")


class View:
    """A Session's timeline for reading. Several threads may read at once.

    With ``follow`` it sees what another process appends meanwhile. Every method raises SessionClosed after ``close``, and in a
    forked child process.
    """

    def __init__(
        self, database: Database, files: Files, folder: Path, row: SessionRow, *, follow: bool, threads: ReadThreads | None = None
    ) -> None:
        self._database, self._files, self._folder, self._row = database, files, folder, row
        self._pid, self._follow = os.getpid(), follow
        self._closed = False
        self._mutex = threading.RLock()
        self._rows = SegmentRows()
        self._reader = SegmentReader(files, folder, row.label, threads=threads)
        self._spans: tuple[Span, ...] = ()
        self._stale = True
        self._turn_count = self._token_count = self._kv_blocks = 0
        self._chain = ""
        self._refresh()

    @property
    def name(self) -> str:
        """Name of the Session."""
        return self._row.name

    @property
    def namespace(self) -> str:
        """Namespace of the Session."""
        return self._row.namespace

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._closed

    @property
    def turn_count(self) -> int:
        """Turns in the timeline."""
        return self._current()._turn_count

    @property
    def token_count(self) -> int:
        """Tokens in the timeline."""
        return self._current()._token_count

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values lie in Segments, a multiple of 32; the tail is not counted."""
        return self._current()._kv_blocks * BLOCK_TOKENS

    @property
    def chain(self) -> str:
        """Chain hash of the last turn; empty if there is none."""
        return self._current()._chain

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """Turns ``[start, stop)``, clipped to those there are."""
        current = self._current()
        stop = current._turn_count if stop is None else min(stop, current._turn_count)
        with self._database.read("turns") as connection:
            return turn_index.read_turns(connection, self._spans, max(start, 0), stop)

    def turn_at(self, token: int) -> Turn:
        """The turn that holds the token of that index; IndexError if there is none."""
        self._current()
        with self._database.read("turns") as connection:
            return turn_index.turn_holding(connection, self._spans, token)

    def recalls(self) -> list[dict[str, Any]]:
        """``{"turn": index, "recall": ...}`` of every turn that recorded one."""
        self._current()
        with self._database.read("recalls") as connection:
            return turn_index.read_recalls(connection, self._spans)

    def tokens(self, start: int, stop: int) -> NDArray[np.int32]:
        """Ids of tokens ``[start, stop)``, int32, clipped to those there are."""
        current = self._current()
        start, stop = max(start, 0), min(stop, current._token_count)
        with self._database.read("token ids") as connection:
            pieces = turn_index.read_ids(connection, self._spans, start, stop)
        found = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        if len(found) != max(stop - start, 0):
            raise StoreCorrupt(f"token ids [{start}, {stop}) of session {self._row.label!r} are not all in the index; run verify")
        return found

    def segments(self) -> list[SegmentRow]:
        """Every Segment of the timeline, shared ones with it, clipped to the Blocks this Session sees."""
        self._current()
        with self._database.read("segments") as connection:
            return segment_index.segments_between(connection, self._spans, 0, OPEN_END)

    def segment_at(self, block: int) -> SegmentRow:
        """The Segment that holds a Block, clipped to the Blocks this Session sees. Raises BlockMissing if there is none."""
        self._current()
        return self._row_at(block)

    def owns(self, segment: SegmentRow) -> bool:
        """True if a Segment of this timeline is this Session's own, not one it shares with its parent."""
        return segment.session_id == self._row.id

    def read_block(self, tensor: str, block: int) -> bytes:
        """The bytes of one Block of one tensor, checked; BlockDamaged names session, Block and tensor. KeyError for an unknown tensor."""
        self._current()

        return bytes(self._with_row(block, lambda row: self._reader.piece(row, tensor, block - row.first_block)))

    def read_blocks(self, tensor: str, blocks: Sequence[int], out: memoryview | NDArray[Any]) -> list[int]:
        """Fill ``out`` (``[len(blocks), bytes of one Block]``, C-contiguous) with Blocks of one tensor.

        Returns the positions in ``blocks`` that could not be trusted; their rows of ``out`` are zeros.
        """
        self._current()
        if not blocks:
            return []
        flat = memoryview(out).cast("B")  # type: ignore[arg-type]  # numpy arrays have the buffer protocol
        size, rest = divmod(flat.nbytes, len(blocks))
        if rest:
            raise ValueError(f"out has {flat.nbytes} bytes, not a multiple of {len(blocks)} Blocks")
        targets = [flat[position * size : (position + 1) * size] for position in range(len(blocks))]
        damaged = []
        for position in self._not_read_together(tensor, blocks, targets):
            try:
                self._read_alone(tensor, blocks[position], targets[position])
            except BlockDamaged:
                targets[position][:] = bytes(size)
                damaged.append(position)
        return damaged

    def read_segment_tensor(self, tensor: str, first_block: int) -> NDArray[np.uint8]:
        """All bytes of one tensor of a Segment from ``first_block`` on, uint8, each Block checked."""
        self._current()
        row = self._row_at(first_block)
        blocks, size = range(first_block, row.stop), row.places[tensor].piece_bytes
        out = self._reader.room(row, len(blocks) * size, f"tensor {tensor!r} of block {first_block} of session {self._row.label!r}")
        targets = [memoryview(out)[position * size : (position + 1) * size] for position in range(len(blocks))]
        for position in self._not_read_together(tensor, blocks, targets):
            self._read_alone(tensor, blocks[position], targets[position])
        return np.frombuffer(out, np.uint8)

    @property
    def reads(self) -> ReadCounts:
        """What was read from Segments since the Session was opened."""
        return self._reader.counts

    def tail(self) -> tuple[int, dict[str, TensorBytes]] | None:
        """``(token count, tensors)`` written at the last clean close; None unless it continues exactly what is there now, whole."""
        current = self._current()
        with self._database.read("the tail") as connection:
            row = segment_index.tail_row(connection, self._row.id)
        if row is None or (row.tokens, row.first_block) != (current._token_count, current._kv_blocks):
            return None
        segment = SegmentRow(self._row.id, row.first_block, 1, f"{self._row.folder}/{TAIL_FILE}", row.contents)
        self._reader.forget(segment.file)  # it is replaced in place
        try:
            return row.tokens, {name: self._tail_tensor(segment, name) for name in segment.tensors}
        except BlockDamaged:
            return None

    def disk_bytes(self) -> int:
        """Bytes of this Session's own Segments, tail and token ids."""
        self._current()
        with self._database.read("sizes") as connection:
            return segment_index.own_bytes(connection, self._row.id) + turn_index.own_token_bytes(connection, self._row.id)

    def close(self) -> None:
        """Close the files that are open; closing twice is no error."""
        self._closed = True
        if os.getpid() == self._pid:
            self._reader.close()

    def _current(self) -> View:
        self._check_usable()
        if self._stale or self._follow:
            self._refresh()
        return self

    def _check_usable(self) -> None:
        if self._closed:
            raise SessionClosed(f"session {self._row.label!r} is closed; open it again")
        if os.getpid() != self._pid:
            raise SessionClosed(f"session {self._row.label!r} was opened by process {self._pid}; open the store again after a fork")

    def _refresh(self) -> None:
        with self._mutex, self._database.read("the session") as connection:
            row = index.find_by_id(connection, self._row.id)
            if row is None or row.state != LIVE:
                raise SessionNotFound(f"session {self._row.label!r} was deleted meanwhile")
            self._row = row
            self._spans = index.lineage(connection, self._row.id)
            last = turn_index.last_turn(connection, self._spans)
            self._kv_blocks = segment_index.kv_blocks(connection, self._spans)
            self._turn_count = 0 if last is None else last.index + 1
            self._token_count = 0 if last is None else last.stop
            self._chain = "" if last is None else last.chain
            self._forget_rows()
            self._stale = False

    def _forget_rows(self) -> None:
        with self._mutex:
            self._rows.clear()

    def _with_row(self, block: int, read: Callable[[SegmentRow], _Result]) -> _Result:
        """Read through the cached row of a Block; once more with a fresh row, as another process may have replaced the file."""
        cached = self._rows.get(block)
        if cached is not None:
            try:
                return read(cached)
            except BlockDamaged:
                self._reader.forget(cached.file)
                self._forget_rows()
        return read(self._load_row(block))

    def _row_at(self, block: int) -> SegmentRow:
        return self._rows.get(block) or self._load_row(block)

    def _not_read_together(self, tensor: str, blocks: Sequence[int], targets: Sequence[memoryview]) -> list[int]:
        """Read Blocks at once, neighbours together; the positions of those that have to be read one by one, to see what is wrong."""
        runs, order, nowhere = runs_of(blocks, targets, self._row_at)
        for run in runs:
            self._check_size(run.row, tensor, run.outs[0])
        whole = self._reader.read_runs(tensor, runs)
        return sorted([*nowhere, *(position for position, good in zip(order, whole, strict=True) if not good)])

    def _load_row(self, block: int) -> SegmentRow:
        with self._mutex, self._database.read("segments") as connection:
            row = segment_index.segment_holding(connection, self._spans, block)
            if row is None:  # a parent may have handed its rows over to us
                self._spans = index.lineage(connection, self._row.id)
                row = segment_index.segment_holding(connection, self._spans, block)
            if row is None:
                raise BlockMissing(f"block {block} of session {self._row.label!r} is in no segment; repair the session")
            self._rows.put(row)
            return row

    def _read_alone(self, tensor: str, block: int, target: memoryview) -> None:
        def read(row: SegmentRow) -> None:
            self._check_size(row, tensor, target)
            self._reader.read_piece(row, tensor, block - row.first_block, target)

        self._with_row(block, read)

    def _check_size(self, row: SegmentRow, tensor: str, target: memoryview) -> None:
        if target.nbytes != row.places[tensor].piece_bytes:
            raise ValueError(f"out has {target.nbytes} bytes a Block, tensor {tensor!r} has {row.places[tensor].piece_bytes}")

    def _tail_tensor(self, segment: SegmentRow, name: str) -> TensorBytes:
        place = segment.places[name]
        return TensorBytes(place.dtype, place.shape, self._reader.piece(segment, name, 0))
