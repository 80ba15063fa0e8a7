"""The way from a model's settings to its Sessions: found at first use, and kept. Knows settings; nothing of messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_memory.history import Histories


class Connection:
    """The Histories of a model and its copies.

    They are kept because settings also come from the environment and the working folder, and those may change between two calls.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], tuple[Histories, str]] = {}

    def open(self, settings: Mapping[str, Any]) -> tuple[Histories, str]:
        """The Histories, and the namespace where none is named. Imports torch at first use.

        Raises:
            ConfigError: a setting that cannot be used.
        """
        key = os.getpid(), repr(settings)  # a forked process opens its own
        if key not in self._found:
            from agent_memory.opening import shared_histories

            self._found[key] = shared_histories(**settings)
        return self._found[key]

    def close(self, settings: Mapping[str, Any]) -> None:
        """Close the model of ``settings`` and its Sessions, if they were ever asked for here."""
        if found := self._found.get((os.getpid(), repr(settings))):
            found[0].close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        return self

    def __reduce__(self) -> tuple[type[Connection], tuple[()]]:
        return Connection, ()
