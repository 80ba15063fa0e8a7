"""Every operation on files that the Store makes, in one object: the seam where tests inject faults.

Knows descriptors and paths; nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_NETWORK_MAGIC = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x01021997: "9p",
    0x65735546: "fuse",
    0x00C36400: "ceph",
    0x5346414F: "afs",
    0x0BD00BD0: "lustre",
}
_MAC_LOCAL_FLAG, _MAC_FLAGS_OFFSET = 0x1000, 64


class Files:
    """The operating system's file calls, one method each. Raises ``OSError`` as they do."""

    def open_for_reading(self, path: Path) -> tuple[int, int]:
        """Descriptor and size of a regular file; a link, a pipe or a folder is ``FileNotFoundError``."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FileNotFoundError(f"{path} is not a regular file")
        return fd, status.st_size

    def create(self, path: Path) -> int:
        """Descriptor of a new file, readable by its owner only."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open_lock(self, path: Path) -> int:
        """Descriptor of a lock file, made if it is not there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def try_lock(self, fd: int) -> bool:
        """Take the file's exclusive lock; False if another descriptor holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_file_at(self, fd: int, path: Path) -> bool:
        """True if ``path`` still names the file that was opened."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def exists(self, path: Path) -> bool:
        """True if there is anything at ``path``."""
        return os.path.lexists(path)

    def read_note(self, path: Path) -> str:
        """First 64 bytes of a small text file; empty if it cannot be read."""
        try:
            with open(path, "rb") as file:
                return file.read(64).decode("ascii", "replace")
        except OSError:
            return ""

    def write_note(self, fd: int, note: str) -> bool:
        """Replace a small file's text, not durably; returns whether it had one before."""
        had = os.fstat(fd).st_size > 0
        os.ftruncate(fd, 0)
        os.pwrite(fd, note.encode("ascii"), 0)
        return had

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Bytes read from ``offset`` into ``buffers``, one after the other; fewer than asked at the end of the file."""
        return os.preadv(fd, buffers, offset)

    def write(self, fd: int, data: Buffer) -> int:
        """Bytes written, possibly fewer than given."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Wait until the file's bytes are on the device."""
        if sys.platform == "darwin":  # fsync there stops at the drive's cache
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def fsync_folder(self, path: Path) -> None:
        """Wait until the folder's entries are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing what is there."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: Path) -> bool:
        """Make a folder, its owner's only; False if it is there."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return False
        return True

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)

    def names(self, path: Path) -> list[str]:
        """Names in a folder; none if it is not there."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def before_commit(self) -> None:
        """Called before every COMMIT of the index, whose own writes and syncs are SQLite's."""

    def network_kind(self, path: Path) -> str | None:
        """Name of the network file system ``path`` lies on, or None if it is local."""
        status = ctypes.create_string_buffer(4096)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.statfs(os.fsencode(path), status) != 0:
            raise OSError(ctypes.get_errno(), "statfs failed", str(path))
        if sys.platform == "darwin":
            flags = int.from_bytes(status.raw[_MAC_FLAGS_OFFSET : _MAC_FLAGS_OFFSET + 4], sys.byteorder)
            return None if flags & _MAC_LOCAL_FLAG else "network"
        return _NETWORK_MAGIC.get(int.from_bytes(status.raw[:4], sys.byteorder))


def write_atomically(files: Files, path: Path, pieces: Iterable[Buffer]) -> None:
    """Make ``path`` hold exactly ``pieces``, durably, or leave it as it was.

    Order: temporary file, fsync, rename, fsync of the folder. The temporary file is named ``<name>.<random>.tmp``.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = files.create(temporary)
        try:
            for piece in pieces:
                write_all(files, fd, memoryview(piece).cast("B"))
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.unlink(temporary)
        raise
    files.fsync_folder(path.parent)


def write_all(files: Files, fd: int, data: memoryview) -> None:
    """Write every byte."""
    while data:
        data = data[files.write(fd, data) :]


def make_folder_durably(files: Files, path: Path) -> None:
    """Make a folder and wait until its parent's entry for it is on the device; nothing to do if it is there."""
    if files.make_folder(path):
        files.fsync_folder(path.parent)
