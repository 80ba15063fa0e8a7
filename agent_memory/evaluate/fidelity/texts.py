"""Texts of files: plain ones, and those of benchmarks with a text a line.

Knows files only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError

TEXT_KEYS = ("input", "context", "text")
"""Keys under which a line of a ``.jsonl`` file holds a text: L-Eval's, LongBench's and InfiniteBench's, and the usual one."""


def texts_of(file: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each text in a file: a text file is one, a ``.jsonl`` file has one a line.

    Raises:
        ConfigError: the file cannot be read, or a line of it has no text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read as UTF-8 text: {error}") from error
    if file.suffix != ".jsonl":
        yield file.stem, text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{file.stem} {number}", _text_of(line, f"{file}, line {number}")


def _text_of(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: {error.msg}; a .jsonl file holds one JSON object a line") from error
    found = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None) if isinstance(row, dict) else None
    if found is None:
        raise ConfigError(f"{place}: no text under any of the keys {', '.join(TEXT_KEYS)}")
    return str(found)
