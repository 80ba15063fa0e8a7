"""Blocks read back from Segment files, each checked before anybody sees it.

Knows descriptors, offsets and checksums; nothing of the index but the rows it is handed. The row is trusted, the file is not: its
header is never parsed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent_memory.errors import BlockChecksum, BlockDamaged, BlockMissing, BlockShort, SessionClosed
from agent_memory.store.files import Files
from agent_memory.store.segments import SegmentRow, checksum, signed_checksum
from agent_memory.store.threads import ReadThreads

WAKE_SECONDS = 50e-6
"""What waking other threads costs. Only where the first read took longer, since its bytes were not in memory, do they make the others
(measured: 32 KiB from the page cache 13 us, from the disk 110 us; of 16 such reads 220 us and 1.7 ms alone, 0.9 ms shared)."""


@dataclass(slots=True)
class Run:
    """Blocks of one tensor that follow each other in one file, from ``piece`` of ``row`` on; each of ``outs`` takes the bytes of one."""

    row: SegmentRow
    piece: int
    outs: list[memoryview]


@dataclass(slots=True)
class ReadCounts:
    """What was read: ``reads`` calls of the operating system, ``bytes`` they gave, ``blocks`` (of one tensor each) found whole."""

    reads: int = 0
    bytes: int = 0
    blocks: int = 0


@dataclass(slots=True)
class _OpenFile:
    fd: int
    size: int
    readers: int = 0
    let_go: bool = False


class SegmentReader:
    """Reads Blocks with pread and checks each; keeps a few files open. Safe to use from several threads.

    Args:
        files: the operating system.
        root: the folder that rows' file names are relative to.
        session: its name, for messages.
        threads: for reads worth sharing out; without them the caller makes all of them.
        open_files: files that stay open.
    """

    def __init__(self, files: Files, root: Path, session: str, *, threads: ReadThreads | None = None, open_files: int = 32) -> None:
        self._files, self._root, self._session, self._threads, self._limit = files, root, session, threads, open_files
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._mutex, self._closed = threading.Lock(), False
        self.counts = ReadCounts()

    def piece(self, row: SegmentRow, tensor: str, piece: int) -> bytearray:
        """The checked bytes of one Block of the tensor, or BlockDamaged. No more is allocated than its file holds."""
        out = self.room(row, row.places[tensor].piece_bytes, self._where(row, tensor, piece))
        self.read_piece(row, tensor, piece, memoryview(out))
        return out

    def read_piece(self, row: SegmentRow, tensor: str, piece: int, out: memoryview) -> None:
        """Fill ``out`` (exactly one Block of the tensor) with checked bytes, or raise BlockDamaged; ``piece`` 0 is the row's first."""
        place = row.places[tensor]
        offset = place.offset + piece * place.piece_bytes
        where = self._where(row, tensor, piece)
        with self._opened(row.file, where) as file:
            if offset + place.piece_bytes > file.size:
                raise BlockShort(
                    f"{where}: its file has {file.size} bytes, the block ends at {offset + place.piece_bytes}; repair the session"
                )
            self._fill(file.fd, offset, [out], where)
        if checksum(out) != int(place.sums[piece]):
            raise BlockChecksum(f"{where}: its bytes are not the ones that were written; repair the session")
        self._count(blocks=1)

    def read_runs(self, tensor: str, runs: Sequence[Run]) -> list[bool]:
        """Fill the buffers of Blocks of one tensor, each run with one read.

        Returns for each buffer whether its Block is whole. Why one is not, ``read_piece`` says; it holds nothing that can be trusted.
        """
        calls = [partial(self._read_run, tensor, run) for run in runs]
        began = time.perf_counter()
        found = [call() for call in calls[:1]]
        rest = calls[1:]
        if self._threads is not None and time.perf_counter() - began >= WAKE_SECONDS:
            found += self._threads.run(rest)
        else:
            found += [call() for call in rest]
        return [whole for run in found for whole in run]

    def header_is_whole(self, row: SegmentRow) -> bool:
        """True if the file has the size and the header it was written with; raises BlockDamaged if they cannot be read."""
        where = f"the file of block {row.first_block} of session {self._session!r}"
        with self._opened(row.file, where) as file:
            if file.size != row.contents.size:
                return False
            head = bytearray(row.contents.header_bytes)
            self._fill(file.fd, 0, [memoryview(head)], where)
            return signed_checksum(head) == row.contents.header_sum

    def room(self, row: SegmentRow, size: int, where: str) -> bytearray:
        """A buffer of so many bytes; BlockDamaged, and nothing is allocated, unless a Segment's file holds as many."""
        with self._opened(row.file, where) as file:
            if size > file.size:
                raise BlockShort(f"{where}: it has {size} bytes, its file {file.size}; repair the session")
        return bytearray(size)

    def forget(self, file: str) -> None:
        """Close the file if it is open; whoever is reading it finishes first."""
        with self._mutex:
            entry = self._open.pop(file, None)
            if entry is not None:
                self._let_go(entry)

    def close(self) -> None:
        """Close every file; the ones being read when their readers are done."""
        with self._mutex:
            self._closed = True
            while self._open:
                self._let_go(self._open.popitem()[1])

    def _where(self, row: SegmentRow, tensor: str, piece: int) -> str:
        return f"block {row.first_block + piece}, tensor {tensor!r} of session {self._session!r}"

    def _read_run(self, tensor: str, run: Run) -> list[bool]:
        place, count = run.row.places[tensor], len(run.outs)
        where = f"blocks from {run.row.first_block + run.piece} on, tensor {tensor!r} of session {self._session!r}"
        try:
            with self._opened(run.row.file, where) as file:
                self._fill(file.fd, place.offset + run.piece * place.piece_bytes, run.outs, where)
        except BlockDamaged:
            return [False] * count
        sums = place.sums[run.piece : run.piece + count].tolist()
        whole = [checksum(out) == wanted for out, wanted in zip(run.outs, sums, strict=True)]
        self._count(blocks=sum(whole))
        return whole

    def _fill(self, fd: int, offset: int, buffers: list[memoryview], where: str) -> None:
        done, total = 0, sum(buffer.nbytes for buffer in buffers)
        while done < total:
            try:
                count = self._files.pread_into(fd, buffers, offset + done)
            except OSError as error:
                raise BlockMissing(f"{where}: cannot be read ({error.strerror}); repair the session") from error
            self._count(reads=1, size=count)
            if count == 0:
                raise BlockShort(f"{where}: its file ended after {done} of {total} bytes; repair the session")
            done += count
            buffers = _after(buffers, count)

    def _count(self, *, reads: int = 0, size: int = 0, blocks: int = 0) -> None:
        with self._mutex:
            self.counts.reads += reads
            self.counts.bytes += size
            self.counts.blocks += blocks

    @contextmanager
    def _opened(self, file: str, where: str) -> Iterator[_OpenFile]:
        """The file, which stays open until the ``with`` block ends, whoever forgets it meanwhile."""
        with self._mutex:
            entry = self._entry(file, where)
            entry.readers += 1
        try:
            yield entry
        finally:
            with self._mutex:
                entry.readers -= 1
                if entry.let_go:
                    self._let_go(entry)

    def _entry(self, file: str, where: str) -> _OpenFile:
        if self._closed:
            raise SessionClosed(f"session {self._session!r} is closed; open it again")
        entry = self._open.get(file)
        if entry is not None:
            self._open.move_to_end(file)
            return entry
        while len(self._open) >= self._limit:
            self._let_go(self._open.popitem(last=False)[1])
        try:
            entry = _OpenFile(*self._files.open_for_reading(self._root / file))
        except OSError as error:
            raise BlockMissing(f"{where}: its file {file} cannot be opened ({error.strerror or error}); repair the session") from error
        self._open[file] = entry
        return entry

    def _let_go(self, entry: _OpenFile) -> None:
        entry.let_go = True
        if not entry.readers:
            self._files.close(entry.fd)


def runs_of(
    blocks: Sequence[int], outs: Sequence[memoryview], row_at: Callable[[int], SegmentRow]
) -> tuple[list[Run], list[int], list[int]]:
    """Blocks, in any order, as runs; the positions of those in the runs, in their order; and of those that ``row_at`` found missing."""
    runs, order, nowhere = list[Run](), list[int](), list[int]()
    after, stop = -1, -1  # the Block after the last run, and the end of its row
    for position in sorted(range(len(blocks)), key=blocks.__getitem__):
        block = blocks[position]
        if block == after < stop:
            runs[-1].outs.append(outs[position])
        else:
            try:
                row = row_at(block)
            except BlockMissing:
                nowhere.append(position)
                continue
            runs.append(Run(row, block - row.first_block, [outs[position]]))
            stop = row.stop
        order.append(position)
        after = block + 1
    return runs, order, nowhere


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of buffers after their first ``count`` bytes."""
    while buffers and count >= buffers[0].nbytes:
        count -= buffers[0].nbytes
        buffers = buffers[1:]
    return [buffers[0][count:], *buffers[1:]] if buffers else []
