"""The Store: where Sessions are opened, listed, checked, removed, and moved between machines.

Knows where everything lies and who may write; what is in a Session is the Timeline's.
"""

from __future__ import annotations

import json
import os
import secrets
import weakref
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from agent_memory.errors import SessionClosed, SessionExists, SessionNotFound, StoreCorrupt, StoreError, StoreFull, UnsupportedStore
from agent_memory.store import archive, index
from agent_memory.store.database import Database
from agent_memory.store.faults import Health
from agent_memory.store.files import Files, make_folder_durably
from agent_memory.store.gate import check_model
from agent_memory.store.index import DamagedRow, SessionRow
from agent_memory.store.listing import session_infos
from agent_memory.store.lock import SessionLock
from agent_memory.store.names import check_name, name_digest
from agent_memory.store.recovery import purge, recover, tidy_sessions_of
from agent_memory.store.tables import DELETING
from agent_memory.store.threads import ReadThreads
from agent_memory.store.timeline import Ground, Timeline, new_session
from agent_memory.store.verify import Progress, verify_store
from agent_memory.types import KVLayout, ModelId, SessionInfo, Turn, VerifyReport
from agent_memory.user_folders import expanded

INDEX_FILE = "index.sqlite"
_SQLITE_URL = "sqlite:///"


