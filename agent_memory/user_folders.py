"""The user's own folders: that of caches, and what ``~`` stands for.

Knows paths and nothing of what is in them. Whatever lies in the cache folder can be made again, so it may be deleted at any time.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

from agent_memory.errors import ConfigError


def cache_folder() -> Path:
    """``agent-memory`` in the user's cache folder, which ``XDG_CACHE_HOME`` may name; not made by asking for it.

    Raises:
        ConfigError: the user has no home folder, as user ids that a container was started with, and no variable names a folder.
    """
    try:
        folder = platformdirs.user_cache_path("agent-memory", appauthor=False)
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():  # what some versions make of a home that is not known
        raise ConfigError(
            "there is no cache folder: this user has no home folder; set XDG_CACHE_HOME (or HOME) to a folder it may write to"
        )
    return folder


def expanded(path: Path) -> Path:
    """``path`` with the home folder in the place of a leading ``~``.

    Raises:
        ConfigError: whose home folder that would be is not known.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{str(path)!r} cannot be found: there is no such home folder; write the whole path, or set HOME") from None
