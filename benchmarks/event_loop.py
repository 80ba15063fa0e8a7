"""How long an event loop is held up while eight replies are made beside it: on eight threads, and on one.

Knows the LangChain chat model and a clock. A heartbeat asks for the loop every millisecond; what counts is the longest time it had to
wait, beside the longest wait with nothing else going on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

from langchain_core.messages import HumanMessage

from agent_memory.pocket import data
from langchain_agent_memory import ChatAgentMemory

CALLS = 8
BEAT_SECONDS = 0.001


async def _heartbeat(waits: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(BEAT_SECONDS)
        waits.append(time.perf_counter() - before - BEAT_SECONDS)


async def _measured(work: Callable[[], asyncio.Future[Any]]) -> tuple[float, int]:
    """(longest wait in seconds, beats) while ``work`` runs."""
    waits: list[float] = []
    heart = asyncio.create_task(_heartbeat(waits))
    await asyncio.sleep(0)
    await work()
    heart.cancel()
    return max(waits), len(waits)


def _calls(chat: ChatAgentMemory, name: Callable[[int], str]) -> Callable[[], asyncio.Future[Any]]:
    def work() -> asyncio.Future[Any]:
        asked = [
            HumanMessage(f"Note: gate-{number} version is {number}.1\n{data.question(f'gate-{number}', 'version')}")
            for number in range(CALLS)
        ]
        return asyncio.gather(
            *(chat.ainvoke([message], {"configurable": {"thread_id": name(number)}}) for number, message in enumerate(asked))
        )

    return work


async def _loaded_again(chat: ChatAgentMemory) -> None:
    await asyncio.to_thread(chat.close)
    await chat.ainvoke([HumanMessage("x")])


async def measure(chat: ChatAgentMemory) -> dict[str, dict[str, float]]:
    """Longest waits in milliseconds, and beats, by what went on beside the loop."""
    works: dict[str, Callable[[], asyncio.Future[Any]]] = {
        "nothing": lambda: asyncio.ensure_future(asyncio.sleep(1.0)),
        "first call, not loaded": lambda: asyncio.ensure_future(chat.ainvoke([HumanMessage("x")])),
        "first call, loaded again": lambda: asyncio.ensure_future(_loaded_again(chat)),
        "eight threads": _calls(chat, lambda number: f"thread {number}"),
        "one thread": _calls(chat, lambda number: "thread"),
    }
    found = {}
    for name, work in works.items():
        longest, beats = await _measured(work)
        found[name] = {"longest_ms": round(1000 * longest, 1), "beats": beats}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chat = ChatAgentMemory(store=folder, max_tokens=32)
        found = asyncio.run(measure(chat))
        chat.close()
    if options.json:
        print(json.dumps(found))
        return
    for name, line in found.items():
        print(f"{name:>24}: longest wait {line['longest_ms']:6.1f} ms, {line['beats']:,} beats")


if __name__ == "__main__":
    main()
