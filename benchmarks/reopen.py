"""Reopening a Session against prefilling its history again: time to the first answer token, model loaded, in one run.

python benchmarks/reopen.py --tokens 200000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch

from agent_memory.evaluate.haystack import make_haystack
from agent_memory.runtime import Runtime
from agent_memory.types import Budget


def first_token(runtime: Runtime, name: str, question: str) -> tuple[float, str]:
    """Seconds from opening a Session to the first token of an answer on a fork, and the whole answer."""
    started = time.perf_counter()
    with runtime.session(name) as session:
        child = session.fork(f"{name} asked {started}")
        pieces = child.stream(question, max_new_tokens=24)
        text = next(iter(pieces), "")
        seconds = time.perf_counter() - started
        text += "".join(pieces)
        child.close(keep=False)
    return seconds, text


def measure(tokens: int, device: str) -> dict[str, float | int | str | bool]:
    """Fill a Session, close it, reopen it with nothing on the device, and compare."""
    rng = random.Random(0)  # noqa: S311 - reproducible
    budget = Budget(device=device)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with Runtime.load(store=store, budget=budget) as runtime:
            stack = make_haystack(rng, tokens, [0.1], lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)))
            question = stack.needles[0].question
            with runtime.session("long") as session:
                for piece in stack.pieces:
                    session.append("tool", piece, name="read", prefill=False)
                started = time.perf_counter()
                session.prefill()
                prefill = time.perf_counter() - started
                held = session.tokens
            before = first_token(runtime, "long", question)[1]
        with Runtime.load(store=store, budget=budget) as runtime:
            runtime.model(torch.zeros((1, 8), dtype=torch.int64))  # the model is loaded and has run once
            reopen, after = first_token(runtime, "long", question)
    return {
        "tokens": held,
        "reopen_seconds": round(reopen, 3),
        "prefill_seconds": round(prefill, 3),
        "ratio": round(prefill / reopen, 1),
        "answers_equal": before == after,
        "answer_right": stack.needles[0].found_in(after),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Reopening against prefilling again.")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--device", default="192MiB")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args.tokens, args.device)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
