"""Choosing a reply's tokens one after another, and turning them into text.

Knows transformers' logits processors, stopping criteria and streamers; nothing of how logits are made or where keys are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, TypedDict, Unpack, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from agent_memory.errors import ConfigError
from agent_memory.model.text import StopGuard, TextStream
from agent_memory.types import GenerationRequest, Piece, Sampling

FinishReason = Literal["stop", "length", "cancelled"]
NextLogits = Callable[[int | None], Tensor]


class DecodeHooks(TypedDict, total=False):
    """What else ``decode`` takes, all optional.

    ``history`` are the ids before ``request.prompt``; only processors, criteria and the repetition penalty read it. ``processors``,
    ``stopping`` and ``streamer`` work as in ``generate()``; the streamer gets ``request.prompt`` as its prompt. ``cancelled`` is
    asked before each token.
    """

    history: Sequence[int]
    processors: LogitsProcessorList | None
    stopping: StoppingCriteriaList | None
    streamer: BaseStreamer | None
    cancelled: Callable[[], bool] | None


def decode(
    next_logits: NextLogits, tokenizer: PreTrainedTokenizerBase, request: GenerationRequest, **hooks: Unpack[DecodeHooks]
) -> Generator[Piece, None, FinishReason]:
    """Generate one reply.

    Args:
        next_logits: feeds the token it is given (None the first time: the prompt is fed already) and returns the logits
            ``[vocabulary]`` of the next one. The last token of a reply is never fed.
        tokenizer: turns ids into text.
        request: how much, how chosen, and what ends it.
        hooks: see ``DecodeHooks``.

    Returns:
        A generator of pieces, whose value is the finish reason: ``"stop"`` (an end id, a stop string, a stopping criterion),
        ``"length"`` or ``"cancelled"``. The texts together are the ids' text, cut before the first stop string. An end id is
        yielded, without its own text. Closing the generator cancels.

    Raises:
        ConfigError: the request asks for something that cannot be; at the call, before any token.
    """
    check_request(request)
    return _run(next_logits, tokenizer, request, hooks)


def check_request(request: GenerationRequest) -> None:
    """Raise ``ConfigError`` for a request that cannot be met, naming the field and its value."""
    sampling = request.sampling
    rules = [
        ("max_new_tokens", request.max_new_tokens, request.max_new_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < math.inf, "0 or more"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "over 0 and at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (off) or more"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("repetition_penalty", sampling.repetition_penalty, 0 < sampling.repetition_penalty < math.inf, "over 0"),
        ("seed", sampling.seed, sampling.seed is None or -(2**63) <= sampling.seed < 2**64, "a 64-bit integer"),
        ("stop", request.stop, isinstance(request.stop, tuple) and all(request.stop), "a tuple of strings that are not empty"),
    ]
    for name, value, holds, wanted in rules:
        if not holds:
            raise ConfigError(f"{name}={value!r} cannot be used; it must be {wanted}")


def _run(
    next_logits: NextLogits, tokenizer: PreTrainedTokenizerBase, request: GenerationRequest, hooks: DecodeHooks
) -> Generator[Piece, None, FinishReason]:
    stopping, cancelled = hooks.get("stopping"), hooks.get("cancelled")
    streamer: Any = hooks.get("streamer")
    chooser = _Chooser(request.sampling, hooks.get("processors"))
    ids = _Ids([*hooks.get("history", ()), *request.prompt])
    text, guard, token = TextStream(tokenizer), StopGuard(request.stop), None
    if streamer is not None:
        streamer.put(torch.tensor([request.prompt], dtype=torch.long))
    try:
        for left in range(request.max_new_tokens - 1, -1, -1):
            if cancelled is not None and cancelled():
                return "cancelled"
            token = chooser.choose(next_logits(token), ids)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            ended = token in request.end_ids
            visible = guard.push("" if ended else text.push(token))
            ended = ended or guard.hit or (stopping is not None and bool(stopping(cast(torch.LongTensor, ids.all), None).any()))
            if not ended and left:
                yield Piece(token, visible)
                continue
            yield Piece(token, visible if guard.hit else visible + _rest(text, guard))
            return "stop" if ended or guard.hit else "length"
        return "length"
    finally:
        if streamer is not None:
            streamer.end()


def _rest(text: TextStream, guard: StopGuard) -> str:
    visible = guard.push(text.finish())
    return visible + guard.finish()


class _Ids:
    """A growing ``[1, n]`` row of ids on the logits' device, without a copy per token."""

    def __init__(self, ids: list[int]) -> None:
        self._room = torch.tensor([ids], dtype=torch.long)
        self._count = len(ids)

    @property
    def all(self) -> Tensor:
        return self._room[:, : self._count]

    def to(self, device: torch.device) -> Tensor:
        self._room = self._room.to(device)
        return self.all

    def append(self, token: int) -> None:
        if self._count == self._room.shape[1]:
            self._room = torch.cat([self._room, self._room.new_zeros(1, max(256, self._count))], dim=1)
        self._room[0, self._count] = token
        self._count += 1


class _Chooser:
    """Picks a token from logits: the user's processors between the repetition penalty and the warpers, as ``generate()`` does."""

    def __init__(self, sampling: Sampling, processors: LogitsProcessorList | None) -> None:
        self._processors = _processors(sampling, processors)
        self._sampling = sampling
        self._generator: torch.Generator | None = None

    def choose(self, logits: Tensor, ids: _Ids) -> int:
        copied = logits.reshape(1, -1).to(dtype=torch.float32, copy=True)
        scores = self._processors(cast(torch.LongTensor, ids.to(logits.device)), cast(torch.FloatTensor, copied))
        token = int(scores.argmax(-1)) if self._sampling.temperature == 0 else self._sample(scores)
        ids.append(token)
        return token

    def _sample(self, scores: Tensor) -> int:
        if self._generator is None:
            self._generator = torch.Generator(scores.device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _processors(sampling: Sampling, given: LogitsProcessorList | None) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.extend(given or [])
    if sampling.temperature == 0:
        return chain
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain
