"""What a run has done, kept in a file of JSON lines, so that a run that was stopped goes on where it was.

Knows lines and how the last one looks when a run was killed while writing it; does not know what they say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

START = b'{"key": '
"""How every line begins; it tells a line that was cut off from a file that is something else."""


class JsonLines:
    """Rows of a file, each written through at once. A last line that was cut off is dropped with the next row.

    Args:
        file: where they are kept; None keeps nothing.
        take: given every row that is there; raises ``ValueError``, ``TypeError`` or ``KeyError`` for what is none.
        otherwise: what is said of a line that is none, and what to do.

    Raises:
        ConfigError: the file is something else; it stays as it is.
    """

    def __init__(self, file: Path | None, take: Callable[[Any], None], otherwise: str) -> None:
        self.file, self._cut_at = file, None
        at = 0
        for number, line in enumerate(file.read_bytes().splitlines(keepends=True) if file is not None and file.exists() else (), 1):
            if not line.endswith(b"\n") and START.startswith(line[: len(START)]):
                self._cut_at = at
                break
            try:
                take(json.loads(line))
            except (ValueError, TypeError, KeyError):
                raise ConfigError(f"{file}, line {number}: {otherwise}") from None
            at += len(line)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, whose first item is ``key``."""
        if self.file is None:
            return
        if self._cut_at is not None:
            os.truncate(self.file, self._cut_at)
            self._cut_at = None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


class Measured:
    """What was measured, by what it is of, kept as lines ``{"key": {...}, field: ...}``.

    Args:
        file: where they are kept.
        field: name of what was measured.
        otherwise: see :class:`JsonLines`.
    """

    def __init__(self, file: Path, field: str, otherwise: str) -> None:
        self._field, self._rows = field, dict[tuple[Any, ...], Any]()
        self._lines = JsonLines(file, self._take, otherwise)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return tuple(key.values()) in self._rows

    def __getitem__(self, key: Mapping[str, Any]) -> Any:
        return self._rows[tuple(key.values())]

    def keep(self, key: Mapping[str, Any], value: Any) -> None:
        """Add a row."""
        self._rows[tuple(key.values())] = value
        self._lines.add({"key": dict(key), self._field: value})

    def _take(self, row: Any) -> None:
        self._rows[tuple(row["key"].values())] = row[self._field]
