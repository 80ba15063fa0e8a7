"""Exact answers: whole assistant turns of generated dialogues that the model says right, token for token.

Knows how to score a model inside its window. It writes no report and trains nothing.
A turn is exact when each of its tokens is the model's first choice after the true ones before it, which is what
greedy decoding produces.
"""

# ruff: noqa: S311  (generated text, not secrets)

import random
from collections import Counter
from typing import Any

import torch

from agent_memory.pocket import batches, data, dialogues
from agent_memory.pocket.real import snapshot

Tally = dict[str, tuple[int, int]]


def real_records(rng: random.Random, most: int = 3) -> list[data.Record]:
    """The snapshot's records in random order, each with at most so many of its fields."""
    records = []
    for row in snapshot()["records"]:
        if isinstance(row, dict):
            keys = [key for key in row if key != "name"]
            chosen = rng.sample(keys, min(most, len(keys)))
            records.append(data.Record(row["name"], {key: row[key] for key in chosen}))
    rng.shuffle(records)
    return records


@torch.no_grad()
def hidden_choices(model: Any, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The model's first choice at the wanted positions (a mask over ids), as one flat tensor."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[wanted]
    choice: torch.Tensor = model.lm_head(hidden).argmax(-1)
    return choice


@torch.no_grad()
def tally(model: Any, sequences: list[batches.Sequence], pad: int, batch: int = 16) -> tuple[Tally, list[tuple[int, str, list[int]]]]:
    """(right, asked) for every kind of turn, and the wrong ones: sequence, kind, what was said."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong = []
    for first in range(0, len(sequences), batch):
        part = sequences[first : first + batch]
        ids, labels = batches.collate(part, pad)
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        wanted[:, :-1] = labels[:, 1:] != batches.IGNORE
        said = torch.full_like(ids, batches.IGNORE)
        said[:, 1:][wanted[:, :-1]] = hidden_choices(model, ids, wanted)
        for row, item in enumerate(part):
            for start, stop, kind in item.spans:
                good = bool((said[row, start:stop] == labels[row, start:stop]).all())
                asked[kind] += 1
                right[kind] += good
                if not good:
                    wrong.append((first + row, kind, said[row, start:stop].tolist()))
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}, wrong


def merge(counts: Tally, want: str = "") -> tuple[int, int]:
    """Sum over the kinds whose name contains `want`, turns that only close a call left out."""
    chosen = [pair for kind, pair in counts.items() if want in kind and kind != "close"]
    return sum(pair[0] for pair in chosen), sum(pair[1] for pair in chosen)


def share(pair: tuple[int, int]) -> float:
    """Right over asked."""
    return pair[0] / max(1, pair[1])


def sequences(
    renderer: batches.Renderer, shape: dialogues.Shape, count: int, length: int, seed: int, real: bool = False
) -> list[batches.Sequence]:
    """Fixed dialogues to score on; with `real`, about real records."""
    rng = random.Random(seed)
    out: list[batches.Sequence] = []
    pool: list[data.Record] = []
    for _ in range(count):
        current = shape
        if real:
            if len(pool) < shape.facts:
                pool = real_records(rng)
            taken, pool = pool[: shape.facts], pool[shape.facts :]
            values = {key: getattr(shape, key) for key in shape.__dataclass_fields__}
            current = dialogues.Shape(**(values | {"real": tuple(taken)}))
        out.append(renderer.sequence(dialogues.script(rng, current), length))
    return out
