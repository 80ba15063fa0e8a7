"""Whole Sessions of the pocket model: what a turn costs when the memory is long, against a short one and against prefilling again.

Knows Runtimes and Sessions; each figure is of real prefills and replies, on forks that are deleted again.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..attention.shares import AttentionShares
from ..attention.trace import Trace
from ..evaluate.haystack import Haystack, make_haystack
from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .compare import Progress, Ratio, compare, counted

DEVICE = "1GiB"
QUESTION = "Which of all the records you have read would you read again first, and why? Take your time."
REPLY_TOKENS = 24
TURN_TOKENS = 1024


def flatness(store: Path, short: int, long: int, progress: Progress) -> Iterator[Ratio]:
    """R10: decode and prefill, a token each, over a long memory against a short one, in turns.

    Args:
        store: folder of the Store; Sessions of these lengths that are there already are used again.
        short, long: tokens.
        progress: told what is being done.
    """
    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as runtime:
        text = "\n".join(haystack(runtime, 3 * TURN_TOKENS, seed=9).pieces)
        ids = runtime.tokenizer.encode(text, add_special_tokens=False)[:TURN_TOKENS]
        with filled(runtime, short, progress) as small, filled(runtime, long, progress) as large:
            detail = {"tokens": large.tokens, "against": small.tokens, "method": runtime.method(0).name}
            progress("R10: decode steps")
            yield compare(
                f"R10 decode at {long:,} against {short:,}", decoding(large), decoding(small), detail, target="at most 1.5x", growth=True
            )
            progress("R10: prefill")
            name = f"R10 prefill at {long:,} against {short:,}"
            yield compare(name, prefilling(large, ids), prefilling(small, ids), detail, target="at most 1.5x", growth=True, rounds=4)


def decoding(session: Session, traced: Callable[[], Trace] | None = None, steps: int = REPLY_TOKENS) -> Callable[[], None]:
    """Some steps of a reply, after what is left of the last group; all of it is forgotten again."""
    engine = session.engine
    tokens = torch.arange(20, 20 + steps)

    def run() -> None:
        trace = None if traced is None else traced()
        engine._back_to(engine.final)
        for token in tokens:
            engine._forward(token[None], trace, "last")
        engine._back_to(engine.final)

    return run


def attention_shares(store: Path, tokens: int, progress: Progress) -> Iterator[Ratio]:
    """Decode steps that add up which turns got the attention, against the same steps that count selections only."""

    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as runtime, filled(runtime, tokens, progress) as session:
        progress("attention shares: decode steps")
        name, detail = f"attention shares, decode at {tokens:,}", {"tokens": session.tokens, "method": runtime.method(0).name}
        # Many short rounds: the difference is smaller than what other work on the machine adds to a long one.
        ours, baseline = decoding(session, lambda: summing(session), steps=6), decoding(session, Trace, steps=6)
        yield compare(name, ours, baseline, detail, target="at most 1.1x", growth=True, rounds=60)


def summing(session: Session) -> Trace:
    """A trace of one reply that adds up its attention."""
    trace = Trace()
    trace.shares = AttentionShares(session.tokens, session.engine.kv.device)
    return trace


def prefilling(session: Session, ids: list[int]) -> Callable[[], None]:
    """The keys and values of one turn; they are forgotten again."""
    engine = session.engine
    turn = torch.tensor(ids)

    def run() -> None:
        engine._back_to(engine.final)
        for part in turn.split(256):
            engine._forward(part, None, "none")
        engine._back_to(engine.final)

    return run


def new_turn(store: Path, tokens: int, progress: Progress) -> Iterator[Ratio]:
    """R5: time to the first token of an answer to a new turn over a history, against prefilling history and turn again."""
    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as runtime, filled(runtime, tokens, progress) as session:
        progress("R5: a new turn against prefilling everything")
        started = time.perf_counter()
        with runtime.session("again") as again:
            for piece in haystack(runtime, tokens).pieces:
                again.append("tool", piece, name="read", prefill=False)
            next(iter(again.stream(QUESTION, max_new_tokens=2)))
            prefill = time.perf_counter() - started
        runtime.store.delete("again")
        ours = min(_first_token(session, number) for number in range(3))
        yield counted(f"R5 new turn over {tokens:,} tokens", ours, prefill, {"tokens": session.tokens}, target="15x")


def reopening(store: Path, tokens: int, progress: Progress) -> Iterator[Ratio]:
    """R6: opening a Session again and the first token of an answer, nothing on the device, against prefilling its history."""
    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as runtime, filled(runtime, tokens, progress) as session:
        progress("R6: prefilling again")
        ids = session.timeline.tokens(0, session.tokens)
        started = time.perf_counter()
        runtime.score(torch.as_tensor(ids, dtype=torch.int64), of=range(len(ids) - 1, len(ids)), alone=len(ids))
        prefill = time.perf_counter() - started
    progress("R6: reopening")
    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as runtime:
        runtime.model(torch.zeros((1, 8), dtype=torch.int64))
        started = time.perf_counter()
        with runtime.session(_name(tokens)) as session:
            ours = _first_token(session, 0, started)
    yield counted(f"R6 reopening {tokens:,} tokens", ours, prefill, {"tokens": tokens}, target="20x")


def heap(tokens: int, progress: Progress, windows: int = 3) -> Iterator[Ratio]:
    """R9: how much Python's own heap grows with the memory, a token: objects, not arrays.

    The least of several windows: caches that fill up once, and tables of them that double, are in one window or another.
    """
    progress("R9: Python heap")
    with tempfile.TemporaryDirectory() as folder, Runtime.load(store=folder, budget=Budget(device="64MiB")) as runtime:
        pieces = haystack(runtime, tokens).pieces
        size = len(pieces) // (windows + 1)
        with runtime.session("long") as session:
            tracemalloc.start()
            _append(session, pieces[:size])
            grown = []
            for window in range(1, windows + 1):
                before, at = _objects(), session.tokens
                _append(session, pieces[window * size : (window + 1) * size])
                grown.append((_objects() - before) / (session.tokens - at))
            tracemalloc.stop()
            detail = {"tokens": session.tokens, "windows": [round(each, 2) for each in grown]}
            yield counted("R9 Python heap a token", max(min(grown), 0.0), 0.1, detail, target="at most 0.1 B", unit="B", growth=True)


def _objects() -> int:
    """Bytes of Python's heap that are no array's."""
    gc.collect()
    arrays = tracemalloc.DomainFilter(False, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


def haystack(runtime: Runtime, tokens: int, seed: int = 0, needles: int = 8) -> Haystack:
    """Generated records of so many tokens, and facts in them to ask for."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    depths = [(at + 0.5) / needles for at in range(needles)]
    return make_haystack(rng, tokens, depths, lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)))


@contextmanager
def filled(runtime: Runtime, tokens: int, progress: Progress) -> Iterator[Session]:
    """A Session of so many tokens, made if it is not there."""
    with runtime.session(_name(tokens)) as session:
        if not session.tokens:
            progress(f"filling a session of {tokens:,} tokens")
            _append(session, haystack(runtime, tokens).pieces)
        session.prefill()
        yield session


def _append(session: Session, pieces: Sequence[str]) -> None:
    for piece in pieces:
        session.append("tool", piece, name="read", prefill=False)
    session.prefill()


def _first_token(session: Session, number: int, started: float | None = None) -> float:
    started = time.perf_counter() if started is None else started
    child = session.fork(f"asked {number} {started}")
    next(iter(child.stream(QUESTION, max_new_tokens=2)))
    seconds = time.perf_counter() - started
    child.close(keep=False)
    return seconds


def _name(tokens: int) -> str:
    return f"bench-{tokens}"
