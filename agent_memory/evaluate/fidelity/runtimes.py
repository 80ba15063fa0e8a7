"""Runtimes for a measurement: over the cache of memories made by full attention, or over a Store of their own.

Knows Runtimes, Stores and budgets; does not know what is measured. Wherever a Session is opened with another method than it was made
with, it is done here.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...attention.methods import Method
from ...memory.sizes import parse_size
from ...runtime import Runtime
from ...session import Session
from ...types import Budget, KVLayout
from .documents import Document, digest

MakeRuntime = Callable[..., Runtime]
"""``make_runtime(method=, store=, budget=)``; whatever else decides how replies are made is fixed."""

PATIENCE = 3600.0
"""Seconds to wait for a memory another process is using."""

SPARE_TOKENS = 4096
"""Tokens beside a document that the device Tier has room for: questions, replies, Blocks that wait to be saved."""

COLLECTED_BYTES = 1 << 30
"""Bytes that Tiers of closed Runtimes may hold before they are collected."""

FULL = "full"


def token_bytes(layout: KVLayout) -> int:
    """Bytes of one token's keys and values at all layers."""
    size = {"float32": 4}.get(layout.dtype, 2)
    return size * sum(math.prod(layout.block_shape(layer)) for layer in range(layout.layers)) // layout.block_tokens


def roomy(budget: Budget, layout: KVLayout, tokens: int) -> Budget:
    """A budget whose device Tier holds a document: where Blocks lie changes no figure, only how long it takes."""
    return replace(budget, device=max(parse_size(budget.device), 2 * token_bytes(layout) * (tokens + SPARE_TOKENS)))


class Memories:
    """Sessions that hold documents, made and read by any method.

    Args:
        make_runtime: loads nothing twice if it can.
        cache: folder that keeps memories made by full attention, for this run and later ones.
        budget: for every Runtime.
    """

    def __init__(self, make_runtime: MakeRuntime, cache: Path, budget: Budget) -> None:
        self._make, self.cache, self._budget = make_runtime, cache, budget
        _drop_made(cache)
        self._whole: set[str] = set()
        self._closed_bytes = 0

    @contextmanager
    def by_full_attention(
        self, document: Document, method: str | Method = FULL, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Runtime, Session]]:
        """The document's memory as full attention makes it, opened with a method that reads it; made where it is not there yet."""
        if method != FULL and document.key not in self._whole:
            with self.by_full_attention(document, progress=progress):
                pass
        with self._runtime(method, self.cache / "store") as runtime:
            session = _reinterpreted(runtime, document.key, digest(runtime.model_id.to_dict()))
            try:
                _drop_forks(runtime, session)
                if method == FULL:
                    fill(session, document, progress)
                    self._whole.add(document.key)
                yield runtime, session
            finally:
                session.close(keep=method == FULL)  # another method must leave the memory as full attention made it

    @contextmanager
    def by_method(
        self, document: Document, method: str | Method, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Runtime, Session]]:
        """The document's memory as a Session of the method makes it, dropped in the end."""
        with tempfile.TemporaryDirectory(prefix=f"made-{os.getpid()}-", dir=self.cache) as folder:
            with self._runtime(method, Path(folder) / "store") as runtime, runtime.session(document.key) as session:
                fill(session, document, progress)
                yield runtime, session

    @contextmanager
    def _runtime(self, method: str | Method, store: Path) -> Iterator[Runtime]:
        with self._make(method=method, store=store, budget=self._budget) as runtime:
            yield runtime
        del runtime
        self._closed_bytes += parse_size(self._budget.device)
        if self._closed_bytes > COLLECTED_BYTES:
            gc.collect()  # a Session's keys and values are in a cycle with what reads them, and would wait for Python's next collection
            self._closed_bytes = 0


def _reinterpreted(runtime: Runtime, name: str, namespace: str) -> Session:
    """A Session of the cache, whatever method it was made with."""
    return runtime.session(name, namespace, timeout=PATIENCE, reinterpret=True)


def fill(session: Session, document: Document, progress: Callable[[int], None] | None) -> None:
    """Append what a Session does not hold yet: an earlier run may have been stopped half-way."""
    if document.ids and not session.tokens:
        session.append_ids(document.ids)
    if document.system is not None:
        session.configure(system=document.system)
    held = sum(not turn.meta.get("head") for turn in session.turns())
    for role, text in document.messages[held:]:
        session.append(role, text, prefill=False)
    session.prefill(progress)


def _drop_made(cache: Path) -> None:
    """Memories that were being made by a process that was killed."""
    for folder in cache.glob("made-*-*"):
        maker = folder.name.split("-")[1]
        if maker.isdigit() and not _alive(int(maker)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _drop_forks(runtime: Runtime, session: Session) -> None:
    """Forks of a run that was killed; whoever holds the Session is the only one who makes any."""
    for info in runtime.store.sessions(session.namespace, branches=True):
        if info.parent == session.name:
            runtime.store.delete(info.name, session.namespace)
