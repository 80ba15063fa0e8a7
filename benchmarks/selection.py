"""How queries vote and what they vote on, measured on real keys: is the Block that holds the answer among those recalled?

Knows the pocket model's keys and generated facts; changes no default by itself. For each way of choosing it prints, for every layer and
KV head, the share of questions for which a Block of the fact is among the best seven.

    python benchmarks/selection.py --tokens 40000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_memory.attention.methods import Method, derive_sizes
from agent_memory.attention.selectors import Ask, Selection, WindowSelector
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.evaluate.haystack import Needle, make_haystack
from agent_memory.memory.grid import coarsen, quantise
from agent_memory.memory.layer_kv import Keeps, LayerKV
from agent_memory.pocket import data
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget
from agent_memory_kernels import operations

BLOCK, BEST = 32, 7


@dataclass
class Recorder:
    """A Selector that chooses nothing and keeps every query it was asked with."""

    keeps: Keeps = Keeps(every_key=True)
    asked: dict[int, list[Tensor]] = field(default_factory=dict)
    on: bool = False

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose nothing."""
        if self.on:
            self.asked.setdefault(id(layer.every_key), []).extend(ask.queries.clone() for ask in asks)
        return WindowSelector().select(asks, scaling, layer)


@dataclass(frozen=True)
class Case:
    """One question: the Blocks that hold its fact, and each layer's queries ``[G, H, T, d]``."""

    blocks: range
    queries: list[list[Tensor]]


Vote = Callable[[Tensor, Tensor], Tensor]
"""Queries ``[heads, T, d]`` that share a KV head and its keys ``[blocks, 32, d]``, to one vote a Block ``[blocks]``."""


def by_keys(queries: Tensor, keys: Tensor, *, part: int = 1, normalise: bool = True, pool: bool = False) -> Tensor:
    """Best mean of ``part`` consecutive keys; normalised over all of them or raw; query heads pooled or each for itself."""
    rows = queries.mean(0) if pool else queries.flatten(0, 1)
    means = keys.reshape(len(keys), BLOCK // part, part, -1).mean(2)
    scores = rows @ means.flatten(0, 1).T * rows.shape[-1] ** -0.5
    if normalise:
        scores = scores - scores.logsumexp(-1, keepdim=True)
    votes: Tensor = scores.amax(0).reshape(len(keys), -1).amax(1)
    return votes


def by_block_maxima(queries: Tensor, keys: Tensor) -> Tensor:
    """What ``recall`` scans: pooled heads, best key of each Block in 8 bits, normalised over Blocks."""
    rows = queries.mean(0)
    q8, scale, _ = quantise(keys[:, None])
    on_grid, step, _ = coarsen(q8, scale, keys[:1].mean(1))
    best = operations().block_maxima(rows[None], [[(on_grid[:, 0], step[:, 0])]], rows.shape[-1] ** -0.5)[0]
    votes: Tensor = (best - best.logsumexp(-1, keepdim=True)).amax(0)
    return votes


def by_box(queries: Tensor, keys: Tensor) -> Tensor:
    """Upper bound from each Block's smallest and largest key, as Quest does."""
    rows = queries.flatten(0, 1)
    votes: Tensor = (rows.clamp(min=0) @ keys.amax(1).T + rows.clamp(max=0) @ keys.amin(1).T).amax(0)
    return votes


WAYS: dict[str, Vote] = {
    "every key in 8 bits, softmax over Blocks": by_block_maxima,
    "every key, softmax, each head": lambda q, k: by_keys(q, k),
    "every key, softmax, pooled heads": lambda q, k: by_keys(q, k, pool=True),
    "every key, raw maximum": lambda q, k: by_keys(q, k, normalise=False),
    "means of 2, softmax": lambda q, k: by_keys(q, k, part=2),
    "means of 4, softmax": lambda q, k: by_keys(q, k, part=4),
    "means of 8, softmax": lambda q, k: by_keys(q, k, part=8),
    "means of 32, softmax": lambda q, k: by_keys(q, k, part=32),
    "smallest and largest key": by_box,
}


def collect(tokens: int, count: int, seed: int) -> tuple[list[Tensor], list[Case]]:
    """Keys of every layer ``[blocks, Hk, 32, d]``, and questions with their queries, over a history of so many tokens."""
    recorder = Recorder()
    rng = random.Random(seed)  # noqa: S311 - reproducible
    with tempfile.TemporaryDirectory() as folder:
        sizes = derive_sizes(512, 0)
        budget = Budget(device=max(64 << 20, tokens * 6000))
        with Runtime.load(method=Method("record", sizes, recorder), store=folder, budget=budget) as runtime:
            stack = make_haystack(
                rng,
                tokens,
                [(i + 0.5) / count for i in range(count)],
                lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)),
            )
            with runtime.session("hay") as session:
                for piece in stack.pieces:
                    session.append("tool", piece, name="read", prefill=False)
                session.prefill()
                rows = [layer.every_key for layer in session.engine.kv.layers]
                keys = [part.slice(0, len(part)) for part in rows if part is not None]
                cases = [_ask(runtime, session, recorder, needle) for needle in stack.needles]
                return [part.clone() for part in keys], cases