class Store:
    """Durable truth in one folder: an SQLite index and Segment files. Made by ``Store.open``; a context manager."""

    def __init__(self, root: Path, index_file: Path, files: Files, *, read_only: bool = False) -> None:
        self.root = files.root = root
        self._pid = os.getpid()
        self._closed, self._read_only = False, read_only
        self._files, self._health = files, Health(str(root))
        self._sessions_folder, self._locks_folder = root / "sessions", root / "locks"
        _check_index(index_file, files, self._sessions_folder, read_only)
        if not read_only:
            with self._health.writing("the store's folders"):
                above = [parent for parent in reversed(root.parents) if not parent.exists()]
                for folder in (*above, root, self._sessions_folder, self._locks_folder):
                    make_folder_durably(files, folder)
        self._database = Database(index_file, files, self._health, read_only=read_only)
        self._threads = ReadThreads()
        self._ground = Ground(self._database, files, self._sessions_folder, self._health, self._threads)
        self._timelines: list[Timeline] = []
        _let_go_in_children(self)

    @classmethod
    def open(cls, location: str | Path, *, files: Files | None = None, allow_network: bool = False, read_only: bool = False) -> Store:
        """Open the Store in a folder, or at ``sqlite:///file``; made on first use. Finishes what a killed process left half-done.

        With ``read_only`` nothing is made, finished, locked or written: for looking at a Store, also on a medium that cannot be written.

        Raises UnsupportedStore (another URL, a network file system unless ``allow_network``), StoreCorrupt, FormatTooNew; StoreError for
        a Store that is to be read and is not there.
        """
        root, index_file = _places(location)
        files = files or Files()
        kind = None if allow_network else files.network_kind(_nearest_folder(root))
        if kind is not None:
            raise UnsupportedStore(f"{root} lies on a network file system ({kind}), where locks and syncs fail; use a local disk")
        store = cls(root, index_file, files, read_only=read_only)
        try:
            if not read_only:
                store._recover()
        except BaseException:
            store.close()
            raise
        return store

    def session(
        self,
        name: str,
        namespace: str = "default",
        *,
        model: ModelId,
        layout: KVLayout,
        timeout: float = 0.0,
        create: bool = True,
        read_only: bool = False,
        conversation: str | None = None,
    ) -> Timeline:
        """Open a Session for writing (or reading only), made if it is not there and ``create``.

        Raises SessionBusy if another writer holds it for longer than ``timeout`` seconds, SessionNotFound, InvalidName, and
        ModelMismatch, with nothing read or written, if it was made with another model or layout. With ``conversation`` it is one of that
        conversation: SessionExists if it belongs to another one.
        """
        self._check_usable()
        check_name(namespace, "namespace")
        check_name(name)
        may_create = create and not read_only
        self._gate(name, namespace, model, layout, may_create)
        lock = None if read_only else self._acquire(name, namespace, timeout)
        try:
            row = self._gate(name, namespace, model, layout, may_create)
            if row is not None and conversation not in (None, row.conversation or row.name):
                raise SessionExists(f"session {name!r} is a branch of conversation {row.conversation!r}; choose another name")
            made = row or self._create(name, namespace, model, layout, None if conversation == name else conversation)
            timeline = Timeline(self._ground, made, lock, timeout)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        self._timelines = [other for other in self._timelines if not other.closed] + [timeline]
        return timeline

    def sessions(self, namespace: str | None = None, *, branches: bool = False) -> list[SessionInfo]:
        """Sessions by namespace and name; branches of conversations only with ``branches``. One that is damaged says so."""
        self._check_usable()
        with self._database.read("sessions") as connection:
            return session_infos(connection, namespace, branches=branches)

    def conversation(self, name: str, namespace: str = "default") -> list[str]:
        """Names of the Sessions of a conversation: its own, and its branches in the order in which they were made."""
        self._check_usable()
        with self._database.read("sessions") as connection:
            return index.names_in_conversation(connection, namespace, name)

    def turns(self, name: str, namespace: str = "default", start: int = 0, stop: int | None = None) -> list[Turn]:
        """Turns ``[start, stop)`` of a Session, which may be open elsewhere."""
        timeline = self.view(name, namespace)
        try:
            return timeline.turns(start, stop)
        finally:
            timeline.close()

    def recalls(self, name: str, namespace: str = "default") -> list[dict[str, Any]]:
        """``{"turn": index, "recall": ...}`` of every turn that recorded one."""
        timeline = self.view(name, namespace)
        try:
            return timeline.recalls()
        finally:
            timeline.close()

    def delete(self, name: str, namespace: str = "default", *, timeout: float = 0.0) -> None:
        """Remove a Session whole, but for what forks still use. Once begun it is finished, if need be at the next open."""
        self._check_usable()
        self._health.check()
        self._check_known(name, namespace)
        lock = self._acquire(name, namespace, timeout)
        try:
            with self._database.write("a removal") as connection:
                row = index.row_to_remove(connection, namespace, name, f"{name_digest(namespace, name)}-{secrets.token_hex(4)}")
                if row is None:
                    raise _not_found(name, namespace)
                index.change_session(connection, row, state=DELETING, name="")
            with self._health.writing("a removal"):
                purge(self._database, self._files, self._sessions_folder, row)
        finally:
            lock.release()

    def verify(self, name: str | None = None, namespace: str | None = None, progress: Progress | None = None) -> VerifyReport:
        """Check the index and every Block of one Session, one namespace, or all. Changes nothing."""
        self._check_usable()
        if name is not None:
            namespace = "default" if namespace is None else namespace
            self._check_known(name, namespace)

        def wanted(row: SessionRow | DamagedRow) -> bool:
            return (name is None or row.name == name) and (namespace is None or row.namespace == namespace)

        return verify_store(self._database, self._files, self._sessions_folder, wanted, progress)

    def export(self, name: str, namespace: str, path: Path) -> None:
        """Write a Session, with what it shares with others, as one archive file. Raises BlockDamaged if a Block of it is."""
        timeline = self.view(name, namespace)
        try:
            archive.write(timeline, expanded(Path(path)), self._files)
        finally:
            timeline.close()

    def import_(self, path: Path, *, name: str | None = None, namespace: str | None = None) -> SessionInfo:
        """Make a Session of an exported archive. Raises SessionExists, and StoreCorrupt for a damaged archive, with nothing written."""
        self._check_usable()
        self._health.check()
        found = archive.check(expanded(Path(path)))
        name = check_name(found.name if name is None else name)
        namespace = check_name(found.namespace if namespace is None else namespace, "namespace")
        lock = self._acquire(name, namespace, 0.0)
        clean = False
        try:
            values = new_session(namespace, name, found.model, found.layout)
            archive.read(self._ground, found, values)
            clean = True
        finally:
            if not clean:
                self._tidy(name, namespace)
            lock.release(clean=clean)
        return next(info for info in self.sessions(namespace, branches=True) if info.name == name)

    def close(self) -> None:
        """Close every Session and the index; closing twice is no error."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        for timeline in self._timelines:
            timeline.close()
        self._threads.close()
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise SessionClosed(f"the store {self.root} is closed; open it again")
        if os.getpid() != self._pid:
            raise SessionClosed(f"the store {self.root} was opened by process {self._pid}; open it again after a fork")

    def _recover(self) -> None:
        with suppress(StoreFull), self._health.writing("leftovers"):  # what is there can be read, room or not
            recover(self._database, self._files, self._sessions_folder, self._locks_folder)

    def _tidy(self, name: str, namespace: str) -> None:
        with self._health.reading("leftovers"):
            tidy_sessions_of(self._database, self._files, self._sessions_folder, name_digest(namespace, name))

    def _check_known(self, name: str, namespace: str) -> None:
        """Raise SessionNotFound unless there is a Session of that name, be its row damaged or not."""
        with self._database.read("sessions") as connection:
            if not index.is_known(connection, namespace, name):
                raise _not_found(name, namespace)

    def _find(self, name: str, namespace: str) -> SessionRow | None:
        with self._database.read("sessions") as connection:
            return index.find_session(connection, namespace, name)

    def _row(self, name: str, namespace: str) -> SessionRow:
        row = self._find(name, namespace)
        if row is None:
            raise _not_found(name, namespace)
        return row

    def _gate(self, name: str, namespace: str, model: ModelId, layout: KVLayout, may_create: bool) -> SessionRow | None:
        row = self._find(name, namespace) if may_create else self._row(name, namespace)
        if row is not None:
            check_model(row, model, layout)
        return row

    def view(self, name: str, namespace: str) -> Timeline:
        self._check_usable()
        return Timeline(self._ground, self._row(name, namespace), None, 0.0)

    def _create(self, name: str, namespace: str, model: ModelId, layout: KVLayout, conversation: str | None) -> SessionRow:
        values = new_session(namespace, name, json.dumps(model.to_dict()), json.dumps(asdict(layout)), conversation)
        with self._database.write("a new session") as connection:
            return index.insert_session(connection, values)

    def _acquire(self, name: str, namespace: str, timeout: float) -> SessionLock:
        self._health.check()
        if self._read_only:
            raise StoreError(f"session {name!r} cannot be written: the store {self.root} was opened to be read")
        lock = SessionLock(self._files, self._locks_folder / f"{name_digest(namespace, name)}.lock", f"{namespace}/{name}")
        with self._health.writing("a lock"):
            lock.acquire(timeout)
        if lock.unclean:
            self._tidy(name, namespace)
        return lock


def _places(location: str | Path) -> tuple[Path, Path]:
    """Folder of the Store and file of its index."""
    if isinstance(location, str) and "://" in location:
        if not location.startswith(_SQLITE_URL) or len(location) == len(_SQLITE_URL):
            raise UnsupportedStore(f"{location.split('://')[0]}:// is not supported; give a folder, or sqlite:///file")
        file = expanded(Path(location.removeprefix(_SQLITE_URL))).absolute()
        return file.parent, file
    root = expanded(Path(location)).absolute()
    if root.exists() and not root.is_dir():
        raise UnsupportedStore(f"{root} is a file; a store is a folder")
    return root, root / INDEX_FILE


def _check_index(index_file: Path, files: Files, sessions_folder: Path, read_only: bool) -> None:
    """An index that is gone is not taken for that of a new Store, where there are Segments it would have named."""
    if index_file.exists() and index_file.stat().st_size:
        return
    kept = sum(len(files.names(sessions_folder / folder)) for folder in files.names(sessions_folder))
    if kept:
        raise StoreCorrupt(
            f"the index {index_file} is gone or empty, but {kept} files of sessions are there; put the index back from a copy, "
            f"or move {sessions_folder} away to begin anew"
        )
    if read_only:
        raise StoreError(f"there is no store at {index_file.parent}; make one with agent-memory chat")


def _not_found(name: str, namespace: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session {name!r} in namespace {namespace!r}")


def _nearest_folder(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _let_go_in_children(store: Store) -> None:
    """A forked child must not keep a Session locked after its parent has died."""
    known = weakref.ref(store)

    def let_go() -> None:
        store = known()
        for timeline in store._timelines if store is not None else ():
            timeline.abandon()

    os.register_at_fork(after_in_child=let_go)
