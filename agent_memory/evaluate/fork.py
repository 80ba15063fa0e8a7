"""A fork that is dropped: to ask about a Session without changing it.

Knows Sessions and their Store; does not know what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime import Runtime
from ..session import Session


@contextmanager
def asked_on_a_fork(runtime: Runtime, session: Session, name: str, at: int | None = None) -> Iterator[Session]:
    """A fork of ``session`` called ``name``, closed and deleted afterwards, whatever happened to it.

    Args:
        runtime: that opened the session.
        session: what is asked about; it stays as it is.
        name: of the fork, in the session's namespace.
        at: turns that it shares; all by default.

    Raises:
        SessionExists: the name is taken.
    """
    child = session.fork(name, at)
    try:
        yield child
    finally:
        child.close(keep=False)
        runtime.store.delete(child.name, child.namespace)
