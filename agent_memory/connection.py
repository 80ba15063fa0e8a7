"""The way from a wrapper's settings to its Sessions: found at first use, and kept. Knows settings; nothing of messages.

Importing it loads no torch; opening does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .store.names import check_name

if TYPE_CHECKING:
    from .history import Histories


def session_named(given: str) -> str:
    """``given`` unchanged.

    Raises:
        InvalidName: it cannot be the name of a Session; an empty one cannot.
    """
    return check_name(given)


def tenant_named(given: str | None, own: str) -> str:
    """The namespace that is meant: ``given``, or ``own`` where none is given.

    Raises:
        InvalidName: ``given`` cannot be a namespace; an empty one cannot, and is no other word for the default.
    """
    return own if given is None else check_name(given, "namespace")


class Connection:
    """The Histories of a wrapper, the same for all its copies with the same settings.

    They are kept because settings also come from the environment and the working folder, and those may change between two calls.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], tuple[Histories, str]] = {}

    def open(self, settings: Mapping[str, Any]) -> tuple[Histories, str]:
        """The Histories, and the namespace where none is named; a forked process opens its own. Imports torch at first use.

        Raises:
            ConfigError: a setting that cannot be used.
        """
        key = os.getpid(), repr(settings)
        if key not in self._found:
            from .opening import shared_histories

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
