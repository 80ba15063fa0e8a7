"""Running blocking generators beside an event loop. Knows threads and queues; nothing of what runs in them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

Item = TypeVar("Item")


async def in_one_thread(pieces: Generator[Item, None, Any], left: threading.Event | None = None) -> AsyncGenerator[Item, None]:
    """``pieces`` without blocking the event loop.

    One thread of its own runs all of it: a Session is held by a thread, and a generator that waits for its turn must not take a worker
    of the loop's executor from others.

    Args:
        pieces: closed when the async generator is left.
        left: set then, for a generator that waits for something.
    """
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue[tuple[bool, Any]](), left or threading.Event()
    over: asyncio.Future[None] = loop.create_future()

    def tell(act: Callable[..., object], *values: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(act, *values)

    def work() -> None:
        problem: BaseException | None = None
        try:
            for piece in pieces:
                if gone.is_set():
                    break
                tell(queue.put_nowait, (True, piece))
        except BaseException as raised:
            problem = raised
        finally:
            pieces.close()
            tell(queue.put_nowait, (False, problem))
            tell(_finish, over)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), name="agent_memory", daemon=True).start()
    try:
        while True:
            more, value = await queue.get()
            if not more:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        gone.set()
        await asyncio.shield(over)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
