"""Every operation on files that the Store makes, in one object: the seam where tests inject faults.

Knows descriptors and paths; nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    """The operating system's file calls, one method each. Raises ``OSError`` as they do.

    Below ``root``, once that is set, no link is followed, whatever part of a path it is, and no path leads out of it again.
    """

    root: Path | None = None

    def open_for_reading(self, path: Path) -> tuple[int, int]:
        """Descriptor and size of a regular file; a link, a pipe or a folder is ``FileNotFoundError``."""
        return self._open_regular(path, os.O_RDONLY)

    def create(self, path: Path) -> int:
        """Descriptor of a new file, readable by its owner only."""
        with self._reached(path) as (folder, name):
            return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def open_lock(self, path: Path) -> int:
        """Descriptor of a lock file, made if it is not there; a link, a pipe or a folder is ``FileNotFoundError``."""
        return self._open_regular(path, os.O_RDWR | os.O_CREAT)[0]

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
            with self._reached(path) as (folder, name):
                return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def exists(self, path: Path) -> bool:
        """True if there is anything at ``path``."""
        try:
            with self._reached(path) as (folder, name):
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read_note(self, path: Path) -> str:
        """First 64 bytes of a small text file; empty if it cannot be read."""
        try:
            fd, _ = self.open_for_reading(path)
        except OSError:
            return ""
        try:
            return os.read(fd, 64).decode("ascii", "replace")
        finally:
            os.close(fd)

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
        with self._folder(path) as fd:
            os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing what is there."""
        with self._reached(source) as (folder, name), self._reached(target) as (new_folder, new_name):
            os.replace(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already, or that only a link leads to, is no error."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._reached(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def make_folder(self, path: Path) -> bool:
        """Make a folder, its owner's only; False if it is there."""
        try:
            with self._reached(path) as (folder, name):
                os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            return False
        return True

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder; one that is gone already, or is a link, is no error."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._reached(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def names(self, path: Path) -> list[str]:
        """Names in a folder; none if it is not there, or is a link."""
        try:
            with self._folder(path) as fd:
                return sorted(os.listdir(fd))
        except (FileNotFoundError, NotADirectoryError):
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

    def _open_regular(self, path: Path, flags: int) -> tuple[int, int]:
        try:
            with self._reached(path) as (folder, name):
                fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path)) from None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
        return fd, status.st_size

    @contextlib.contextmanager
    def _folder(self, path: Path) -> Iterator[int]:
        """Descriptor of a folder."""
        with self._reached(path) as (folder, name):
            fd = _open_folder(name, folder)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _reached(self, path: Path) -> Iterator[tuple[int | None, str]]:
        """The folder that holds ``path`` and its name there, for calls that take a ``dir_fd``; below the root reached link by link.

        A link on the way is ``NotADirectoryError``, as it is for the operating system.
        """
        if self.root is None or path == self.root or not path.is_relative_to(self.root):
            yield None, str(path)
            return
        *folders, name = path.relative_to(self.root).parts
        if ".." in (*folders, name):
            raise NotADirectoryError(errno.ENOTDIR, "leads out of the store", str(path))
        fd = _open_folder(str(self.root), None)
        try:
            for part in folders:
                inner = _open_folder(part, fd)
                os.close(fd)
                fd = inner
            yield fd, name
        finally:
            os.close(fd)


def _open_folder(name: str, inside: int | None) -> int:
    """Descriptor of a folder; one inside another is not reached through a link."""
    nofollow = 0 if inside is None else os.O_NOFOLLOW
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow, dir_fd=inside)
    except OSError as error:
        if error.errno == errno.ELOOP:  # what a link is called differs by system
            raise NotADirectoryError(errno.ENOTDIR, "a link, not a folder", name) from None
        raise


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
