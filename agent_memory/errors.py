"""Every error this package raises on purpose, as one tree.

Knows names and messages only. Each message says what happened, to what, and what to do next.

    AgentMemoryError
    ├── ConfigError                 a setting that cannot be used (also a ValueError)
    ├── ModelError
    │   ├── ModelNotFound           no model at that path or hub id
    │   ├── UnsupportedModel        attention that cannot be attached; names the layer
    │   └── ModelMismatch           a Session of another model; names the field and both values
    ├── StoreError
    │   ├── StoreCorrupt            the index cannot be read
    │   ├── StoreFull               no room left on the device
    │   ├── StoreStopped            a write failed to reach the disk; reopen the Store
    │   ├── UnsupportedStore        a URL or file system that is not supported
    │   ├── FormatTooNew            written by a newer version
    │   └── BlockDamaged
    │       ├── BlockMissing        its file is gone
    │       ├── BlockShort          fewer bytes than its row says
    │       └── BlockChecksum       its bytes are not the ones that were written
    ├── SessionError
    │   ├── SessionBusy             another writer holds it; names its process
    │   ├── SessionClosed           used after close, or after a fork of the process
    │   ├── SessionExists           the name of a fork or import is taken
    │   ├── SessionNotFound
    │   ├── InvalidName             a name that cannot be one
    │   ├── EmptyMessage
    │   ├── InvalidTurn             a turn that cannot be kept: its role, or text that is not valid Unicode (also a ValueError)
    │   ├── InvalidHistory          a history that cannot be, such as a tool result without its call
    │   ├── HeadTooLong             system prompt and tool schemas over a quarter of the window
    │   └── TurnTooLarge
    ├── SelectionError              a Selector chose tokens it may not; a defect of the method
    └── ToolError                   a tool that cannot be described to a model
"""


class AgentMemoryError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(AgentMemoryError, ValueError):
    """A setting that cannot be used."""


class ModelError(AgentMemoryError):
    """Something is wrong with the model."""


class ModelNotFound(ModelError):
    """No model at that path or hub id."""


class UnsupportedModel(ModelError):
    """The model's attention cannot be attached; the message names the layer and the reason."""


class ModelMismatch(ModelError):
    """A Session was made with another model.

    Args:
        session: the Session, as ``namespace/name``.
        field: the field of the fingerprint that differs.
        stored: its value in the Store.
        given: its value in the model at hand.
    """

    def __init__(self, session: str, field: str, stored: object, given: object) -> None:
        super().__init__(
            f"session {session!r} was made with {field}={stored!r}, but the model at hand has {given!r}; "
            f"open it with the model it was made with, or make a new session"
        )
        self.session, self.field, self.stored, self.given = session, field, stored, given


class StoreError(AgentMemoryError):
    """Something is wrong with the Store."""


class StoreCorrupt(StoreError):
    """The index cannot be read."""


class StoreFull(StoreError):
    """No room is left on the device; nothing acknowledged is lost."""


class StoreStopped(StoreError):
    """A write failed to reach the disk. It is never retried: reopen the Store."""


class UnsupportedStore(StoreError):
    """A URL or file system that is not supported."""


class FormatTooNew(StoreError):
    """The Store was written by a newer version of this package."""


class BlockDamaged(StoreError):
    """A Block's bytes cannot be trusted. They are never handed out."""


class BlockMissing(BlockDamaged):
    """The Block's file is gone."""


class BlockShort(BlockDamaged):
    """The Block's file ends before the Block does."""


class BlockChecksum(BlockDamaged):
    """The Block's bytes are not the ones that were written."""


class SessionError(AgentMemoryError):
    """Something is wrong with a Session or what was asked of it."""


class SessionBusy(SessionError):
    """Another process or thread is writing to the Session.

    Args:
        session: the Session, as ``namespace/name``.
        holder: who holds it, for people (``process 1234`` or ``another thread``).
    """

    def __init__(self, session: str, holder: str) -> None:
        super().__init__(f"session {session!r} is in use by {holder}; close it there, or pass timeout= to wait")
        self.session, self.holder = session, holder


class SessionClosed(SessionError):
    """The Session was used after it was closed, or in a forked child process."""


class SessionExists(SessionError):
    """A Session of that name exists already."""


class SessionNotFound(SessionError):
    """No Session of that name in that namespace."""


class InvalidName(SessionError, ValueError):
    """A Session or namespace name that cannot be one."""


class EmptyMessage(SessionError, ValueError):
    """A message without text."""


class InvalidTurn(SessionError, ValueError):
    """A turn that cannot be kept; nothing was written."""


class InvalidHistory(SessionError, ValueError):
    """A history that cannot be, or that was trimmed where that is not wanted; the message names what and where."""


class HeadTooLong(SessionError):
    """The system prompt and tool schemas take more than a quarter of the window."""


class TurnTooLarge(SessionError):
    """A turn of more tokens than ``max_turn_tokens``; nothing was written."""


class SelectionError(AgentMemoryError):
    """A Selector chose a token twice, out of order, or one it may not choose from; the message names it and the bounds."""


class ToolError(AgentMemoryError):
    """A tool that cannot be described to a model."""


class HistoryRewritten(UserWarning):
    """A client changed a message that was read long ago, so all after it has to be read again."""


def message_of(error: BaseException) -> str:
    """What an error says; nothing if it cannot say it, because its ``__str__`` fails in its turn."""
    try:
        return str(error)
    except BaseException:  # also SystemExit: it is the error itself that has to be told
        return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, to be told in one line of our own; its name if there is none."""
    return next((line.strip() for line in message_of(error).splitlines() if line.strip()), type(error).__name__)
