"""What tests of LlamaIndex's models look through: events that are fired, how often the event loop runs, and replies that are prescribed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import torch
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.llms.agent_memory import AgentMemory
from llama_index_instrumentation import get_dispatcher
from transformers import LogitsProcessor

from agent_memory.structured import StructuredReplies


class Record(BaseModel):
    """A record."""

    name: str
    public: bool


class Heard(BaseEventHandler):
    """Keeps the events of instrumentation."""

    events: list[Any] = []  # noqa: RUF012 - pydantic copies it

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)

    def names(self) -> list[str]:
        return [event.class_name() for event in self.events]


@contextmanager
def listening() -> Iterator[Heard]:
    heard, dispatcher = Heard(events=[]), get_dispatcher()
    dispatcher.add_event_handler(heard)
    try:
        yield heard
    finally:
        dispatcher.event_handlers.remove(heard)


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Moments at which the event loop ran, one each millisecond if nothing keeps it."""
    beats = [time.perf_counter()]

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.001)
            beats.append(time.perf_counter())

    task = asyncio.create_task(beat())
    try:
        yield beats
    finally:
        task.cancel()


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


async def listed(stream: Awaitable[Any]) -> list[Any]:
    return [item async for item in await stream]


def grows(pieces: Sequence[tuple[str | None, str | None]]) -> bool:
    """Whether after each (delta, text so far) the text is all the deltas together."""
    deltas = [delta or "" for delta, _ in pieces]
    return all("".join(deltas[: number + 1]) == (text or "") for number, (_, text) in enumerate(pieces))


def valid(arguments: object) -> bool:
    """Whether these are arguments of the tool ``lookup``."""
    return isinstance(arguments, dict) and set(arguments) == {"name"} and isinstance(arguments["name"], str)


def prescribe(monkeypatch: pytest.MonkeyPatch, llm: AgentMemory, *replies: str) -> None:
    """Let the model write these replies next, token by token, as if it had chosen to. Before its Session is opened."""
    runtime = llm._open()[0].runtime
    left = iter([*runtime.tokenizer.encode(text, add_special_tokens=False), runtime.chat.end_ids[0]] for text in replies)
    monkeypatch.setattr(StructuredReplies, "processor", lambda *_: Prescribed(next(left)))


class Prescribed(LogitsProcessor):
    """Rules out every token but the next of a list."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = iter(ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, next(self._ids)] = 0.0
        return only  # type: ignore[return-value]
