"""The user's cache folder, and the hashes of files that are remembered there.

Knows files and nothing of what is in them. Whatever lies in the folder can be made again, so it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``agent-memory`` in the user's cache folder, which ``XDG_CACHE_HOME`` may name; not made by asking for it."""
    return platformdirs.user_cache_path("agent-memory", appauthor=False)


class FileHashes:
    """Hashes of files, each made once and again when its file's size, mtime or inode is another.

    Args:
        memo: the JSON file that remembers them. It is only a convenience: one that cannot be read or written is done without.
        make: makes the hash of a file.
    """

    def __init__(self, memo: Path, make: Callable[[Path], str]) -> None:
        self._memo, self._make = memo, make

    def of(self, files: Sequence[Path]) -> list[str]:
        """The hash of each file.

        Raises:
            OSError: a file cannot be read.
        """
        known = self._read()
        keys = [_file_key(file) for file in files]
        hashes = {key: known[key] if key in known else self._make(file) for key, file in zip(keys, files, strict=True)}
        if not hashes.keys() <= known.keys():
            self._write({**known, **hashes})
        return [hashes[key] for key in keys]

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._memo.read_text())
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}

    def _write(self, known: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self._memo.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._memo.parent)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(known, file)
                Path(name).replace(self._memo)
            except OSError:
                Path(name).unlink()


def _file_key(file: Path) -> str:
    facts = file.stat()
    return f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ino}"