def _ask(runtime: Runtime, session: Session, recorder: Recorder, needle: Needle) -> Case:
    """Feed question and right answer on a fork, and keep the queries."""
    recorder.asked, recorder.on = {}, True
    with asked_on_a_fork(runtime, session, f"ask {needle.name}") as child:
        child.append("user", needle.question, prefill=False)
        said = runtime.tokenizer.encode(data.answer(needle.name, needle.field, needle.value), add_special_tokens=False)
        ids = np.asarray([*runtime.chat.generation_prompt(), *said], dtype=np.int32)
        child.timeline.append_turn("assistant", needle.value, ids, chain="teacher")
        child.prefill()
        recorder.on = False
        asked = [recorder.asked[id(layer.every_key)] for layer in child.engine.kv.layers]
    return Case(_blocks_of(runtime, session, needle), asked)


def _blocks_of(runtime: Runtime, session: Session, needle: Needle) -> range:
    ids = session.timeline.tokens(0, session.tokens).tolist()
    for layout in data.LAYOUTS:
        fact = runtime.tokenizer.encode(data.render_fact(needle.name, needle.field, needle.value, layout), add_special_tokens=False)
        for at in range(len(ids) - len(fact) + 1):
            if ids[at : at + len(fact)] == fact:
                return range(at // BLOCK, (at + len(fact) - 1) // BLOCK + 1)
    raise LookupError(f"the fact of {needle.name} is not in the history")


def measure(keys: list[Tensor], cases: list[Case]) -> dict[str, dict[str, float]]:
    """Share of cases whose fact is among the best Blocks, by way of choosing, layer and KV head."""
    table: dict[str, dict[str, float]] = {}
    for name, vote in WAYS.items():
        for layer, part in enumerate(keys):
            for head in range(part.shape[1]):
                hits = sum(_found(vote, part[:, head], case, layer, head, part.shape[1]) for case in cases)
                table.setdefault(name, {})[f"layer {layer} head {head}"] = round(hits / len(cases), 3)
    return table


def _found(vote: Vote, keys: Tensor, case: Case, layer: int, head: int, heads: int) -> bool:
    for groups in case.queries[layer]:
        for queries in groups:
            votes = vote(queries.reshape(heads, -1, *queries.shape[1:])[head], keys)
            best = votes[case.blocks.start : case.blocks.stop].max()
            if int((votes > best).sum()) < BEST:
                return True
    return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Which way of choosing Blocks finds the fact.")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keys, cases = collect(args.tokens, args.questions, args.seed)
    table: dict[str, Any] = measure(keys, cases)
    if args.json:
        print(json.dumps({"tokens": args.tokens, "questions": len(cases), "best": BEST, "share": table}))
        return
    columns = list(next(iter(table.values())))
    print("way of choosing".ljust(40), *(column.replace("layer ", "L").replace(" head ", "h").rjust(6) for column in columns))
    for name, row in table.items():
        print(name.ljust(40), *(f"{row[column]:6.2f}" for column in columns))


if __name__ == "__main__":
    main()
