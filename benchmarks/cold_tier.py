"""What a packed host Tier costs in quality: attention over Blocks as they are, in 8 bits and in 4, on real keys of the pocket model.

Knows keys, values and queries of one history; changes no default by itself. For each kind it prints bytes of a Block, how far attention's
output is off (relative to its size), and how much attention mass goes to the Blocks that exact keys would have given most.

    python benchmarks/cold_tier.py --tokens 20000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agent_memory.attention.methods import Method, derive_sizes
from agent_memory.attention.selectors import Ask, RecallSelector, Selection
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.evaluate.haystack import make_haystack
from agent_memory.memory.layer_kv import Keeps, LayerKV
from agent_memory.memory.packing import packing_of
from agent_memory.pocket import data
from agent_memory.runtime import Runtime
from agent_memory.types import Budget, ColdKind
from agent_memory_kernels import operations

BLOCK = 32
KINDS: tuple[ColdKind, ...] = ("exact", "int8", "int4")


@dataclass
class Watched:
    """A Selector that passes on another's choices, and keeps each layer's queries ``[H, d]`` (the last of a group) and Blocks."""

    inner: RecallSelector
    seen: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    on: bool = False

    @property
    def keeps(self) -> Keeps:
        """What the other needs."""
        return self.inner.keeps

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """Choose as the other does."""
        chosen = self.inner.select(asks, scaling, layer)
        if self.on:
            for ask, selection in zip(asks, chosen, strict=True):
                for group, tokens in enumerate(selection.tokens):
                    blocks = tokens[tokens >= 0].div(BLOCK, rounding_mode="floor").unique()
                    self.seen.setdefault(id(layer), []).append((ask.queries[group, :, -1].clone(), blocks))
        return chosen


@dataclass(frozen=True)
class Case:
    """One query of one layer: ``[H, d]``, the Blocks it recalled ``[n, 2, Hk, 32, d]``, and the layer's number."""

    query: Tensor
    kv: Tensor
    layer: int


def collect(tokens: int, questions: int, seed: int) -> list[Case]:
    """Queries of answers to questions about a history, with the Blocks every layer recalls for them."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    watched = Watched(RecallSelector(RecallRule(blocks=7), operations()))
    budget = Budget(device=max(64 << 20, tokens * 6000))
    cases: list[Case] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Runtime.load(method=Method("watched", derive_sizes(512, 0), watched), store=folder, budget=budget) as runtime,
    ):
        depths = [(i + 0.5) / questions for i in range(questions)]
        stack = make_haystack(rng, tokens, depths, lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)))
        with runtime.session("hay") as session:
            for piece in stack.pieces:
                session.append("tool", piece, name="read", prefill=False)
            session.prefill()
            for needle in stack.needles:
                with asked_on_a_fork(runtime, session, f"ask {needle.name}") as child:
                    child.append("user", needle.question, prefill=False)
                    said = runtime.tokenizer.encode(data.answer(needle.name, needle.field, needle.value), add_special_tokens=False)
                    ids = np.asarray([*runtime.chat.generation_prompt(), *said], dtype=np.int32)
                    child.timeline.append_turn("assistant", needle.value, ids, chain="teacher")
                    watched.seen, watched.on = {}, True
                    child.prefill()
                    watched.on = False
                    for number, part in enumerate(child.engine.kv.layers):
                        for query, blocks in watched.seen.get(id(part), []):
                            tokens_of = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).reshape(1, 1, -1)
                            out = part.sink.new_empty((2, 1, part.sink.shape[1], tokens_of.shape[2], part.sink.shape[3]))
                            child.engine.kv.gather(number, tokens_of, out)
                            kv = out[:, 0].unflatten(2, (len(blocks), BLOCK)).permute(2, 0, 1, 3, 4)
                            cases.append(Case(query, kv, number))
    return cases


def attend(query: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    """Output ``[H, d]`` and mass ``[H, n]`` a Block of unrotated attention of ``query [H, d]`` over ``kv [n, 2, Hk, 32, d]``."""
    keys, values = (kv[:, i].transpose(0, 1).flatten(1, 2) for i in (0, 1))
    rows = query.unflatten(0, (keys.shape[0], -1))
    weights = (rows @ keys.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
    out = (weights @ values).flatten(0, 1)
    return out, weights.unflatten(-1, (len(kv), BLOCK)).sum(-1).flatten(0, 1)


def measure(cases: list[Case]) -> dict[str, dict[str, float]]:
    """For each kind: bytes of a Block, error of the output, mass kept on the best Block, and how often that stays the best."""
    table: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        packing = packing_of(kind)
        errors, masses, moved, best = [], [], [], []
        for case in cases:
            shape = tuple(case.kv.shape[1:])
            near = case.kv if packing is None else packing.unpack(packing.pack(case.kv), shape, case.kv.dtype)
            (out, mass), (out_near, mass_near) = attend(case.query, case.kv), attend(case.query, near)
            errors.append(((out_near - out).norm(dim=1) / out.norm(dim=1)).mean())
            top = mass.argmax(1, keepdim=True)
            masses.append((mass_near.gather(1, top) - mass.gather(1, top)).abs().mean())
            moved.append((mass_near - mass).abs().sum(1).mean() / 2)
            best.append((mass_near.argmax(1, keepdim=True) == top).float().mean())
        shape = tuple(cases[0].kv.shape[1:])
        size = cases[0].kv[0].nbytes if packing is None else packing.row_bytes(shape)
        values = [float(torch.stack(found).mean()) for found in (errors, masses, moved, best)]
        names = ("output_error", "mass_change_of_best_block", "mass_moved", "best_block_stays")
        worst = float(torch.stack(errors).quantile(0.99))
        table[kind] = {"block_bytes": size, **dict(zip(names, values, strict=True)), "output_error_p99": worst}
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What 8 and 4 bits cost in attention.")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = collect(args.tokens, args.questions, args.seed)
    table = measure(cases)
    if args.json:
        print(json.dumps({"tokens": args.tokens, "queries": len(cases), "kinds": table}))
        return
    for kind, row in table.items():
        print(kind.ljust(6), *(f"{name} {value:.4g}" for name, value in row.items()), sep="  ")


if __name__ == "__main__":
    main()
