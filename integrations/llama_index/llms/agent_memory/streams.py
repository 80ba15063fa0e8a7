"""Replies as streams of LlamaIndex's responses, and streams that end what they are made of.

Knows generators, and that LlamaIndex's callbacks wrap a stream in another one: who leaves that leaves the inner one waiting, and with
it the Session, for as long as any handler keeps the event.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.llms.agent_memory.responses import GrowingReply, completion

if TYPE_CHECKING:
    from agent_memory.history import Histories, Request

Stream = TypeVar("Stream")

_inner: ContextVar[list[Any]] = ContextVar("streams made by the call of the innermost ending method")


def ending(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method``, which returns a stream, so that leaving the stream ends those of :func:`streamed` and :func:`astreamed` inside."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def made_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            inner: list[Any] = []
            token = _inner.set(inner)
            try:
                return _aending(await method(*args, **kwargs), inner)
            finally:
                _inner.reset(token)

        return made_async

    @functools.wraps(method)
    def made(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        inner: list[Any] = []
        token = _inner.set(inner)
        try:
            return _ending(method(*args, **kwargs), inner)
        finally:
            _inner.reset(token)

    return made


def streamed(histories: Histories, request: Request) -> Generator[ChatResponse, None, None]:
    """The responses of a reply."""
    return _kept(_responses(histories, request))


def astreamed(histories: Histories, request: Request) -> AsyncGenerator[ChatResponse, None]:
    """:func:`streamed` without blocking the event loop."""
    return _kept(_aresponses(histories, request))


def completions(responses: Generator[ChatResponse, None, None]) -> Generator[CompletionResponse, None, None]:
    """Completions for responses."""
    with closing(responses):
        for response in responses:
            yield completion(response)


async def acompletions(responses: AsyncGenerator[ChatResponse, None]) -> AsyncGenerator[CompletionResponse, None]:
    """:func:`completions` of an async stream."""
    async with aclosing(responses):
        async for response in responses:
            yield completion(response)


def _kept(stream: Stream) -> Stream:
    _inner.get().append(stream)
    return stream


def _responses(histories: Histories, request: Request) -> Generator[ChatResponse, None, None]:
    growing = GrowingReply()
    with closing(histories.pieces(request)) as made:
        for piece in made:
            yield growing.of(piece)


async def _aresponses(histories: Histories, request: Request) -> AsyncGenerator[ChatResponse, None]:
    growing = GrowingReply()
    async with aclosing(histories.astream(request)) as made:
        async for piece in made:
            yield growing.of(piece)


def _ending(stream: Generator[Any, None, None], inner: list[Any]) -> Generator[Any, None, None]:
    try:
        with closing(stream):
            yield from stream
    finally:
        for one in inner:
            one.close()


async def _aending(stream: AsyncGenerator[Any, None], inner: list[Any]) -> AsyncGenerator[Any, None]:
    try:
        async with aclosing(stream):
            async for response in stream:
                yield response
    finally:
        for one in inner:
            await one.aclose()
