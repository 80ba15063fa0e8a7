"""How a failed system call or SQLite call becomes one of our errors, and what stops a Store.

Knows error numbers; nothing of what was being written.
"""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from agent_memory.errors import StoreCorrupt, StoreError, StoreFull, StoreStopped

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILURES = (DBAPIError, sqlite3.Error, OSError, UnicodeDecodeError)  # the last: a damaged name in SQLite's own error message
_QUOTES = re.compile(r"(Could not decode to UTF-8 column '\w*') with text")
_TOO_MANY = {errno.EMFILE, errno.ENFILE}
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_READONLY, _SQLITE_CORRUPT, _SQLITE_FULL, _SQLITE_CANTOPEN, _SQLITE_NOTADB = 5, 6, 8, 11, 13, 14, 26
_REFUSED = {18, 19, 20, 21, 25}  # too big, a constraint, a mismatch, misuse, out of range: what was to be written cannot be
_LINKS = {errno.ELOOP, errno.ENOTDIR}
_NOT_FATAL = {
    _SQLITE_BUSY: "the index is busy: another process is writing to it; try again",
    _SQLITE_LOCKED: "the index is locked; try again",
    _SQLITE_READONLY: "the index cannot be written: check its permissions",
    _SQLITE_CANTOPEN: "the index cannot be opened: check its permissions and the number of open files",
}


class Health:
    """Whether a Store may still write. The first write that fails to reach the disk stops it: it is never retried."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._stopped: str | None = None

    def check(self) -> None:
        """Raise StoreStopped if an earlier write failed."""
        if self._stopped is not None:
            raise StoreStopped(f"the store {self._place} stopped after a failed write ({self._stopped}); reopen it")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn failures inside into StoreFull (try again once there is room), StoreStopped, StoreCorrupt or StoreError."""
        self.check()
        try:
            yield
        except _FAILURES as error:
            raise self._write_error(what, error) from _told(error)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn failures inside into StoreCorrupt or StoreError."""
        try:
            yield
        except _FAILURES as error:
            raise self._read_error(what, error) from _told(error)

    def _write_error(self, what: str, error: Exception) -> StoreError:
        code, cause = _sqlite_code(error), _cause(error)
        if code == _SQLITE_FULL or (isinstance(error, OSError) and error.errno in NO_ROOM):
            return StoreFull(f"no room left for {what} in {self._place} ({cause}); nothing acknowledged is lost, make room and try again")
        known = self._known_error(what, error, code, cause)
        if known is not None:
            return known
        if code in _REFUSED or (isinstance(error, DBAPIError) and code is None):
            return StoreError(f"{what} in {self._place} was refused by the index ({cause}); nothing of it was written")
        self._stopped = f"{what}: {cause}"
        return StoreStopped(f"writing {what} in {self._place} failed ({cause}); it is not retried: reopen the store")

    def _read_error(self, what: str, error: Exception) -> StoreError:
        code, cause = _sqlite_code(error), _cause(error)
        known = self._known_error(what, error, code, cause)
        return known or StoreCorrupt(f"{what} in {self._place} cannot be read ({cause}); run verify, or restore it from an export")

    def _known_error(self, what: str, error: Exception, code: int | None, cause: str) -> StoreError | None:
        if code in (_SQLITE_CORRUPT, _SQLITE_NOTADB) or isinstance(error, UnicodeDecodeError):
            return StoreCorrupt(f"the index in {self._place} is damaged ({cause}); run verify, or restore it from an export")
        if code in _NOT_FATAL:
            return StoreError(f"{what} in {self._place}: {_NOT_FATAL[code]} ({cause})")
        if isinstance(error, OSError) and error.errno in _LINKS:
            return StoreCorrupt(f"{what} in {self._place}: a link or a file lies where a folder belongs; restore it from an export")
        if isinstance(error, OSError) and error.errno in _TOO_MANY:
            return StoreError(f"{what} in {self._place}: too many open files; close some, or raise the limit")
        return None


def _driver_error(error: Exception) -> Exception:
    original = error.orig if isinstance(error, DBAPIError) else None
    return original if isinstance(original, Exception) else error


def _sqlite_code(error: Exception) -> int | None:
    code = getattr(_driver_error(error), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _cause(error: Exception) -> str:
    driver = _driver_error(error)
    if isinstance(driver, OSError) and driver.strerror:
        return driver.strerror
    quoted = _QUOTES.match(str(driver))
    return str(driver) if quoted is None else quoted[1]


def _told(error: Exception) -> Exception | None:
    """An error as the cause of another one, unless it quotes what is in the index."""
    return None if _QUOTES.match(str(_driver_error(error))) else error
