"""One writer per Session: an operating-system lock on a file, freed at once when its holder dies.

Knows descriptors and process ids; nothing of what the lock protects.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from agent_memory.errors import SessionBusy, StoreCorrupt
from agent_memory.store.files import Files

_BRIEF_SECONDS = 5.0
_RECOVERING = "recovering"


class SessionLock:
    """The exclusive lock of one Session, held from ``acquire`` to ``release``.

    The lock file is there while the lock is held, or was held by a process that died: a clean release removes it. So a file
    that is there and free names a Session to be tidied (``unclean``).
    """

    def __init__(self, files: Files, path: Path, session: str) -> None:
        self._files, self._path, self._session = files, path, session
        self._fd: int | None = None
        self.unclean = False

    def acquire(self, timeout: float = 0.0, *, recovering: bool = False) -> None:
        """Take the lock, waiting at most ``timeout`` seconds; SessionBusy names the holder.

        A process that is only tidying up after a crash (``recovering``) is waited for a little longer.
        """
        started = time.monotonic()
        pause = 0.001
        while not self._try_acquire(recovering):
            holder = self._files.read_note(self._path)
            brief = not holder or holder.endswith(_RECOVERING)  # it has only just begun, or will soon be done
            if time.monotonic() - started >= (max(timeout, _BRIEF_SECONDS) if brief else timeout):
                raise SessionBusy(self._session, holder or "another process")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def release(self, *, clean: bool = True) -> None:
        """Free the lock and remove its file (unless something is left to be tidied); nothing to do if it is not held."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if clean:
                with contextlib.suppress(OSError):
                    self._files.unlink(self._path)
        finally:
            self._files.close(fd)

    def abandon(self) -> None:
        """Close a forked child's copy of the descriptor, which leaves the parent's lock alone."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _try_acquire(self, recovering: bool) -> bool:
        try:
            fd = self._files.open_lock(self._path)
        except FileNotFoundError:
            raise StoreCorrupt(
                f"{self._path} is no lock file, or its folder is gone; remove what lies there and open the store again"
            ) from None
        try:
            if not self._files.try_lock(fd) or not self._files.is_file_at(fd, self._path):  # removed since we opened it
                os.close(fd)
                return False
            self.unclean = self._files.write_note(fd, f"process {os.getpid()}{' ' + _RECOVERING if recovering else ''}")
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        self._fd = fd
        return True
