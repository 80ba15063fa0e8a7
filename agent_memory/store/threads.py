"""A few threads that read side by side, started when they are first needed.

Knows calls, threads and the process they belong to; nothing of what is read.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent_memory.errors import SessionClosed

THREADS = 4
"""Threads of one Store."""

_Result = TypeVar("_Result")


class ReadThreads:
    """Threads of one Store, for reads that do not depend on each other.

    Args:
        count: how many there are at most, beside the caller's own.
    """

    def __init__(self, count: int = THREADS) -> None:
        self._count, self._pid, self._closed = count, os.getpid(), False
        self._pool: ThreadPoolExecutor | None = None
        self._mutex = threading.Lock()

    @property
    def started(self) -> bool:
        """Whether any thread was needed yet."""
        return self._pool is not None

    def run(self, calls: Sequence[Callable[[], _Result]]) -> list[_Result]:
        """Results of ``calls``, in their order; the caller's own thread makes its share of them.

        What a call raises is raised here, once none of the others runs any more: nobody writes into a buffer that was given up.

        Raises:
            SessionClosed: after ``close``, or in a forked child, which has none of the threads.
        """
        waiting = deque(enumerate(calls))
        results: dict[int, _Result] = {}

        def work() -> None:
            while waiting:
                try:
                    number, call = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                results[number] = call()

        helpers = [self._started().submit(work) for _ in range(min(self._count, len(calls) - 1))]
        try:
            work()
        finally:
            waiting.clear()
            failures = [failure for failure in [helper.exception() for helper in helpers] if failure is not None]
        if failures:
            raise failures[0]
        return [results[number] for number in range(len(calls))]

    def close(self) -> None:
        """Wait for what is being read, and end the threads; closing twice is no error."""
        with self._mutex:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None and os.getpid() == self._pid:
            pool.shutdown()

    def _started(self) -> ThreadPoolExecutor:
        if os.getpid() != self._pid:
            raise SessionClosed(f"the threads of process {self._pid} are not in this one; open the store again after a fork")
        with self._mutex:
            if self._closed:
                raise SessionClosed("the store is closed; open it again")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="agent-memory-read")
            return self._pool
