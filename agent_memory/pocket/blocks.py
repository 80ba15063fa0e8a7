"""Whether the model's own keys find a fact's block far outside its window, by content alone.

Knows the raw product of queries and keys before rotation over a long history. It knows no memory and no method:
this is the property of the weights that recall stands on. `python -m agent_memory.pocket.blocks`.
"""

# ruff: noqa: S311  (generated text, not secrets)

import argparse
import random
from pathlib import Path
from typing import Any

import torch

from agent_memory.pocket import batches, circuit, data, dialogues, path
from agent_memory.pocket.score import load

BLOCK = 32
TOP = 7
LOCAL = 240


class Taps:
    """The unrotated queries and keys of every layer in the last forward pass."""

    def __init__(self, model: Any) -> None:
        self.found: dict[tuple[str, int], torch.Tensor] = {}
        for at, layer in enumerate(model.model.layers):
            for name in ("q_proj", "k_proj"):
                getattr(layer.self_attn, name).register_forward_hook(self._keep(name, at))

    def _keep(self, name: str, at: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            self.found[name, at] = output[0].detach().float().unflatten(-1, (-1, circuit.HEAD)).transpose(0, 1)

        return hook


@torch.no_grad()
def keys(model: Any, taps: Taps, ids: torch.Tensor, window: int = 512) -> list[torch.Tensor]:
    """The keys of a long text for every layer, each computed with at least half a window before it."""
    parts: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    half = window // 2
    for start in range(0, max(1, len(ids) - half), half):
        model.model(input_ids=ids[None, start : start + window], use_cache=False)
        for layer, kept in enumerate(parts):
            kept.append(taps.found["k_proj", layer][:, 0 if start == 0 else half :])
    return [torch.cat(kept, 1) for kept in parts]


def history(rng: random.Random, renderer: batches.Renderer, length: int) -> tuple[list[int], list[tuple[Any, int, str]]]:
    """Tool outputs one after another, and where each fact's value lies."""
    ids: list[int] = []
    facts = []
    name = ""
    while len(ids) < length:
        record = data.make_record(rng, like=name if name and rng.random() < 0.3 else None)
        name = record.name
        layout = rng.choice(data.LAYOUTS)
        lines = [data.render_fact(name, key, value, layout) for key, value in record.fields.items()]
        start = "<|tool|>lookup\n"
        text = start + "\n".join(lines) + ("\n" + data.noise(rng, rng.randrange(4)) if rng.random() < 0.7 else "") + "<|end|>"
        encoded = renderer.inner.encode(text, add_special_tokens=False)
        at = len(start)
        for (key, value), line in zip(record.fields.items(), lines, strict=True):
            begin = encoded.char_to_token(at + len(line) - len(value) - (2 if layout == "json" else 0))
            if begin is not None:
                facts.append(((name, key, value), len(ids) + begin, layout))
            at += len(line) + 1
        ids += encoded.ids
    return ids, facts


@torch.no_grad()
def recall(model: Any, tokenizer: Any, questions: int = 100, length: int = 8192, seed: int = 5) -> dict[str, float]:
    """For each layer, and for any of layers 2 to 4, the share of questions whose fact's block is among the top blocks.

    `raw` takes the products themselves, `votes` a softmax over the history for every query and head; both are averaged
    over the heads, and a block counts by its best key and query.
    """
    rng = random.Random(seed)
    renderer = batches.Renderer(tokenizer)
    taps = Taps(model)
    ids, facts = history(rng, renderer, length)
    stored = keys(model, taps, torch.tensor(ids))
    far = [fact for fact in facts if fact[1] < len(ids) - 512]
    names = [f"layer {layer + 1}" for layer in range(len(stored))]
    hits = {f"{kind} {name}": 0 for kind in ("raw", "votes") for name in [*names, "any of 2 to 4"]}
    for (name, key, value), at, _ in rng.sample(far, min(questions, len(far))):
        turn = dialogues.Script(
            messages=[
                {"role": "user", "content": data.question(name, key)},
                {"role": "assistant", "content": data.answer(name, key, value)},
            ]
        )
        asked = renderer.sequence(turn, circuit.WINDOW).ids
        model.model(input_ids=torch.tensor([ids[-LOCAL:] + asked]), use_cache=False)
        good: set[tuple[str, int]] = set()
        for layer, stock in enumerate(stored):
            query = taps.found["q_proj", layer][:, LOCAL:]
            groups = stock.repeat_interleave(query.shape[0] // stock.shape[0], 0)[:, : len(ids) - LOCAL]
            raw = torch.einsum("htd,hnd->htn", query, groups) / circuit.HEAD**0.5
            for kind, scores in (("raw", raw), ("votes", raw.softmax(-1))):
                if at // BLOCK in top_blocks(scores.mean(0).amax(0)):
                    good.add((kind, layer))
        for kind, layer in good:
            hits[f"{kind} {names[layer]}"] += 1
        for kind in ("raw", "votes"):
            hits[f"{kind} any of 2 to 4"] += any((kind, layer) in good for layer in (1, 2, 3))
    total = min(questions, len(far))
    return {name: round(count / total, 4) for name, count in hits.items()}


def top_blocks(scores: torch.Tensor) -> list[int]:
    """The blocks that hold the highest scores."""
    count = len(scores) // BLOCK
    chosen: list[int] = scores[: count * BLOCK].view(count, BLOCK).amax(1).topk(TOP).indices.tolist()
    return chosen


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How well the model's unrotated keys find a fact's block.")
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--length", type=int, default=8192)
    args = parser.parse_args()
    for name, value in recall(*load(args.model), args.questions, args.length).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
