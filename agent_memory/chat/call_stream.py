"""A reply's tool calls while they are being written: names and arguments piece by piece.

Knows calls that are written as ``{"name": .., "arguments": {..}}``, one after another; what they mean is read once they are whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class CallStream:
    """Cuts the text of calls into pieces of their arguments."""

    def __init__(self) -> None:
        self._held, self._index, self._depth, self._quoted, self._escaped = "", 0, 0, False, False
        self._inside = False

    def push(self, text: str) -> Iterator[tuple[int, str | None, str]]:
        """(number of the call, the tool's name with its first piece, piece of the arguments) of what is certain by now."""
        self._held += text
        while self._held:
            if not self._inside:
                head = _HEAD.match(self._held)
                if head is None:
                    return
                self._held, self._inside = self._held[head.end() :], True
                yield self._index, str(json.loads(head[1], strict=False)), ""
            stop = self._scan()
            if stop:
                yield self._index, None, self._held[:stop]
            self._held = self._held[stop:]
            end = self._held.find("}")  # of the call around its arguments
            if end < 0:
                return
            self._held, self._inside, self._index = self._held[end + 1 :], False, self._index + 1

    def _scan(self) -> int:
        """Characters that belong to the arguments, up to and with the brace that closes them."""
        if self._depth == 0 and not self._held.startswith("{"):
            return 0
        for at, character in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return len(self._held)
