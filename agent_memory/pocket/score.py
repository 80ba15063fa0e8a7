"""Scores of the pocket model inside its window: `python -m agent_memory.pocket.score --json`.

Knows which questions make up score A (generated and real records) and the score of each skill. It trains nothing.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from agent_memory.pocket import batches, circuit, data, dialogues, exact, path

PLAIN = dialogues.Shape(facts=10, questions=9, noise=0.15, similar=0.35, calls=0.0)
SHAPES: dict[str, dialogues.Shape] = {
    "generated": PLAIN,
    "near_duplicates": dialogues.Shape(facts=10, questions=9, noise=0.1, similar=0.9, calls=0.0),
    "tool_calls": dialogues.Shape(facts=4, questions=6, noise=0.1, similar=0.35, calls=0.8),
    "updates": dialogues.Shape(facts=8, questions=8, noise=0.1, similar=0.3, calls=0.0, updates=0.5),
    "unknown": dialogues.Shape(facts=8, questions=8, noise=0.1, similar=0.3, calls=0.0, unknown=0.5),
}


def by_layout(counts: exact.Tally) -> dict[str, float]:
    """Exact answers for each layout."""
    return {layout: round(exact.share(exact.merge(counts, f"/{layout}")), 4) for layout in data.LAYOUTS}


def by_field(wrong: list[tuple[int, str, list[int]]]) -> dict[str, int]:
    """How many wrong answers each kind of turn has."""
    return dict(Counter(kind for _, kind, _ in wrong).most_common(12))


def ask(model: Any, renderer: batches.Renderer, name: str, questions: int, seed: int) -> tuple[exact.Tally, list[Any]]:
    """Score dialogues of one kind until so many questions are asked."""
    real = name == "real"
    shape = PLAIN if real else SHAPES[name]
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    missed: list[Any] = []
    pad = renderer.tokenizer.pad_token_id
    while sum(total[kind] for kind in total if kind != "close") < questions:
        counts, wrong = exact.tally(model, exact.sequences(renderer, shape, 32, circuit.WINDOW, seed, real), pad)
        seed += 1
        missed += wrong
        for kind, (good, asked) in counts.items():
            right[kind] += good
            total[kind] += asked
    return {kind: (right[kind], total[kind]) for kind in sorted(total)}, missed


def report(model: Any, tokenizer: Any, questions: int = 1000, seed: int = 1000) -> dict[str, Any]:
    """Every score; `score_a` is the lower one of generated and real records."""
    renderer = batches.Renderer(tokenizer)
    out: dict[str, Any] = {"questions": {}}
    for name, want in (("generated", ""), ("real", ""), ("near_duplicates", "near"), ("tool_calls", "call"),
                       ("updates", "update"), ("unknown", "unknown")):  # fmt: skip
        counts, wrong = ask(model, renderer, name, questions if name in {"generated", "real"} else questions // 2, seed)
        pair = exact.merge(counts, want)
        out[name] = round(exact.share(pair), 4)
        out["questions"][name] = pair[1]
        if name in {"generated", "real"}:
            out[f"{name}_layouts"] = by_layout(counts)
        if name == "unknown":
            known = [pair for kind, pair in counts.items() if kind not in {"close", "unknown/"}]
            out["known_beside_unknown"] = round(sum(p[0] for p in known) / max(1, sum(p[1] for p in known)), 4)
        if name == "updates":
            out["not_updated"] = round(exact.share(exact.merge({k: v for k, v in counts.items() if "update" not in k})), 4)
        print(f"{name}: {out[name]:.4f} of {pair[1]}, wrong: {by_field(wrong)}", file=sys.stderr)
    out["score_a"] = min(out["generated"], out["real"])
    return out


def load(folder: Path) -> tuple[Any, Any]:
    """The model and tokenizer of a folder, as anyone would load them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score the pocket model inside its window.")
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = parser.parse_args()
    scores = report(*load(args.model), args.questions, args.seed)
    if args.json:
        print(json.dumps(scores))
        return
    for name, value in scores.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
