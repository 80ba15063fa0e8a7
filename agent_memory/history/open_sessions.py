"""Sessions kept open between the requests of a client, and whose turn it is in each conversation.

Knows locks and Sessions; nothing of messages. A conversation is a Session with its branches: requests to one wait for each other,
requests to different ones do not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from agent_memory.errors import SessionBusy, SessionExists
from agent_memory.session import Session

Key = tuple[str, str]
"""Namespace and name, of a Session or of a conversation."""

CHECKED_EVERY = 0.05
"""Seconds between two looks at whether the one who waits has gone."""


@dataclass(slots=True)
class _Line:
    """Those who want to use a conversation: one of them has the lock, whose thread is ``holder``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    holder: int | None = None


class OpenSessions:
    """The open Sessions of one client.

    Args:
        most: says how many Sessions may be open, at least one; of more, those used longest ago are closed.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._mutex = threading.RLock()
        self._freed = threading.Condition(self._mutex)
        self._sessions: OrderedDict[Key, tuple[Key, Session]] = OrderedDict()
        self._lines: dict[Key, _Line] = {}

    @contextmanager
    def hold(self, conversation: Key, gone: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for one's turn; False if ``gone`` says so meanwhile, and then there is no turn.

        Raises:
            SessionBusy: this thread itself is in the middle of a reply of that conversation; waiting would never end.
        """
        with self._mutex:
            line = self._lines.setdefault(conversation, _Line())
            if line.holder == threading.get_ident():
                raise SessionBusy("/".join(conversation), "a reply that this thread is still streaming (read it to its end first)")
            line.users += 1
        try:
            while not line.lock.acquire(timeout=CHECKED_EVERY):  # not reentrant: another thread may end a stream than began it
                if gone():
                    yield False
                    return
            line.holder = threading.get_ident()
            try:
                yield not gone()
            finally:
                line.holder = None
                line.lock.release()
        finally:
            with self._freed:
                line.users -= 1
                if not line.users:
                    del self._lines[conversation]
                self._freed.notify_all()

    def get(self, conversation: Key, name: str, open_session: Callable[[], Session]) -> Session:
        """The Session of that name, opened if it is not, once there is room for it.

        A conversation waits with none open only: two that waited each for the other's would wait for ever. Branches share what is saved.

        Raises:
            SessionExists: another conversation has a Session of that name open.
        """
        key = (conversation[0], name)
        with self._freed:
            if key not in self._sessions:
                alone = all(other != conversation for other, _ in self._sessions.values())
                while len(self._sessions) >= self._most():
                    if not self._close_idle():
                        if not alone:
                            break
                        self._freed.wait()
                self._sessions[key] = (conversation, open_session())
            owner, session = self._sessions[key]
            if owner != conversation:
                raise SessionExists(f"session {name!r} belongs to conversation {owner[1]!r}; choose another name")
            self._sessions.move_to_end(key)
            return session

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

    def _close_idle(self) -> bool:
        """Close the Session used longest ago whose conversation nobody uses or waits for; False if there is none."""
        idle = next((key for key, (conversation, _) in self._sessions.items() if conversation not in self._lines), None)
        if idle is not None:
            self._sessions.pop(idle)[1].close()
        return idle is not None
