"""Sessions kept open between the requests of a client, and whose turn it is in each conversation.

Knows locks and Sessions; nothing of messages. A conversation is a Session with its branches: requests to one wait for each other,
requests to different ones do not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from agent_memory.errors import SessionBusy
from agent_memory.session import Session

Key = tuple[str, str]
"""Namespace and name, of a Session or of a conversation."""

CHECKED_EVERY = 0.05
"""Seconds between two looks at whether the one who waits has gone."""


class OpenSessions:
    """The open Sessions of one client.

    Args:
        keep: Sessions that stay open; of more, those used longest ago are closed.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._mutex = threading.RLock()
        self._sessions: OrderedDict[Key, tuple[Key, Session]] = OrderedDict()
        self._locks: dict[Key, threading.Lock] = {}
        self._holders: dict[Key, int] = {}

    @contextmanager
    def hold(self, conversation: Key, gone: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for one's turn; False if ``gone`` says so meanwhile, and then there is no turn.

        Raises:
            SessionBusy: this thread itself is in the middle of a reply of that conversation; waiting would never end.
        """
        with self._mutex:
            lock = self._locks.setdefault(conversation, threading.Lock())
            if self._holders.get(conversation) == threading.get_ident():
                raise SessionBusy("/".join(conversation), "a reply that this thread is still streaming (read it to its end first)")
        while not lock.acquire(timeout=CHECKED_EVERY):  # not reentrant: a stream may be ended by another thread than began it
            if gone():
                yield False
                return
        self._holders[conversation] = threading.get_ident()
        try:
            yield not gone()
        finally:
            self._holders.pop(conversation, None)
            lock.release()

    def get(self, conversation: Key, name: str, open_session: Callable[[], Session]) -> Session:
        """The Session of that name, opened if it is not."""
        key = (conversation[0], name)
        with self._mutex:
            if key not in self._sessions:
                self._sessions[key] = (conversation, open_session())
            self._sessions.move_to_end(key)
            self._close_some()
            return self._sessions[key][1]

    def close(self, conversation: Key, name: str, *, keep: bool = True) -> None:
        """Close a Session, if it is open; ``keep`` as in :meth:`Session.close`."""
        with self._mutex:
            found = self._sessions.pop((conversation[0], name), None)
        if found is not None:
            found[1].close(keep=keep)

    def close_all(self) -> None:
        """Close every Session, each when the request that uses it is over; a reply this thread is in the middle of is cancelled."""
        with self._mutex:
            found = list(self._sessions)
        for key in found:
            with suppress(KeyError):
                conversation, _ = self._sessions[key]
                self._close_in_turn(conversation, key[1])

    def _close_in_turn(self, conversation: Key, name: str) -> None:
        try:
            with self.hold(conversation):
                self.close(conversation, name)
        except SessionBusy:
            self.close(conversation, name)

    def _close_some(self) -> None:
        """Close Sessions over the number kept; those of conversations that are in use stay."""
        idle = [key for key, (conversation, _) in self._sessions.items() if conversation not in self._holders]
        for key in idle[: max(0, len(self._sessions) - self._keep)]:
            self._sessions.pop(key)[1].close()
