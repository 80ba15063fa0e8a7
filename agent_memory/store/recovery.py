"""Tidying up: files no row names, and removals that were killed half-way.

Knows which rows keep a file alive. Everything here can be killed at any point and run again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent_memory.errors import BlockDamaged, SessionBusy, StoreCorrupt
from agent_memory.store import index, segment_index, turn_index
from agent_memory.store.database import Database
from agent_memory.store.files import Files, write_atomically
from agent_memory.store.index import OPEN_END, SessionRow, Span
from agent_memory.store.lock import SessionLock
from agent_memory.store.names import FOLDER, LOCK
from agent_memory.store.reader import SegmentReader
from agent_memory.store.segments import SegmentRow, TensorBytes, encode
from agent_memory.store.tables import DELETING, KEPT
from agent_memory.store.view import TAIL_FILE


def tidy_folder(database: Database, files: Files, root: Path, row: SessionRow) -> None:
    """Remove the files of a Session's folder that no row names. The caller holds the Session's lock, or it is being deleted."""
    with database.read("segments") as connection:
        named = segment_index.files_in(connection, row.folder)
        if segment_index.has_tail(connection, row.id):
            named.add(f"{row.folder}/{TAIL_FILE}")
    _unlink_all(files, root, (f"{row.folder}/{name}" for name in files.names(root / row.folder)), named)


def recover(database: Database, files: Files, sessions_folder: Path, locks_folder: Path) -> None:
    """Finish removals, and tidy the Sessions whose writer died: those with a lock file that nobody holds."""
    with database.read("sessions") as connection:
        deleting = index.deleting_sessions(connection)
    for row in deleting:
        with suppress(StoreCorrupt):  # what cannot be removed is left to verify, and keeps nobody out
            purge(database, files, sessions_folder, row)
    for name in filter(LOCK.fullmatch, files.names(locks_folder)):
        lock = SessionLock(files, locks_folder / name, name)
        try:
            lock.acquire(recovering=True)
        except (SessionBusy, StoreCorrupt):  # held by a live process; or no lock file at all
            continue
        try:
            tidy_sessions_of(database, files, sessions_folder, Path(name).stem)
        except BaseException:
            lock.release(clean=False)
            raise
        lock.release()


def tidy_sessions_of(database: Database, files: Files, root: Path, digest: str) -> None:
    """Tidy the folders of every Session, live or not, of the name with that digest."""
    with database.read("sessions") as connection:
        known = {row.folder: row for row in index.sessions_in_folders(connection, digest)}
    for folder in files.names(root):
        if not (folder.startswith(f"{digest}-") and FOLDER.fullmatch(folder)):
            continue
        if folder in known:
            tidy_folder(database, files, root, known[folder])
        else:
            _unlink_all(files, root, (f"{folder}/{name}" for name in files.names(root / folder)), set())
            files.remove_folder(root / folder)


def purge(database: Database, files: Files, root: Path, row: SessionRow) -> None:
    """Remove a Session whose removal has begun: all that no fork uses."""
    while True:
        with database.read("a removal") as connection:
            forks = index.children(connection, row.id)
            # Of a fork whose row is damaged nobody knows what it needs: all of it stays until that is deleted too.
            kept_turns = max((fork.fork_turns if isinstance(fork, SessionRow) else OPEN_END for fork in forks), default=0)
            kept_blocks = max((fork.fork_blocks if isinstance(fork, SessionRow) else OPEN_END for fork in forks), default=0)
            unused = segment_index.files_used_only_from(connection, row.id, kept_blocks)
        _unlink_all(files, root, unused, set())  # before their rows: some lie in a parent's folder, where nobody would look for them
        with database.write("a removal") as connection:
            turn_index.delete_turns(connection, row.id, kept_turns)
            segment_index.trim(connection, row.id, kept_blocks)
            segment_index.delete_tail(connection, row.id)
        if forks:
            _shorten_last_file(database, files, root, row)
        tidy_folder(database, files, root, row)
        if not files.names(root / row.folder):
            files.remove_folder(root / row.folder)
        parent = _settle(database, row)
        if parent is None:
            return
        row = parent


def _settle(database: Database, row: SessionRow) -> SessionRow | None:
    """End a removal; returns the parent if it was only kept for this Session."""
    with database.write("a removal") as connection:
        if index.children(connection, row.id):
            index.change_session(connection, index.session_by_id(connection, row.id), state=KEPT)
            return None
        index.remove_session(connection, row.id)
        if row.parent_id is None:
            return None
        try:
            parent = index.session_by_id(connection, row.parent_id)
        except StoreCorrupt:
            return None  # what is left of it cannot be trusted
        if parent.state != KEPT:
            return None
        index.change_session(connection, parent, state=DELETING)
        return index.session_by_id(connection, parent.id)


def _shorten_last_file(database: Database, files: Files, root: Path, row: SessionRow) -> None:
    """Copy the Segment a fork shares only in part, so that nothing of the rest stays on disk once the folder is tidied."""
    own = (Span(row.id, (0, OPEN_END), (0, OPEN_END), (0, OPEN_END)),)
    with database.read("segments") as connection:
        kept = segment_index.segments_between(connection, own, 0, OPEN_END)
    if not kept or _is_whole_file(kept[-1]) or not kept[-1].file.startswith(f"{row.folder}/"):
        return
    old = kept[-1]
    try:
        tensors = _read_all(files, root, row, old)
    except BlockDamaged:
        return  # what cannot be trusted stays as it is, to be found by verify
    pieces, contents = encode(tensors, pieces=old.blocks)
    path = root / row.folder / f"{old.first_block:012d}-{secrets.token_hex(4)}.safetensors"
    write_atomically(files, path, pieces)
    new = SegmentRow(row.id, old.first_block, old.blocks, f"{row.folder}/{path.name}", contents)
    with database.write("a shortened segment") as connection:
        segment_index.replace_file(connection, old, new)


def _read_all(files: Files, root: Path, session: SessionRow, segment: SegmentRow) -> dict[str, TensorBytes]:
    reader = SegmentReader(files, root, session.label)
    try:
        return {name: _read_tensor(reader, segment, name) for name in segment.tensors}
    finally:
        reader.close()


def _read_tensor(reader: SegmentReader, segment: SegmentRow, name: str) -> TensorBytes:
    place = segment.places[name]
    out = bytearray(place.piece_bytes * segment.blocks)
    for piece in range(segment.blocks):
        reader.read_piece(segment, name, piece, memoryview(out)[piece * place.piece_bytes : (piece + 1) * place.piece_bytes])
    return TensorBytes(place.dtype, place.shape, out)


def _is_whole_file(segment: SegmentRow) -> bool:
    held = sum(place.piece_bytes * segment.blocks for place in segment.places.values())
    return segment.contents.header_bytes + held == segment.contents.size


def _unlink_all(files: Files, root: Path, names: Iterable[str], keep: set[str]) -> None:
    for name in names:
        if name not in keep:
            files.unlink(root / name)
