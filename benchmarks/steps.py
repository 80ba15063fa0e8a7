"""What whole steps of a real model cost: over a long memory against a short one, and beside transformers' `generate`.

`python benchmarks/steps.py --store FOLDER --session NAME [--csv FILE]`, over a memory that is there, as `lookup.py` keeps one. It is cut to
each length on a fork, so that all lengths have the same text. What is compared is done in turns in one process, one thread. `generate` goes
on from a cache of its own that holds made-up keys and values, once dynamic and once static; the faster of both counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import DynamicCache, StaticCache

from agent_memory.attention.trace import Trace
from agent_memory.bench.compare import Ratio, compare
from agent_memory.bench.run import commit, keep, machine
from agent_memory.engine import MemoryEngine
from agent_memory.errors import ConfigError
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget, GenerationRequest

CHUNK = 256
"""Tokens of a forward when a text is read."""


@contextmanager
def cut_to(runtime: Runtime, session: Session, tokens: int) -> Iterator[MemoryEngine]:
    """The first ``tokens`` of a Session's memory, on a fork of its keys and values; what is cut off leaves clusters that are half empty, so
    that they are made anew.

    Raises:
        ConfigError: there are not so many yet.
    """
    engine = session.engine
    if tokens > engine.kv.length:
        there = f"session {session.name!r} has keys and values of {engine.kv.length:,} tokens"
        raise ConfigError(f"{there}, not of {tokens:,}; read its text to the end")
    kv = engine.kv.fork(tokens, engine.kv.source)
    for part in kv.layers:
        if part.clusters is not None and part.summary is not None:
            part.clusters.truncate(0, part.summary.scanned_keys)

    def ids(start: int, stop: int) -> torch.Tensor:
        return torch.as_tensor(session.timeline.tokens(start, stop), dtype=torch.int64)

    try:
        yield MemoryEngine(runtime.attachment, runtime.tokenizer, engine.method, kv, ids, lambda final: None, attention_shares=True)
    finally:
        kv.close()


def reply(engine: MemoryEngine, count: int) -> Callable[[], None]:
    """A reply of ``count`` tokens, which is forgotten again: all that a user's reply does, but for text and records."""
    request = GenerationRequest(prompt=(11,), max_new_tokens=count)

    def run() -> None:
        for _ in engine.generate(engine.kv.length, request, Trace()):
            pass

    return run


def prefill(engine: MemoryEngine, count: int) -> Callable[[], None]:
    """A text of ``count`` tokens, which is forgotten again."""
    length = engine.kv.length
    ids = torch.arange(100, 100 + count)

    def run() -> None:
        for part in ids.split(CHUNK):
            engine._forward(part, None, "none")
        engine._back_to(length)

    return run


def generate(model: Any, tokens: int, count: int, static: bool) -> Callable[[], None]:
    """`count` tokens of transformers' own `generate` after ``tokens`` made-up ones that are in its cache."""
    config = model.config
    shape = (1, config.num_key_value_heads, tokens, config.hidden_size // config.num_attention_heads)
    made = [(torch.randn(shape), torch.randn(shape)) for _ in range(config.num_hidden_layers)]
    cache: Any = StaticCache(config, max_cache_len=tokens + count + 1) if static else DynamicCache()
    for layer, (keys, values) in enumerate(made):
        cache.update(keys if static else keys[:, :, :1], values if static else values[:, :, :1], layer)
    ids = torch.arange(tokens + 1)[None] % 1000 + 100

    def run() -> None:
        for layer, (keys, values) in zip(cache.layers, made, strict=True):
            if static:
                layer.cumulative_length.fill_(tokens)
            else:
                layer.keys, layer.values = keys, values
        model.generate(
            ids, past_key_values=cache, max_new_tokens=count, min_new_tokens=count, do_sample=False, disable_compile=True, pad_token_id=0
        )

    return run


def beside_generate(runtime: Runtime, engine: MemoryEngine, count: int, target: str) -> Ratio:
    """A reply of ours beside one of `generate`, with the faster of its caches."""
    tokens = engine.kv.length
    detail = {"tokens": tokens, "steps": count, "model": runtime.model_id.architecture}
    found = [
        compare(f"step at {tokens:,} beside generate", reply(engine, count), baseline, detail | {"cache": name}, target=target, rounds=4)
        for name, baseline in (
            (name, generate(runtime.model, tokens, count, static)) for name, static in (("dynamic", False), ("static", True))
        )
    ]
    return min(found, key=lambda ratio: ratio.baseline)


def measure(args: argparse.Namespace) -> Iterator[Ratio]:
    """All of it."""
    budget = Budget(device=args.device, host="64MiB")
    with (
        Runtime.load(args.model, method=args.method, store=args.store, budget=budget, border=None) as runtime,
        runtime.session(args.session, reinterpret=True) as session,
    ):
        detail = {"model": runtime.model_id.architecture, "steps": args.steps}

        def at(tokens: int) -> AbstractContextManager[MemoryEngine]:
            return cut_to(runtime, session, tokens)

        for tokens, target in ((300, "at least 0.87x"), (32_000, "1.5x")):
            with at(tokens) as engine:
                yield beside_generate(runtime, engine, args.steps, target)
        growth: dict[str, Any] = {"growth": True, "rounds": 4}
        for long, short in ((64_000, 8_000), (128_000, 64_000)):
            if long <= session.engine.kv.length:
                with at(long) as far, at(short) as near:
                    ours, baseline = reply(far, args.steps), reply(near, args.steps)
                    yield compare(f"step at {long:,} against {short:,}", ours, baseline, detail, target="at most 1.5x", **growth)
        with at(32_000) as far, at(6_016) as near:
            detail = {"model": runtime.model_id.architecture, "tokens": 2 * CHUNK}
            ours, baseline = prefill(far, 2 * CHUNK), prefill(near, 2 * CHUNK)
            yield compare("prefill at 32,000 against 6,016", ours, baseline, detail, target="at most 1.67x", **growth)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="recall")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--device", default="6GiB", help="budget of the device Tier")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Console(file=sys.stdout, highlight=False)
    for ratio in measure(args):
        noise = f"{ratio.noise_low:.2f} to {ratio.noise_high:.2f}"
        a, b = (seconds / (args.steps if ratio.name.startswith("step") else 1) * 1000 for seconds in (ratio.ours, ratio.baseline))
        out.print(
            f"{ratio.name}: {a:.0f} ms, {b:.0f} ms: {ratio.ratio:.2f} ({ratio.target}; baseline against itself {noise}) {ratio.detail}"
        )
        if args.csv is not None:
            keep(args.csv, [ratio], machine(), commit())


if __name__ == "__main__":
    main()
